"""What a checkpoint says about itself: preprocessing, classes, where its weights are from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# Key of the metadata in a checkpoint, beside "model".
KEY = "frcnn_plugin"

# Mean of Caffe's VGG16 in BGR order. Its authors subtract (103.939, 116.779, 123.68); the original
# Faster R-CNN code these numbers, which make no difference that was ever measured.
CAFFE_MEAN = (102.9801, 115.9465, 122.7717)
# How far a mean may be from that of ImageNet weights: the two above are 1 grey level apart.
IMAGENET_MEAN_TOLERANCE = 1.5


@dataclass(frozen=True)
class Preprocessing:
    """How images become network inputs."""

    format: str
    """Order of the colours, "BGR" or "RGB" (``INPUT.FORMAT``)."""
    mean: tuple[float, ...]
    """Grey levels (0..255) subtracted, in that order (``MODEL.PIXEL_MEAN``)."""
    std: tuple[float, ...]
    """Grey levels divided by afterwards (``MODEL.PIXEL_STD``)."""

    def contradiction(self, other: Preprocessing, *, tolerance: float = 1e-3) -> list[str]:
        """Return the config keys whose values differ.

        Args:
            other: to compare with.
            tolerance: grey levels that the means may differ by.
        """
        keys = []
        if self.format != other.format:
            keys.append("INPUT.FORMAT")
        if not _close(self.mean, other.mean, tolerance):
            keys.append("MODEL.PIXEL_MEAN")
        if not _close(self.std, other.std, 1e-3):
            keys.append("MODEL.PIXEL_STD")
        return keys


CAFFE = Preprocessing("BGR", CAFFE_MEAN, (1.0, 1.0, 1.0))
# torchvision: (x / 255 - mean) / std, in grey levels.
TORCHVISION = Preprocessing("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# torchvision's features-only file: Caffe's weights with the colours reversed.
TORCHVISION_FEATURES = Preprocessing("RGB", (122.99925, 116.9991, 103.9992), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Metadata:
    """Stored in a checkpoint under :data:`KEY`, as plain dictionaries, lists, strings, numbers."""

    kind: str
    """"imagenet" (backbone and fully connected layers) or "detector"."""
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None
    """Names, without background; None if unknown."""
    config: str | None = None
    """YAML of the whole config the weights were trained with."""
    source: dict[str, str | int] = field(default_factory=dict)
    """Of converted weights: file, sha256, layout, converter."""
    background: dict[str, Any] = field(default_factory=dict)
    """Of converted Caffe detectors: the untrained background rows of bbox_pred (tensors), which
    this plugin has no place for but a conversion back needs."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to what ``torch.save`` writes and ``torch.load(weights_only=True)`` reads."""
        content = {k: v for k, v in asdict(self).items() if v not in (None, {})}
        if self.preprocessing is not None:
            p = self.preprocessing
            content["preprocessing"] = {
                "format": p.format,
                "mean": list(p.mean),
                "std": list(p.std),
            }
        if self.classes is not None:
            content["classes"] = list(self.classes)
        return content

    @classmethod
    def from_dict(cls, content: object) -> Metadata | None:
        """Invert :meth:`to_dict`; return None if ``content`` is not what that gives."""
        if not isinstance(content, Mapping) or not isinstance(content.get("kind"), str):
            return None
        classes = content.get("classes")
        return cls(
            kind=content["kind"],
            preprocessing=_preprocessing(content.get("preprocessing")),
            classes=tuple(str(c) for c in classes) if isinstance(classes, list) else None,
            config=content["config"] if isinstance(content.get("config"), str) else None,
            source=dict(content.get("source") or {}),
            background=dict(content.get("background") or {}),
        )


def _preprocessing(content: object) -> Preprocessing | None:
    if not isinstance(content, Mapping):
        return None
    try:
        mean, std = tuple(map(float, content["mean"])), tuple(map(float, content["std"]))
        return Preprocessing(str(content["format"]), mean, std)
    except (KeyError, TypeError, ValueError):
        return None


def _close(a: Sequence[float], b: Sequence[float], tolerance: float) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))

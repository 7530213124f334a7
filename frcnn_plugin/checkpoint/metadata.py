"""What a checkpoint says about itself: preprocessing, classes, and where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# Key of the metadata in a checkpoint, next to "model".
KEY = "frcnn_plugin"

# How far a mean may be from that of ImageNet weights: those of CAFFE below and of VGG16's authors
# are 1 grey level apart.
IMAGENET_MEAN_TOLERANCE = 1.5


@dataclass(frozen=True)
class Preprocessing:
    """How images become network inputs."""

    format: str  # order of the colours, "BGR" or "RGB" (``INPUT.FORMAT``)
    mean: tuple[float, ...]  # grey levels (0..255) subtracted, in that order
    std: tuple[float, ...]  # grey levels divided by afterwards

    def values(self) -> dict[str, str | list[float]]:
        """Return the values by the keys of the config that hold them."""
        return {
            "INPUT.FORMAT": self.format,
            "MODEL.PIXEL_MEAN": list(self.mean),
            "MODEL.PIXEL_STD": list(self.std),
        }


# The mean is that of the original Faster R-CNN code. VGG16's authors subtract (103.939, 116.779,
# 123.68), which makes no difference that was ever measured.
CAFFE = Preprocessing("BGR", (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0))
# torchvision: (x / 255 - mean) / std, in grey levels.
TORCHVISION = Preprocessing("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# torchvision's features-only file: Caffe's weights with the colours reversed.
TORCHVISION_FEATURES = Preprocessing("RGB", (122.99925, 116.9991, 103.9992), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class Metadata:
    """Stored in a checkpoint under :data:`KEY`, as plain dictionaries, lists, strings, numbers."""

    kind: str  # "imagenet" (backbone and fully connected layers) or "detector"
    preprocessing: Preprocessing | None = None
    classes: tuple[str, ...] | None = None  # names, without background; None if unknown
    config: str | None = None  # YAML of the whole config the weights were trained with
    # Of converted weights: file, sha256, layout, converter.
    source: dict[str, str | int] = field(default_factory=dict)
    # Of converted Caffe detectors: the untrained background rows of bbox_pred (tensors), which this
    # plugin has no place for but a conversion back needs.
    background: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Convert to what ``torch.save`` writes and ``torch.load(weights_only=True)`` reads."""
        content = {k: v for k, v in asdict(self).items() if v not in (None, {})}
        if self.preprocessing is not None:
            content["preprocessing"] |= {
                "mean": list(self.preprocessing.mean),
                "std": list(self.preprocessing.std),
            }
        if self.classes is not None:
            content["classes"] = list(self.classes)
        return content

    @classmethod
    def from_dict(cls, content: object) -> Metadata | None:
        """Invert :meth:`to_dict`; return None if ``content`` is something else."""
        if not isinstance(content, Mapping) or not isinstance(content.get("kind"), str):
            return None
        classes, config = content.get("classes"), content.get("config")
        return cls(
            kind=content["kind"],
            preprocessing=_preprocessing(content.get("preprocessing")),
            classes=tuple(map(str, classes)) if isinstance(classes, list) else None,
            config=config if isinstance(config, str) else None,
            source=_mapping(content.get("source")),
            background=_mapping(content.get("background")),
        )


def _preprocessing(content: Any) -> Preprocessing | None:
    try:
        mean, std = tuple(map(float, content["mean"])), tuple(map(float, content["std"]))
        return Preprocessing(str(content["format"]), mean, std)
    except (KeyError, TypeError, ValueError, OverflowError):  # none, or a stranger's
        return None


def _mapping(content: Any) -> dict[str, Any]:
    return dict(content) if isinstance(content, Mapping) else {}

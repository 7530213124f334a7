"""Features of images, kept in files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from ..modeling.backbone.feature_store import Features
from .feature_files import DamagedFile, is_dense, read_features, write_features

logger = logging.getLogger(__name__)

SUFFIX = ".features"


class FeatureCache:
    """One folder with a file per image: what ``PaperRCNN.feature_store`` may be.

    Files are named by the pixels of the network's input: the mirrored copy of an image, another
    size, another set's image of the same id are other pixels, and equal pixels have equal features.
    Several processes may share the folder.

    Attributes:
        read: images whose features came from a file.
        computed: images whose features had to be computed.
        kept: of these, images whose features were written.
    """

    def __init__(self, folder: Path, limit: float, device: torch.device | str = "cpu") -> None:
        """Use a folder.

        Args:
            folder: exists; of one backbone, see
                :func:`~frcnn_plugin.four_step.features.features_digest`.
            limit: bytes that may be added to what is there.
            device: the model's.
        """
        self._folder = folder
        self._room = limit
        self._device = device
        self._warned: set[str] = set()
        self.read = self.computed = self.kept = 0

    def __call__(self, image: torch.Tensor, compute: Callable[[], Features]) -> Features:
        """See :class:`~frcnn_plugin.modeling.backbone.feature_store.FeatureStore`."""
        path = self._path(image)
        features = self._find(path)
        if features is not None:
            self.read += 1
            return {name: f.to(self._device) for name, f in features.items()}
        features = compute()
        self.computed += 1
        self._keep(path, features)
        return features

    def _path(self, image: torch.Tensor) -> Path:
        pixels = image.cpu().contiguous()
        # 0.9 ms for the bytes of 600x1000; a name of the file would not tell what a loader did.
        digest = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)} ".encode())
        digest.update(pixels.numpy().data)
        return self._folder / f"{digest.hexdigest()}{SUFFIX}"

    def _find(self, path: Path) -> Features | None:
        try:
            return read_features(path)
        except FileNotFoundError:
            return None
        except (DamagedFile, OSError) as e:
            self._warn(
                "read", f"{e}: its features, and those of others like it, are computed again"
            )
        with suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            self._room += size
        return None

    def _keep(self, path: Path, features: Features) -> None:
        # A kilobyte is more than the description of a feature map takes.
        if sum(f.nbytes + 1000 for f in features.values()) > self._room:
            return
        if not all(is_dense(f) for f in features.values()):
            return  # none of ours; a copy would have another layout
        try:
            self._room -= write_features(path, features)
            self.kept += 1
        except OSError as e:
            self._room = 0.0
            self._warn(
                "write",
                f"{path.parent} cannot be written to ({e.strerror or e}): no more features are "
                "kept, those of other images are computed each time",
            )

    def _warn(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("%s", text)

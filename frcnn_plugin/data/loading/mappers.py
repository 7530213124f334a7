"""From an entry of a data set to an input of the model: read, resized, mirrored.

Detectron2's mapper opens files by its own function. It gives the pixels that
:func:`.image_reader.read_bgr` gives, but for grey images of 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T

from .resize import with_resize


def build_mapper(cfg: CfgNode, *, is_train: bool) -> DatasetMapper:
    """Build Detectron2's mapper with the resize of ``INPUT.RESIZE``."""
    options = DatasetMapper.from_config(cfg, is_train)
    options["augmentations"] = with_resize(cfg, options["augmentations"])
    return DatasetMapper(**options)


class MirroringMapper:
    """Detectron2's mapper, which flips exactly the entries marked ``"mirrored"``."""

    def __init__(self, cfg: CfgNode, *, is_train: bool) -> None:
        """Make both mappers from ``INPUT``, without its random flip."""
        cfg = cfg.clone()
        cfg.defrost()
        cfg.INPUT.RANDOM_FLIP = "none"
        plain = with_resize(cfg, detection_utils.build_augmentation(cfg, is_train))
        flip = T.RandomFlip(prob=1.0, horizontal=True)
        options = DatasetMapper.from_config(cfg, is_train)
        self._mappers: tuple[Callable[[dict[str, Any]], Any], ...] = tuple(
            DatasetMapper(**{**options, "augmentations": augmentations})
            for augmentations in (plain, [*plain, flip])
        )

    def __call__(self, record: dict[str, Any]) -> Any:
        """Load one entry as Detectron2's mapper does."""
        return self._mappers[bool(record.get("mirrored"))](record)

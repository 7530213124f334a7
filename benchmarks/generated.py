"""Image files to load, made on the spot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from frcnn_plugin.data import register_voc
from frcnn_plugin.data.synthetic import SHAPE_CLASSES, write_synthetic_voc


@contextmanager
def generated_set(folder: Path, images: int, short_side: int) -> Iterator[str]:
    """A registered VOC-format set of generated pictures.

    Args:
        folder: to write to.
        images: how many.
        short_side: of each, pixels.

    Yields:
        its name; it is forgotten afterwards.
    """
    name = "benchmark_shapes"
    root = write_synthetic_voc(folder / name, images, 0, 0, (short_side, short_side))
    register_voc(name, str(root), "trainval", classes=SHAPE_CLASSES)
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)

"""Data sets: VOC-format loading and registration, checks before training, a synthetic set.

Importing this package registers the built-in names (``voc07_trainval``, ``voc07_test``, ...).
"""

from .builtin import (
    OFFICIAL_IMAGE_COUNTS,
    register_builtin,
)
from .checks import check_datasets
from .coco import register_coco
from .entries import register_from_config_entries
from .synthetic import SHAPE_CLASSES, write_synthetic_voc
from .voc import VOC_CLASSES, load_voc_instances, register_voc
from .xml_folder import register_xml_folder

__all__ = [
    "OFFICIAL_IMAGE_COUNTS",
    "SHAPE_CLASSES",
    "VOC_CLASSES",
    "check_datasets",
    "load_voc_instances",
    "register_builtin",
    "register_coco",
    "register_from_config_entries",
    "register_voc",
    "register_xml_folder",
    "write_synthetic_voc",
]

register_builtin()

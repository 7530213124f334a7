"""Data sets: VOC-format loading and registration, checks before training, a synthetic set.

Importing this package registers the built-in names (``voc07_trainval``, ``voc07_test``, ...).
"""

from .datasets.builtin import OFFICIAL_IMAGE_COUNTS, register_builtin
from .datasets.checks import check_datasets
from .datasets.coco import register_coco
from .datasets.config_entries import register_from_config_entries
from .datasets.voc import VOC_CLASSES, load_voc_instances, register_voc
from .datasets.voc_xml_folder import register_xml_folder
from .synthetic.generator import SHAPE_CLASSES, write_synthetic_voc

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

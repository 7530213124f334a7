"""Data sets and their loading: VOC and COCO format, training loader, proposal files, checks.

Importing this package registers the built-in names (``voc07_trainval``, ``voc07_test``, ...).
"""

from .datasets.checks import check_datasets
from .datasets.coco import register_coco
from .datasets.config_entries import register_from_config_entries
from .datasets.voc import (
    OFFICIAL_IMAGE_COUNTS,
    VOC_CLASSES,
    load_voc_instances,
    register_builtin,
    register_voc,
)
from .datasets.xml_folder import register_xml_folder
from .loading.bad_images import build_test_loader
from .loading.image_reader import IMAGE_SUFFIXES, image_header, read_bgr, read_image
from .loading.mappers import (
    FloatResizeShortestEdge,
    FloatResizeTransform,
    ImageMapper,
    MirroringMapper,
    build_mapper,
    with_resize,
)
from .loading.train_loader import (
    MirroredDataset,
    OrientationBatchSampler,
    build_train_loader,
    training_dicts,
)
from .proposals.converters import convert_npz, convert_selective_search_mat
from .proposals.files import (
    Proposals,
    check_proposals,
    load_proposals,
    save_proposals,
    validate_proposals,
)
from .synthetic import SHAPE_CLASSES, write_synthetic_voc

__all__ = [
    "IMAGE_SUFFIXES",
    "OFFICIAL_IMAGE_COUNTS",
    "SHAPE_CLASSES",
    "VOC_CLASSES",
    "FloatResizeShortestEdge",
    "FloatResizeTransform",
    "ImageMapper",
    "MirroredDataset",
    "MirroringMapper",
    "OrientationBatchSampler",
    "Proposals",
    "build_mapper",
    "build_test_loader",
    "build_train_loader",
    "check_datasets",
    "check_proposals",
    "convert_npz",
    "convert_selective_search_mat",
    "image_header",
    "load_proposals",
    "load_voc_instances",
    "read_bgr",
    "read_image",
    "register_builtin",
    "register_coco",
    "register_from_config_entries",
    "register_voc",
    "register_xml_folder",
    "save_proposals",
    "training_dicts",
    "validate_proposals",
    "with_resize",
    "write_synthetic_voc",
]

register_builtin()

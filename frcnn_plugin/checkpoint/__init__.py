"""Files of weights: Caffe's and others, their conversion, and what checkpoints say of themselves.

Importing this package registers ``frcnn://`` with Detectron2's path manager.
"""

from detectron2.utils.file_io import PathManager

from .caffe.caffemodel import read_caffemodel, write_caffemodel
from .caffe.conversion import convert_caffe, convert_to_caffe
from .catalog.download import CatalogHandler
from .catalog.known_files import CATALOG, KnownFile
from .checkpointer import AtomicCheckpointer
from .conversion import Conversion, convert_torchvision
from .metadata import KEY, Metadata, Preprocessing
from .read import Peek, peek, read_metadata, read_weights, save_weights

__all__ = [
    "CATALOG",
    "KEY",
    "AtomicCheckpointer",
    "Conversion",
    "KnownFile",
    "Metadata",
    "Peek",
    "Preprocessing",
    "convert_caffe",
    "convert_to_caffe",
    "convert_torchvision",
    "peek",
    "read_caffemodel",
    "read_metadata",
    "read_weights",
    "save_weights",
    "write_caffemodel",
]

PathManager.register_handler(CatalogHandler(), allow_override=True)

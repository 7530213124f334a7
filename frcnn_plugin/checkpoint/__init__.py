"""Files of weights: Caffe's and others', conversion, and what a checkpoint says about itself.

Importing this package registers ``frcnn://`` with Detectron2's path manager.
"""

from .caffe.caffemodel import CaffeModel, read_caffemodel, write_caffemodel
from .caffe.from_caffe import convert_caffe
from .caffe.to_caffe import convert_to_caffe
from .catalog.known_files import CATALOG, KnownFile
from .catalog.path_handler import register
from .checkpointer import AtomicCheckpointer
from .conversion import Conversion
from .from_torchvision import convert_torchvision
from .metadata import KEY, Metadata, Preprocessing
from .read import Peek, peek, read_metadata, read_weights, save_weights

__all__ = [
    "CATALOG",
    "KEY",
    "AtomicCheckpointer",
    "CaffeModel",
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

register()

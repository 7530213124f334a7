"""Files of weights: Caffe's and others', conversion, and what a checkpoint says about itself.

Importing this package registers ``frcnn://`` with Detectron2's path manager.
"""

from .caffemodel import CaffeModel, read_caffemodel, write_caffemodel
from .catalog import CATALOG, KnownFile
from .conversion import Conversion
from .from_caffe import convert_caffe
from .from_torchvision import convert_torchvision
from .metadata import KEY, Metadata, Preprocessing
from .path_handler import register
from .read import read_metadata, read_weights, save_weights
from .to_caffe import convert_to_caffe

__all__ = [
    "CATALOG",
    "KEY",
    "CaffeModel",
    "Conversion",
    "KnownFile",
    "Metadata",
    "Preprocessing",
    "convert_caffe",
    "convert_to_caffe",
    "convert_torchvision",
    "read_caffemodel",
    "read_metadata",
    "read_weights",
    "save_weights",
    "write_caffemodel",
]

register()

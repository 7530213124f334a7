"""Caffe's messages, independent of the table that is tested.

Numbers and types of the fields are those of caffe.proto; only those needed are declared.
"""

from __future__ import annotations

from frcnn_plugin.checkpoint.caffe.caffemodel import message_classes

# message -> field -> number, type, repeated
_MESSAGES = {
    "BlobShape": {"dim": (1, "INT64", True)},
    "BlobProto": {
        "num": (1, "INT32", False),
        "channels": (2, "INT32", False),
        "height": (3, "INT32", False),
        "width": (4, "INT32", False),
        "data": (5, "FLOAT", True),
        "diff": (6, "FLOAT", True),
        "shape": (7, "BlobShape", False),
        "double_data": (8, "DOUBLE", True),
    },
    "V0LayerParameter": {"name": (1, "STRING", False)},
    "V1LayerParameter": {
        "layer": (1, "V0LayerParameter", False),
        "bottom": (2, "STRING", True),
        "name": (4, "STRING", False),
        "type": (5, "INT32", False),
        "blobs": (6, "BlobProto", True),
    },
    "LayerParameter": {
        "name": (1, "STRING", False),
        "type": (2, "STRING", False),
        "bottom": (3, "STRING", True),
        "blobs": (7, "BlobProto", True),
    },
    "NetParameter": {
        "name": (1, "STRING", False),
        "layers": (2, "V1LayerParameter", True),
        "input": (3, "STRING", True),
        "input_dim": (4, "INT32", True),
        "force_backward": (5, "BOOL", False),
        "layer": (100, "LayerParameter", True),
    },
}
# All classes are kept, as message_classes asks.
_PACKED = message_classes(_MESSAGES)
NetParameter = _PACKED["NetParameter"]
# Some writers do not pack numbers; readers have to take both.
_UNPACKED = message_classes(_MESSAGES, packed=False)
UnpackedNetParameter = _UNPACKED["NetParameter"]

"""Caffe's messages for the official protocol buffer runtime, as a second opinion.

Numbers and types of the fields are Caffe's (caffe.proto); only those needed are declared.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_F = descriptor_pb2.FieldDescriptorProto
_OPTIONAL, _REPEATED = _F.LABEL_OPTIONAL, _F.LABEL_REPEATED

# name -> [(field, number, type, label, message type, packed)]
_MESSAGES: dict[str, list[tuple[str, int, int, int, str, bool]]] = {
    "BlobShape": [("dim", 1, _F.TYPE_INT64, _REPEATED, "", True)],
    "BlobProto": [
        ("num", 1, _F.TYPE_INT32, _OPTIONAL, "", False),
        ("channels", 2, _F.TYPE_INT32, _OPTIONAL, "", False),
        ("height", 3, _F.TYPE_INT32, _OPTIONAL, "", False),
        ("width", 4, _F.TYPE_INT32, _OPTIONAL, "", False),
        ("data", 5, _F.TYPE_FLOAT, _REPEATED, "", True),
        ("diff", 6, _F.TYPE_FLOAT, _REPEATED, "", True),
        ("shape", 7, _F.TYPE_MESSAGE, _OPTIONAL, "BlobShape", False),
        ("double_data", 8, _F.TYPE_DOUBLE, _REPEATED, "", True),
    ],
    # Old writers did not pack floats; readers have to take both.
    "UnpackedBlobProto": [
        ("num", 1, _F.TYPE_INT32, _OPTIONAL, "", False),
        ("channels", 2, _F.TYPE_INT32, _OPTIONAL, "", False),
        ("height", 3, _F.TYPE_INT32, _OPTIONAL, "", False),
        ("width", 4, _F.TYPE_INT32, _OPTIONAL, "", False),
        ("data", 5, _F.TYPE_FLOAT, _REPEATED, "", False),
        ("double_data", 8, _F.TYPE_DOUBLE, _REPEATED, "", False),
    ],
    "V0LayerParameter": [("name", 1, _F.TYPE_STRING, _OPTIONAL, "", False)],
    "V1LayerParameter": [
        ("layer", 1, _F.TYPE_MESSAGE, _OPTIONAL, "V0LayerParameter", False),
        ("bottom", 2, _F.TYPE_STRING, _REPEATED, "", False),
        ("name", 4, _F.TYPE_STRING, _OPTIONAL, "", False),
        ("type", 5, _F.TYPE_INT32, _OPTIONAL, "", False),
        ("blobs", 6, _F.TYPE_MESSAGE, _REPEATED, "BlobProto", False),
    ],
    "LayerParameter": [
        ("name", 1, _F.TYPE_STRING, _OPTIONAL, "", False),
        ("type", 2, _F.TYPE_STRING, _OPTIONAL, "", False),
        ("bottom", 3, _F.TYPE_STRING, _REPEATED, "", False),
        ("loss_weight", 5, _F.TYPE_FLOAT, _REPEATED, "", False),
        ("blobs", 7, _F.TYPE_MESSAGE, _REPEATED, "BlobProto", False),
    ],
    "NetParameter": [
        ("name", 1, _F.TYPE_STRING, _OPTIONAL, "", False),
        ("layers", 2, _F.TYPE_MESSAGE, _REPEATED, "V1LayerParameter", False),
        ("input", 3, _F.TYPE_STRING, _REPEATED, "", False),
        ("input_dim", 4, _F.TYPE_INT32, _REPEATED, "", False),
        ("force_backward", 5, _F.TYPE_BOOL, _OPTIONAL, "", False),
        ("layer", 100, _F.TYPE_MESSAGE, _REPEATED, "LayerParameter", False),
    ],
}


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="frcnn_plugin_test_caffe.proto", package="frcnn_plugin_test_caffe", syntax="proto2"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, label, type_name, packed in fields:
            added = message.field.add(name=field, number=number, type=kind, label=label)
            if type_name:
                added.type_name = f".frcnn_plugin_test_caffe.{type_name}"
            if label == _REPEATED and kind in (_F.TYPE_FLOAT, _F.TYPE_DOUBLE, _F.TYPE_INT64):
                added.options.packed = packed
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"frcnn_plugin_test_caffe.{name}")
        )
        for name in _MESSAGES
    }


_CLASSES = _build()
NetParameter = _CLASSES["NetParameter"]
UnpackedBlobProto = _CLASSES["UnpackedBlobProto"]

"""Caffe's messages for the official protocol buffer runtime, as a second opinion.

Numbers and types of the fields are Caffe's (caffe.proto); only those needed are declared.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_F = descriptor_pb2.FieldDescriptorProto
_OPTIONAL, _REPEATED = _F.LABEL_OPTIONAL, _F.LABEL_REPEATED

# name -> [(field, number, type, label, message type)]
_MESSAGES: dict[str, list[tuple[str, int, int, int, str]]] = {
    "BlobShape": [("dim", 1, _F.TYPE_INT64, _REPEATED, "")],
    "BlobProto": [
        ("num", 1, _F.TYPE_INT32, _OPTIONAL, ""),
        ("channels", 2, _F.TYPE_INT32, _OPTIONAL, ""),
        ("height", 3, _F.TYPE_INT32, _OPTIONAL, ""),
        ("width", 4, _F.TYPE_INT32, _OPTIONAL, ""),
        ("data", 5, _F.TYPE_FLOAT, _REPEATED, ""),
        ("diff", 6, _F.TYPE_FLOAT, _REPEATED, ""),
        ("shape", 7, _F.TYPE_MESSAGE, _OPTIONAL, "BlobShape"),
        ("double_data", 8, _F.TYPE_DOUBLE, _REPEATED, ""),
    ],
    "V0LayerParameter": [("name", 1, _F.TYPE_STRING, _OPTIONAL, "")],
    "V1LayerParameter": [
        ("layer", 1, _F.TYPE_MESSAGE, _OPTIONAL, "V0LayerParameter"),
        ("bottom", 2, _F.TYPE_STRING, _REPEATED, ""),
        ("name", 4, _F.TYPE_STRING, _OPTIONAL, ""),
        ("type", 5, _F.TYPE_INT32, _OPTIONAL, ""),
        ("blobs", 6, _F.TYPE_MESSAGE, _REPEATED, "BlobProto"),
    ],
    "LayerParameter": [
        ("name", 1, _F.TYPE_STRING, _OPTIONAL, ""),
        ("type", 2, _F.TYPE_STRING, _OPTIONAL, ""),
        ("bottom", 3, _F.TYPE_STRING, _REPEATED, ""),
        ("loss_weight", 5, _F.TYPE_FLOAT, _REPEATED, ""),
        ("blobs", 7, _F.TYPE_MESSAGE, _REPEATED, "BlobProto"),
    ],
    "NetParameter": [
        ("name", 1, _F.TYPE_STRING, _OPTIONAL, ""),
        ("layers", 2, _F.TYPE_MESSAGE, _REPEATED, "V1LayerParameter"),
        ("input", 3, _F.TYPE_STRING, _REPEATED, ""),
        ("input_dim", 4, _F.TYPE_INT32, _REPEATED, ""),
        ("force_backward", 5, _F.TYPE_BOOL, _OPTIONAL, ""),
        ("layer", 100, _F.TYPE_MESSAGE, _REPEATED, "LayerParameter"),
    ],
}


def _build(packed: bool) -> Any:
    package = f"frcnn_plugin_test_{'packed' if packed else 'unpacked'}"
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, label, type_name in fields:
            added = message.field.add(name=field, number=number, type=kind, label=label)
            if type_name:
                added.type_name = f".{package}.{type_name}"
            if label == _REPEATED and kind in (_F.TYPE_FLOAT, _F.TYPE_DOUBLE, _F.TYPE_INT64):
                added.options.packed = packed
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.NetParameter"))


NetParameter = _build(packed=True)
# Some writers do not pack numbers; readers have to take both.
UnpackedNetParameter = _build(packed=False)

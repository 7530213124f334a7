"""Files of Caffe networks (``.caffemodel``), without Caffe: protocol buffers of a few messages."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...atomic_files import replacing
from ...errors import UserError

_MOST_BYTES = 2**31 - 1  # a protocol buffer message cannot be larger

# What is needed of caffe.proto, with its numbers: {message: {field: (number, type, repeated)}}.
# "data" and "double_data" are packed floats and doubles there. Here they are bytes, which have the
# same encoding: the runtime would make a Python number of each of 138 million values.
_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "BlobShape": {"dim": (1, "INT64", True)},
    "BlobProto": {
        "num": (1, "INT32", False),
        "channels": (2, "INT32", False),
        "height": (3, "INT32", False),
        "width": (4, "INT32", False),
        "data": (5, "BYTES", True),
        "shape": (7, "BlobShape", False),
        "double_data": (8, "BYTES", True),
    },
    # Few files have a number of their own for each value: see _packed().
    "UnpackedBlobProto": {"data": (5, "FLOAT", True), "double_data": (8, "DOUBLE", True)},
    "V1LayerParameter": {
        "layer": (1, "BYTES", False),  # the format before 2014, in a message of its own
        "name": (4, "BYTES", False),
        "blobs": (6, "BlobProto", True),
    },
    "LayerParameter": {
        "name": (1, "BYTES", False),
        "blobs": (7, "BlobProto", True),
    },
    "NetParameter": {
        "layers": (2, "V1LayerParameter", True),
        "layer": (100, "LayerParameter", True),
    },
}
_LEGACY_SHAPE = ("num", "channels", "height", "width")


def read_caffemodel(path: str | os.PathLike[str]) -> dict[str, list[np.ndarray]]:
    """Read a network, of ``layers`` (V1) or ``layer`` (since 2014) messages.

    Until this returns, the file is in memory twice.

    Returns:
        by layer name, in the file's order, its blobs: weight and, mostly, bias; read-only float32
        arrays in Caffe's shapes, such as (1, 1, 1, N) for a bias in older files. Layers without
        blobs are left out.

    Raises:
        UserError: the file is missing, cut off, or something else; names it.
    """
    from google.protobuf.message import DecodeError

    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no caffemodel {path}")
    content = path.read_bytes()
    if not content:
        raise UserError(f"{path} is empty: copy or download it again")
    start = content[:512]
    try:
        net = _classes()["NetParameter"].FromString(content)
        del content  # the message has a copy
        return _read_net(net)
    except (DecodeError, ValueError) as e:
        raise UserError(
            f"{path} is {_what(start, path.suffix)} ({e}): copy or download it again"
        ) from e


def write_caffemodel(
    path: str | os.PathLike[str], layers: Mapping[str, Sequence[np.ndarray]]
) -> None:
    """Write a network that Caffe's ``--weights`` takes; the file appears only when complete.

    The blobs, by layer name, are in the shapes of the network's prototxt, and written as float32.

    Raises:
        UserError: more than the 2 GiB that a file of this kind can have.
    """
    total = sum(4 * array.size for arrays in layers.values() for array in arrays)
    if total > _MOST_BYTES:
        raise UserError(f"{path} would have {total} bytes; a caffemodel has at most 2 GiB")
    net_type = _classes()["NetParameter"]
    with replacing(path) as temporary, temporary.open("wb") as file:
        for name, arrays in layers.items():
            # Networks written one after another are one network of all their layers. So only one
            # layer at a time is in memory once more.
            net = net_type()
            layer = net.layer.add(name=name.encode())
            for array in arrays:
                blob = layer.blobs.add(data=[np.asarray(array, "<f4").tobytes()])
                blob.shape.dim.extend(array.shape)
            file.write(net.SerializeToString())


@functools.cache
def _classes() -> dict[str, Any]:
    return message_classes(_MESSAGES)


def message_classes(
    messages: Mapping[str, Mapping[str, tuple[int, str, bool]]], *, packed: bool = True
) -> dict[str, Any]:
    """Build protocol buffer classes from a table like :data:`_MESSAGES`.

    If they are ``packed``, repeated numbers share one field. All are to be kept while one is in
    use: protobuf before 4.25 crashes where the class of a part is gone.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
    for message, fields in messages.items():
        added = file.message_type.add(name=message)
        for field, (number, kind, repeated) in fields.items():
            label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            one = added.field.add(name=field, number=number, label=label)
            if kind in messages:
                one.type, one.type_name = kinds.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                one.type = kinds.Type.Value(f"TYPE_{kind}")
                if repeated and kind in ("INT64", "INT32", "FLOAT", "DOUBLE"):
                    one.options.packed = packed
    pool = descriptor_pool.DescriptorPool()  # not the default one, where Caffe's own may be
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}"))
        for name in messages
    }


def _read_net(net: Any) -> dict[str, list[np.ndarray]]:
    layers: dict[str, list[np.ndarray]] = {}
    for layer in itertools.chain(net.layers, net.layer):
        if layer.DESCRIPTOR.name == "V1LayerParameter" and layer.HasField("layer"):
            raise ValueError(
                "it is in the format before 2014; Caffe's upgrade_net_proto_binary converts it"
            )
        name = layer.name.decode()
        if layer.blobs and name in layers:
            raise ValueError(f"two layers '{name}' have weights")
        if layer.blobs:
            layers[name] = [_read_blob(blob) for blob in layer.blobs]
    if not layers:
        raise ValueError("no layer has weights")
    return layers


def _read_blob(blob: Any) -> np.ndarray:
    if not blob.data and not blob.double_data:
        blob = _packed(blob)
    # A writer may split a field; the parts belong together.
    pieces = [np.frombuffer(part, "<f4") for part in blob.data]
    pieces += [np.frombuffer(part, "<f8").astype("<f4") for part in blob.double_data]
    data = pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [np.empty(0, "<f4")])
    if blob.HasField("shape"):
        shape = list(blob.shape.dim[:33])  # more cannot be right: numpy has 32, Caffe too
    elif any(blob.HasField(field) for field in _LEGACY_SHAPE):
        shape = [getattr(blob, field) for field in _LEGACY_SHAPE]
    else:
        return data
    if len(shape) > 32 or min(shape, default=0) < 0 or math.prod(shape) != data.size:
        raise ValueError(f"a blob of shape {shape[:8]} has {data.size} values")
    return data.reshape(shape)


def _packed(blob: Any) -> Any:
    """Return the blob with its values in one piece, where each has a field of its own.

    Such fields are unknown to :data:`_MESSAGES`, and stay in the message as they are; the runtime
    packs them when it writes what it has read as floats.
    """
    unpacked = _classes()["UnpackedBlobProto"].FromString(blob.SerializeToString())
    return type(blob).FromString(unpacked.SerializeToString())


def _what(start: bytes, suffix: str) -> str:
    """Return what a file that cannot be read looks like, judged by its beginning."""
    start = start.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a caffemodel"
    if start.startswith(b"\x89hdf"):
        return "an HDF5 file; only the binary .caffemodel can be read"
    if start.startswith((b"pk\x03\x04", b"\x1f\x8b")):
        return "an archive, not a caffemodel; unpack it"
    if start.startswith((b"name:", b"layer", b"#", b"input")):
        return "a prototxt: a network without weights"
    if start and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in start):
        return "a text file, not one of weights"
    return (
        "damaged, or no caffemodel"
        if suffix == ".caffemodel"
        else "damaged, or neither a file of torch.save nor a caffemodel"
    )

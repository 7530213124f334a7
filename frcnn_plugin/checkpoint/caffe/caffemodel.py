"""Files of Caffe networks (``.caffemodel``), without Caffe."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...atomic_files import replacing
from ...errors import UserError
from . import wire

# Field numbers of Caffe's messages (caffe.proto).
_NET_NAME, _NET_V1_LAYERS, _NET_LAYERS = 1, 2, 100
_NET_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 100}
_V1_V0_LAYER, _V1_NAME, _V1_BLOBS = 1, 4, 6
_NAME, _TYPE, _BLOBS = 1, 2, 7
_BLOB_LEGACY_SHAPE = (1, 2, 3, 4)  # num, channels, height, width
_BLOB_DATA, _BLOB_DIFF, _BLOB_SHAPE, _BLOB_DOUBLE_DATA, _BLOB_DOUBLE_DIFF = 5, 6, 7, 8, 9
_SHAPE_DIM = 1

_MOST_BYTES = 2**31 - 1  # a protocol buffer message cannot be larger


@dataclass(frozen=True)
class CaffeModel:
    """The weights of a Caffe network."""

    name: str
    layers: dict[str, list[np.ndarray]]
    """By layer name, in the file's order, its blobs: weight and, mostly, bias; float32, in Caffe's
    shapes, as (1, 1, 1, N) for a bias in older files. Layers without blobs are left out."""


def read_caffemodel(path: str | os.PathLike[str]) -> CaffeModel:
    """Read a network, of ``layers`` (V1) or ``layer`` (since 2014) messages.

    The arrays are views of the mapped file: writeable, though writing does not change the file,
    and memory is only taken for what is looked at.

    Raises:
        UserError: the file is missing, cut off, or something else; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no caffemodel {path}")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty: copy or download it again")
    with path.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    try:
        return _read_net(view)
    except wire.WireError as e:
        raise UserError(f"{path} is {_what(view)} ({e}): copy or download it again") from e


def write_caffemodel(
    path: str | os.PathLike[str],
    layers: Mapping[str, Sequence[np.ndarray]],
    *,
    name: str = "",
    types: Mapping[str, str] | None = None,
) -> None:
    """Write a network that Caffe's ``--weights`` takes; the file appears only when complete.

    Args:
        path: file.
        layers: by layer name, its blobs; float32, in the shapes of the network's prototxt.
        name: of the network.
        types: by layer name, Caffe's type, such as "Convolution"; Caffe does not need it.

    Raises:
        UserError: more than the 2 GiB that a file of this kind can have.
    """
    types = types or {}
    heads: list[tuple[bytes, list[tuple[bytes, np.ndarray]]]] = []
    total = 0
    for layer, arrays in layers.items():
        blobs = [(_blob_head(array), np.asarray(array, "<f4", order="C")) for array in arrays]
        start = wire.encode_bytes(_NAME, layer.encode())
        start += wire.encode_bytes(_TYPE, types.get(layer, "").encode())
        size = len(start) + sum(len(head) + array.nbytes for head, array in blobs)
        heads.append((wire.encode_bytes(_NET_LAYERS, size) + start, blobs))
        total += size
    if total > _MOST_BYTES:
        raise UserError(f"{path} would have {total} bytes; a caffemodel has at most 2 GiB")
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(wire.encode_bytes(_NET_NAME, name.encode()))
        for start, blobs in heads:
            file.write(start)
            for head, array in blobs:
                file.write(head)
                file.write(array.data)


def _blob_head(array: np.ndarray) -> bytes:
    """All of a layer's blob field but the values."""
    dims = b"".join(wire.encode_varint(n) for n in array.shape)
    shape = wire.encode_bytes(_BLOB_SHAPE, wire.encode_bytes(_SHAPE_DIM, dims))
    data = wire.encode_bytes(_BLOB_DATA, 4 * array.size)
    size = len(shape) + len(data) + 4 * array.size
    return wire.encode_bytes(_BLOBS, size) + shape + data


def _read_net(view: memoryview) -> CaffeModel:
    name, layers = "", {}
    for field in wire.fields(view):
        if field.number not in _NET_FIELDS:
            raise wire.WireError(f"a network has no field {field.number}")
        if field.number == _NET_NAME:
            name = wire.text(field)
        elif field.number in (_NET_LAYERS, _NET_V1_LAYERS):
            layer, blobs = _read_layer(_message(field), v1=field.number == _NET_V1_LAYERS)
            if blobs and layer in layers:
                raise wire.WireError(f"two layers '{layer}' have weights")
            if blobs:
                layers[layer] = blobs
    if not layers:
        raise wire.WireError("no layer has weights")
    return CaffeModel(name, layers)


def _read_layer(message: memoryview, *, v1: bool) -> tuple[str, list[np.ndarray]]:
    name_field, blob_field = (_V1_NAME, _V1_BLOBS) if v1 else (_NAME, _BLOBS)
    name, blobs = "", []
    for field in wire.fields(message):
        if field.number == name_field:
            name = wire.text(field)
        elif field.number == blob_field:
            blobs.append(_read_blob(_message(field)))
        elif v1 and field.number == _V1_V0_LAYER:
            raise wire.WireError(
                "it is in the format before 2014; Caffe's upgrade_net_proto_binary converts it"
            )
    return name, blobs


def _read_blob(message: memoryview) -> np.ndarray:
    pieces: list[np.ndarray] = []
    shape: list[int] | None = None
    legacy = {}
    for field in wire.fields(message):
        if field.number == _BLOB_DATA:
            pieces.append(wire.floats(field))
        elif field.number == _BLOB_DOUBLE_DATA:
            pieces.append(wire.doubles(field).astype("<f4"))
        elif field.number == _BLOB_SHAPE:
            dims = [f for f in wire.fields(_message(field)) if f.number == _SHAPE_DIM]
            shape = [n for dim in dims for n in wire.integers(dim)]
        elif field.number in _BLOB_LEGACY_SHAPE:
            legacy[field.number] = wire.integers(field)[-1]
        elif field.number not in (_BLOB_DIFF, _BLOB_DOUBLE_DIFF):
            raise wire.WireError(f"a blob has no field {field.number}")
    data = pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [np.empty(0, "<f4")])
    if shape is None and legacy:
        shape = [legacy.get(number, 0) for number in _BLOB_LEGACY_SHAPE]
    if shape is None:
        return data
    if len(shape) > 32 or math.prod(shape) != data.size:
        raise wire.WireError(f"a blob of shape {shape[:8]} has {data.size} values")
    return data.reshape(shape)


def _message(field: wire.Field) -> memoryview:
    if isinstance(field.value, int) or field.kind != wire.BYTES:
        raise wire.WireError(f"field {field.number} is no message")
    return field.value


def _what(view: memoryview) -> str:
    """What a file that cannot be read looks like."""
    start = bytes(view[:512]).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a caffemodel"
    if start.startswith(b"\x89hdf"):
        return "an HDF5 file; only the binary .caffemodel can be read"
    if start.startswith((b"pk\x03\x04", b"\x1f\x8b")):
        return "an archive, not a caffemodel; unpack it"
    if start.startswith((b"name:", b"layer", b"#", b"input")):
        return "a prototxt: a network without weights"
    return "damaged, or no caffemodel"

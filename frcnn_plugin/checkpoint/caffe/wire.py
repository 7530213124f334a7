"""Reading and writing protocol buffer messages without holding them in memory twice.

Caffe stores networks as protocol buffers. The official runtime copies a message when it parses it
and once more when its floats become an array; of the 553 MB of VGG16 one message has 411 MB. So
the few rules of the encoding that are needed are here (protobuf.dev, "Encoding"), on views of a
mapped file; the tests compare with the official runtime, which is not needed otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# More fields than any message of a network has: a message of Caffe has about 150 kinds of fields.
_MOST_FIELDS = 100_000


class WireError(ValueError):
    """The bytes are no protocol buffer message."""


class Field(NamedTuple):
    """One field of a message."""

    number: int
    kind: int
    """VARINT, FIXED64, BYTES or FIXED32."""
    value: int | memoryview
    """An int if VARINT, otherwise the bytes; those of a run of FIXED32 fields with tags between."""


def fields(message: memoryview) -> Iterator[Field]:
    """Fields of a message in their order; a run of equal FIXED32 tags below 16 comes as one.

    Args:
        message: bytes, not copied.

    Raises:
        WireError: the bytes are cut off, or no message.
    """
    position, count = 0, 0
    while position < len(message):
        count += 1
        if count > _MOST_FIELDS:
            raise WireError(f"more than {_MOST_FIELDS} fields")
        start = position
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise WireError("field number 0")
        if kind == VARINT:
            value, position = _varint(message, position)
            yield Field(number, kind, value)
            continue
        if kind == FIXED32 and position == start + 1:
            position = _end_of_run(message, start)
            yield Field(number, kind, message[start:position])
            continue
        size = {FIXED64: 8, FIXED32: 4}.get(kind)
        if kind == BYTES:
            size, position = _varint(message, position)
        if size is None:
            raise WireError(f"field {number} is of the unknown kind {kind}")
        if size > len(message) - position:
            raise WireError(
                f"field {number} has {size} bytes, but only {len(message) - position} are left"
            )
        yield Field(number, kind, message[position : position + size])
        position += size


def floats(field: Field) -> np.ndarray:
    """The float32 values of a packed field, or of a run of unpacked ones.

    Args:
        field: BYTES or FIXED32.

    Returns:
        1-D; of a packed field a view of its bytes.

    Raises:
        WireError: the field holds no whole number of floats.
    """
    if isinstance(field.value, int) or field.kind not in (BYTES, FIXED32):
        raise WireError(f"field {field.number} holds no floats")
    if field.kind == FIXED32:
        rows = np.frombuffer(field.value, np.uint8).reshape(-1, 5)
        return np.ascontiguousarray(rows[:, 1:]).view("<f4").reshape(-1)
    return _view(field, "<f4")


def doubles(field: Field) -> np.ndarray:
    """The float64 values of a packed field, or the one of an unpacked field; 1-D, a view.

    Raises:
        WireError: the field holds no whole number of them.
    """
    if isinstance(field.value, int) or field.kind not in (BYTES, FIXED64):
        raise WireError(f"field {field.number} holds no doubles")
    return _view(field, "<f8")


def integers(field: Field) -> list[int]:
    """The integers of a packed field, or the one of an unpacked field.

    Raises:
        WireError: the field holds something else.
    """
    if isinstance(field.value, int):
        return [field.value]
    if field.kind != BYTES:
        raise WireError(f"field {field.number} holds no integers")
    values: list[int] = []
    position = 0
    while position < len(field.value):
        if len(values) >= _MOST_FIELDS:
            raise WireError(f"field {field.number} has more than {_MOST_FIELDS} integers")
        value, position = _varint(field.value, position)
        values.append(value)
    return values


def text(field: Field) -> str:
    """The string of a field.

    Raises:
        WireError: it is none.
    """
    if isinstance(field.value, int) or field.kind != BYTES:
        raise WireError(f"field {field.number} holds no text")
    try:
        return bytes(field.value).decode()
    except UnicodeDecodeError as e:
        raise WireError(f"field {field.number} holds no text") from e


def encode_varint(value: int) -> bytes:
    """Bytes of a non-negative integer."""
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def encode_bytes(number: int, payload: bytes | int) -> bytes:
    """A BYTES field; given a length instead of the payload, only what comes before the payload."""
    size = payload if isinstance(payload, int) else len(payload)
    head = encode_varint(number << 3 | BYTES) + encode_varint(size)
    return head if isinstance(payload, int) else head + payload


def _view(field: Field, dtype: str) -> np.ndarray:
    assert isinstance(field.value, memoryview)
    size = np.dtype(dtype).itemsize
    if len(field.value) % size:
        raise WireError(f"field {field.number} has {len(field.value)} bytes, no multiple of {size}")
    return np.frombuffer(field.value, dtype)


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The integer at ``position`` and the position behind it."""
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise WireError("cut off")
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFFFFFFFFFFFFFF, position
    raise WireError("an integer of more than 10 bytes")


def _end_of_run(message: memoryview, start: int) -> int:
    """End of the fields of 1 + 4 bytes from ``start`` on that have the same tag."""
    tags = np.frombuffer(message, np.uint8)[start:][: (len(message) - start) // 5 * 5 : 5]
    if not len(tags):
        raise WireError("cut off")
    # In growing pieces, as looking at all that is left would be quadratic for many short runs.
    done, piece = 1, 16
    while done < len(tags):
        differs = tags[done : done + piece] != tags[0]
        if differs.any():
            done += int(differs.argmax())
            break
        done, piece = min(done + piece, len(tags)), piece * 4
    return start + 5 * done

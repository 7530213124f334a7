"""The encoding of protocol buffers; byte strings are worked out by hand from its specification."""

from __future__ import annotations

import numpy as np
import pytest

from frcnn_plugin.checkpoint.caffe import wire


def read(*parts: bytes) -> list[wire.Field]:
    return list(wire.fields(memoryview(b"".join(parts))))


def test_every_kind() -> None:
    """Field 1 = 300, 2 = eight bytes, 3 = "ab", 16 (two bytes of tag) = four bytes."""
    found = read(b"\x08\xac\x02", b"\x11" + bytes(8), b"\x1a\x02ab", b"\x85\x01" + b"wxyz")
    assert [(f.number, f.kind) for f in found] == [(1, 0), (2, 1), (3, 2), (16, 5)]
    assert found[0].value == 300
    assert [bytes(f.value) for f in found[1:]] == [bytes(8), b"ab", b"wxyz"]


def test_run_of_unpacked_floats_is_one_field() -> None:
    values = np.array([1.5, -2.0, 3.25], "<f4")
    unpacked = b"".join(b"\x2d" + value.tobytes() for value in values)
    run, last = read(unpacked, b"\x08\x01")
    assert wire.floats(run).tolist() == [1.5, -2.0, 3.25]
    assert (last.number, last.value) == (1, 1)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 79, 80, 81, 400])
def test_runs_of_every_length_end_where_they_do(length: int) -> None:
    """Around the sizes of the pieces a run is looked at in, 16, 64, ..."""
    values = np.arange(length, dtype="<f4")
    unpacked = b"".join(b"\x2d" + value.tobytes() for value in values)
    fields = read(unpacked, b"\x35" + bytes(4), b"\x2d" + bytes(4))
    assert [f.number for f in fields] == [5, 6, 5]
    assert wire.floats(fields[0]).tolist() == values.tolist()


def test_packed_floats_are_not_copied() -> None:
    data = bytearray(b"\x2a\x08" + np.array([1.0, 2.0], "<f4").tobytes())
    (field,) = wire.fields(memoryview(data))
    values = wire.floats(field)
    data[2:6] = np.array([7.0], "<f4").tobytes()
    assert values.tolist() == [7.0, 2.0]


def test_packed_integers() -> None:
    (field,) = read(b"\x0a\x03\x05\xac\x02")
    assert wire.integers(field) == [5, 300]


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31 - 1, 2**63])
def test_varint_round_trip(value: int) -> None:
    (field,) = read(b"\x08", wire.encode_varint(value))
    assert field.value == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x08", "cut off"),
        (b"\x08\xff", "cut off"),
        (b"\x08" + b"\xff" * 10, "more than 10 bytes"),
        (b"\x00\x01", "field number 0"),
        (b"\x0b", "field 1 is of the unknown kind 3"),
        (b"\x1a\x05ab", "field 3 has 5 bytes, but only 2 are left"),
        (b"\x11" + bytes(7), "field 2 has 8 bytes, but only 7 are left"),
        (b"\x2d" + bytes(3), "cut off"),
        (b"\x85\x01" + bytes(3), "field 16 has 4 bytes, but only 3 are left"),
        (b"\x08\x01" * 100_001, "more than 100000 fields"),
    ],
)
def test_damage(data: bytes, message: str) -> None:
    with pytest.raises(wire.WireError, match=message):
        read(data)


@pytest.mark.parametrize(
    ("data", "reader"),
    [
        (b"\x2a\x03abc", wire.floats),
        (b"\x28\x01", wire.floats),
        (b"\x29" + bytes(8), wire.floats),
        (b"\x2a\x04abcd", wire.doubles),
        (b"\x2d" + bytes(4), wire.doubles),
        (b"\x2d" + bytes(4), wire.integers),
        (b"\x28\x01", wire.text),
        (b"\x2a\x02\xff\xfe", wire.text),
        (b"\x0a\x01\x80", wire.integers),
    ],
)
def test_field_of_another_type(data: bytes, reader) -> None:
    (field,) = read(data)
    with pytest.raises(wire.WireError):
        reader(field)

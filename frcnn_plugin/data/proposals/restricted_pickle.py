"""Reading pickle files that come from elsewhere: nothing in them is executed.

Neither is numpy asked to restore its own objects from what the file says, as that can crash on a
damaged one: the file's arrays become stand-ins first, which are then looked at and converted.
"""

import pickle
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np

_PLAIN_TYPE = re.compile(r"[|<>=]?([biufSU]\d+|\?)")  # numbers, bytes and text of a fixed size


def load_restricted(file: IO[bytes]) -> Any:
    """Unpickle plain Python values and numpy arrays.

    Files of Detectron (Python 2), of either numpy series and of all pickle protocols can be read.

    Args:
        file: open for binary reading.

    Returns:
        The object. A ``BoxMode`` comes as its number, an array of objects as a list.

    Raises:
        pickle.UnpicklingError: if the file asks for anything else.
        Exception: of almost any type, from a damaged file.
    """
    return _convert(_Unpickler(file, encoding="latin1").load())


class _DType:
    """Stands in for a ``numpy.dtype``."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name
        self.byte_order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1]

    def build(self) -> np.dtype:
        name = self.name if self.name[0] in "|<>=" else self.byte_order + self.name
        if not _PLAIN_TYPE.fullmatch(name):
            raise pickle.UnpicklingError(f"it contains an array of type {name}")
        return np.dtype(name)


class _NDArray:
    """Stands in for the type ``numpy.ndarray``, which is only ever named."""


class _Array:
    """Stands in for an array."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def build(self) -> Any:
        _, shape, dtype, is_fortran, data = self.state
        if dtype.name.lstrip("|").startswith("O"):
            if not isinstance(data, list) or shape != (len(data),):
                raise pickle.UnpicklingError(
                    "it contains an array of objects of several dimensions"
                )
            return _convert(data)
        return _from_buffer(data, dtype, shape, "F" if is_fortran else "C")


def _from_buffer(data: Any, dtype: _DType, shape: Any, order: Any) -> np.ndarray:
    """An array; this is also how protocol 5 writes one."""
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    return np.frombuffer(data, dtype=dtype.build()).reshape(shape, order=order)


def _scalar(dtype: _DType, data: Any) -> Any:
    """A number or text of numpy's, such as an image id that it read from a text file."""
    return _from_buffer(data, dtype, (1,), "C").item()


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocols 0 to 2 write them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it contains bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _convert(value: Any) -> Any:
    """Replace the stand-ins in nested lists, tuples and dicts."""
    if isinstance(value, _Array):
        return value.build()
    if isinstance(value, dict):
        return {_convert(key): _convert(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_convert(item) for item in value]
    return value


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("detectron2.structures.boxes", "BoxMode"): int,
}
for _package in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _ALLOWED[f"{_package}.multiarray", "_reconstruct"] = _Array
    _ALLOWED[f"{_package}.multiarray", "scalar"] = _scalar
    _ALLOWED[f"{_package}.numeric", "_frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it contains {module}.{name}") from None

"""Read pickles of numbers, texts and arrays, and MATLAB's files; nothing in them is executed.

Detectron2 opens weights (``.pkl``) and proposals with ``pickle.load``, which runs whatever code the
file names. A leaf: weights and proposals are read with it.
"""

from __future__ import annotations

import collections
import importlib
import mmap
import os
import pickle
import pickletools
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError

_PLAIN_TYPE = re.compile(r"[|<>=]?([biufSU]\d+|\?)")  # numbers, bytes and text of a fixed size


def load_plain(path: str | os.PathLike[str]) -> Any:
    """Read a pickle of any protocol, of Python 2 or 3 and of either numpy series.

    Memory stays in proportion to the file.

    Returns:
        Its dictionaries, lists, numbers and texts; tuples become lists, and arrays are read-only.

    Raises:
        OSError: the file cannot be read.
        Exception: the file is damaged, or contains something else; any exception, as a damaged
            pickle raises whatever its bytes happen to say.
    """
    with open(path, "rb") as file:
        _check_memo(file.fileno())
        return _in_plain(_Unpickler(file, encoding="latin1").load(), {})


# How an opcode's argument is stored, where that is not a fixed number of bytes.
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_ARGUMENTS = [0] * 256  # by the opcode's byte: as many bytes, or one of pickletools' negative codes
for _opcode in pickletools.opcodes:
    _ARGUMENTS[ord(_opcode.code)] = _opcode.arg.n if _opcode.arg else 0
_PUT, _LONG_PUT, _STOP = (ord(code) for code in "pr.")
_ARGUMENTS[_LONG_PUT] = _ARGUMENTS[_STOP] = -100  # looked at
_TWO_LINES = (ord("c"), ord("i"))  # GLOBAL and INST


def _check_memo(file: int) -> None:
    """Refuse numbers of memo entries that are larger than the file.

    The unpickler makes room for as many entries as the largest number says: nine bytes can ask for
    eight gigabytes.
    """
    arguments = _ARGUMENTS
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as data:
        size, place = len(data), 0
        while place < size:
            code = data[place]
            argument = arguments[code]
            place += 1
            number = 0
            if argument >= 0:
                place += argument
                continue
            if code == _STOP:
                return
            if code == _LONG_PUT:
                number = int.from_bytes(data[place : place + 4], "little")
                place += 4
            elif argument == pickletools.UP_TO_NEWLINE:
                start = place
                for _ in range(2 if code in _TWO_LINES else 1):
                    place = data.find(b"\n", place) + 1 or size
                if code == _PUT:
                    number = int(data[start:place])
            else:
                width = _LENGTH_BYTES[argument]
                place += width + int.from_bytes(data[place : place + width], "little")
            if number > size:
                raise pickle.UnpicklingError("it refers to more entries than it has")


class _Unpickler(pickle.Unpickler):
    """Give a file the few classes and functions that plain content needs, and no other.

    numpy's own are among them only as stand-ins: numpy restores its types from what the file says
    without a check, and a damaged file crashes the process. What the stand-ins hold is looked at
    when they are made into arrays.
    """

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module.replace("numpy._core.", "numpy.core."), name]  # numpy 2, numpy 1
        except KeyError:
            raise pickle.UnpicklingError(f"it contains {module}.{name}") from None


class _DType:
    def __init__(self, name: str, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.name = state[1] + self.name  # the order of the bytes, as in "<f4"


class _Array:
    def __init__(self, *_: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


def _from_buffer(data: Any, dtype: _DType, shape: Any, order: Any) -> Any:
    """Make an array of what its stand-in holds; this is also how protocol 5 writes one."""
    if dtype.name.lstrip("|").startswith("O"):
        if not isinstance(data, list) or shape != (len(data),):
            raise pickle.UnpicklingError("it contains an array of objects of several dimensions")
        return data
    if not _PLAIN_TYPE.fullmatch(dtype.name):
        raise pickle.UnpicklingError(f"it contains an array of type {dtype.name}")
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    return np.frombuffer(data, dtype=np.dtype(dtype.name)).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    """Make bytes as protocols 0 to 2 write them."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it contains bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    # A number or a text that numpy read from a text file.
    ("numpy.core.multiarray", "scalar"): lambda dtype, data: _from_buffer(
        data, dtype, (1,), "C"
    ).item(),
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",  # without arguments: a number would ask for memory
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("detectron2.structures.boxes", "BoxMode"): int,
}


def _in_plain(value: Any, made: dict[int, Any]) -> Any:
    """Replace the stand-ins in nested lists, tuples and dicts.

    What occurs several times is made once: a few bytes may nest a list ten times in a list that is
    ten times in a list. ``made`` has what was made, by the id of its source.
    """
    if not isinstance(value, _Array | dict | list | tuple):
        return value
    if id(value) not in made:
        made[id(value)] = None  # if it contains itself
        if isinstance(value, _Array):
            _, shape, dtype, is_fortran, data = value.state
            array = _from_buffer(data, dtype, shape, "F" if is_fortran else "C")
            result = _in_plain(array, made) if isinstance(array, list) else array
        elif isinstance(value, dict):
            result = {key: _in_plain(item, made) for key, item in value.items()}
        else:
            result = [_in_plain(item, made) for item in value]
        made[id(value)] = result
    return made[id(value)]


_LOADMAT = (
    "import pickle, sys; from scipy.io import loadmat; "
    "pickle.dump(loadmat(sys.argv[1]), sys.stdout.buffer)"
)


def load_mat(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read the variables of a MATLAB file, of version 5 to 7.2, in a process of its own.

    Raises:
        UserError: without scipy; for a missing or damaged file, or one of version 7.3.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}")
    try:
        # By name: the package does without scipy, and its types are not among the requirements.
        importlib.import_module("scipy.io")
    except ImportError as error:
        raise UserError(
            "reading .mat files needs scipy: pip install 'frcnn-plugin[proposals]', or "
            "pip install scipy"
        ) from error
    # In a process of its own, which a damaged file ends: scipy reads beyond its memory.
    done = subprocess.run([sys.executable, "-c", _LOADMAT, path], capture_output=True, check=False)
    problem = (done.stderr.decode(errors="replace").strip() or "scipy fails").splitlines()[-1]
    if problem.startswith("NotImplementedError"):
        raise UserError(
            f"{path} is in MATLAB's 7.3 format; save it again in MATLAB with save(..., '-v7')"
        )
    if done.returncode:
        raise UserError(f"{path} is damaged, or not a MATLAB file: {problem}")
    content: dict[str, Any] = pickle.loads(done.stdout)  # which our process has written
    return content

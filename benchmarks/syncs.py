"""Operators that make a CPU wait for a GPU, counted on any device.

Such an operator needs a value on the CPU, mostly because the size of its result depends on the
data. It can be counted without a GPU, as PyTorch's dispatcher sees it on CPU tensors as well. What
only copies, ``tolist()`` and its like, or a tensor made of Python numbers on the model's device, is
seen one level higher, where Python calls it. Not seen: copies of the images to the GPU, one each.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import detectron2
import torch
import torchvision
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import frcnn_plugin
from frcnn_plugin.layers import nms as suppression

# Operators whose result, or its size, has to be known to the CPU.
_OPERATORS = {
    "aten::_local_scalar_dense",  # item(), bool(), int(), float()
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::equal",
    "torchvision::nms",
}
# Indexing does so if an index is a mask.
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_COPIES = {
    torch.Tensor.tolist: "tolist",
    torch.Tensor.numpy: "numpy",
    torch.Tensor.__array__: "numpy",
    torch.Tensor.cpu: "cpu",
}
# Copied from the CPU; counted on its own, as the GPU has nothing to finish for it.
FROM_NUMBERS = "from numbers"
# The first works on the sizes of the images, which are on the CPU anyway; the second runs on CPUs
# only.
_ON_CPU = ("detectron2/structures/image_list.py", "frcnn_plugin/layers/roi_max_pool.py")
# They stand for their callers.
_TRANSPARENT = ("/torchvision/_autograd_registrations.py", "/detectron2/layers/wrappers.py")
# Not by the name alone: people clone this repository into a folder that is called frcnn_plugin.
_FOLDERS = {
    f"{Path(str(package.__file__)).parent.as_posix()}/": package.__name__
    for package in (frcnn_plugin, detectron2, torchvision)
}

Syncs = Counter[tuple[str, str]]


def _source() -> str:
    """Return the innermost line of Python in one of the packages; else the caller's.

    Backward runs without Python of its own and is called from the contender.
    """
    frame: FrameType | None = sys._getframe(2)
    fallback = ""
    while frame is not None:
        path = frame.f_code.co_filename
        if "/torch/" not in path and path != __file__ and not path.endswith(_TRANSPARENT):
            if path.endswith("/benchmarks/contenders.py"):
                return "backward"
            for folder, package in _FOLDERS.items():
                if path.startswith(folder):
                    return f"{package}/{path.removeprefix(folder)}:{frame.f_lineno}"
            fallback = fallback or f"{path.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return fallback


def _masks(index: Any, values: torch.Tensor | None = None) -> bool:
    """Tell whether an index is a mask; to put one number at a mask is to fill: no wait."""
    tensors = index if isinstance(index, list | tuple) else (index,)
    fills = values is not None and values.numel() == 1
    return not fills and any(
        isinstance(t, torch.Tensor) and t.dtype in (torch.bool, torch.uint8) for t in tensors
    )


class _Counting:
    def __init__(self, counts: Syncs) -> None:
        super().__init__()
        self._counts = counts


class _Operators(_Counting, TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name
        waits = name in _OPERATORS or (name in _INDEXING and _masks(*args[1:3]))
        # Without output_size the repeats have to be summed.
        waits |= name == "aten::repeat_interleave" and not (kwargs or {}).get("output_size")
        if waits and not (source := _source()).startswith(_ON_CPU):
            self._counts[name.partition("::")[2].strip("_"), source] += 1
        return func(*args, **(kwargs or {}))


def _from_numbers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return whether a tensor is made of Python numbers on a device that may be a GPU."""
    if func is torch.Tensor.new_tensor:
        return True
    if func not in (torch.tensor, torch.as_tensor):
        return False
    data = args[0] if args else kwargs.get("data")
    # Without a device, it is on the CPU; to copy a tensor that is on the device takes no waiting.
    return kwargs.get("device") not in (None, "cpu") and not isinstance(data, torch.Tensor)


class _Copies(_Counting, TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # A device given as an object may be the model's own: only the word says "to the CPU".
        to_cpu = func is torch.Tensor.to and "cpu" in [
            *(a for a in args[1:] if isinstance(a, str)),
            *(v for v in (kwargs or {}).values() if isinstance(v, str)),
        ]
        name = "to cpu" if to_cpu else _COPIES.get(func)
        if _from_numbers(func, args, kwargs or {}):
            name = FROM_NUMBERS
        if name:
            self._counts[name, _source()] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _nms_as_on_a_gpu() -> Iterator[None]:
    """Suppress in one call, as on GPUs up to 25000 boxes.

    On CPUs, torchvision calls the operator class by class from 1000 boxes on, and the plugin piece
    by piece; both would be counted.
    """
    boxes: Any = torchvision.ops.boxes
    whole = mock.patch.object(boxes, "_batched_nms_vanilla", boxes._batched_nms_coordinate_trick)
    with whole, mock.patch.object(suppression, "_in_pieces", lambda boxes: False):
        yield


def count_syncs(run: Callable[[], object]) -> Syncs:
    """Return counts of (operator, "package/file.py:line") in one run."""
    counts: Syncs = Counter()
    with _nms_as_on_a_gpu(), _Copies(counts), _Operators(counts):
        run()
    return counts


Row = tuple[int, str, str]


def totals(rows: Iterable[Row]) -> tuple[int, int]:
    """Return how many operators need a value of the GPU's, and how many copy Python numbers in."""
    rows = list(rows)
    numbers = sum(n for n, operator, _ in rows if operator == FROM_NUMBERS)
    return sum(n for n, _, _ in rows) - numbers, numbers


def sync_rows(counts: Mapping[tuple[str, str], int]) -> list[Row]:
    """Return (count, operator, line), the most frequent first."""
    return sorted(
        ((n, op, line) for (op, line), n in counts.items()), key=lambda r: (-r[0], r[2], r[1])
    )

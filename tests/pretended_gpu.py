"""A pretended GPU: tensors that say they are on cuda:0, whose numbers are on the CPU.

CUDA code runs on them, line by line, and stops where it would stop on a GPU: where an operator is
given tensors of both sides, or numpy one of the GPU's. What the CPU would wait for is collected.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
# The CPU waits for their result, or for its size.
_WAITS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim"),
    *("unique_consecutive", "bincount", "equal", "nms"),
}
# These take tensors of both sides; all others take scalars of the CPU at most.
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}

# What waits: an operator, or "to gpu" and "to cpu"; and the file and line.
Waits = list[tuple[str, str]]


class GpuTensor(torch.Tensor):
    """One that is on the GPU, as far as Python sees."""

    inner: Any  # the same on the CPU
    device: Any = property(lambda self: GPU)
    is_cuda: Any = property(lambda self: True)
    is_cpu: Any = property(lambda self: False)

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
        )

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {}, [])

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)  # what is saved is loaded onto the CPU

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"GpuTensor({self.inner!r})"


def _source() -> str:
    frame: Any = sys._getframe(1)
    while "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-3:])}:{frame.f_lineno}"


def _run(func: Any, args: Any, kwargs: dict[str, Any], waits: Waits) -> Any:
    name = func._schema.name.partition("::")[2]
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    ours = [t for t in tensors if isinstance(t, GpuTensor)]
    others = [t for t in tensors if not isinstance(t, GpuTensor)]
    if ours and any(t.dim() for t in others) and name not in _INDEXING and name != "copy_":
        raise RuntimeError(f"{name}: tensors of the GPU and of the CPU, {_source()}")
    crosses = name == "copy_" and len(ours) == 1
    fills = len(args) > 2 and name in _INDEXING and args[2].numel() == 1  # never waits
    masked = (
        name in _INDEXING
        and not fills
        and any(
            t.dtype in (torch.bool, torch.uint8) or not isinstance(t, GpuTensor)
            for t in args[1]
            if t is not None
        )
    )
    summed = name == "repeat_interleave" and not kwargs.get("output_size")
    if ours and (name in _WAITS or crosses or masked or summed):
        waits.append((name.strip("_"), _source()))
    plain_args, plain_kwargs = tree_map(
        lambda t: t.inner if isinstance(t, GpuTensor) else t, (args, kwargs)
    )
    out = func(*plain_args, **plain_kwargs)
    if not ours or (name == "copy_" and not isinstance(args[0], GpuTensor)):
        return out
    out = tree_map(lambda t: GpuTensor(t) if isinstance(t, torch.Tensor) else t, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


class _Operators(TorchDispatchMode):
    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.waits)


class _ToGpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> Any:
        return GpuTensor(x.detach().clone())

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad.inner


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.inner.detach().clone()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return GpuTensor(grad)


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class _Functions(TorchFunctionMode):
    """What Python asks of torch: moves between the sides, and tensors made on the GPU."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def _move(self, x: torch.Tensor, device: Any) -> torch.Tensor:
        if _is_gpu(device) == isinstance(x, GpuTensor):
            return x
        self.waits.append(("to gpu" if _is_gpu(device) else "to cpu", _source()))
        moved: torch.Tensor = (_ToGpu if _is_gpu(device) else _ToCpu).apply(x)
        return moved

    def _to(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        for value in args:
            if isinstance(value, torch.Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, str | torch.device):
                device = value
        x = x if device is None else self._move(x, device)
        kept = {k: v for k, v in kwargs.items() if k in ("memory_format", "copy")}
        return x.to(dtype or x.dtype, **kept)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.cpu, torch.Tensor.cuda):
            return self._move(args[0], func.__name__)
        if func is torch.Tensor.to:
            return self._to(*args, **kwargs)
        if func is torch.Tensor.new_tensor and isinstance(args[0], GpuTensor):
            return self._move(torch.tensor(args[1], dtype=args[0].dtype), GPU)
        if func is torch.Tensor.pin_memory:
            return args[0]
        if not _is_gpu(kwargs.get("device")):
            return func(*args, **kwargs)
        made = func(*args, **{**kwargs, "device": "cpu"})
        if func in (torch.tensor, torch.as_tensor):  # numbers of the CPU's
            return self._move(made, GPU)
        return made if isinstance(made, GpuTensor) else GpuTensor(made)


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


@contextmanager
def pretended_gpu() -> Iterator[Waits]:
    """Let there be a GPU in the ``with`` block; yields what has waited for it so far."""
    waits: Waits = []
    swap = torch.__future__.set_overwrite_module_params_on_conversion
    with ExitStack() as stack:
        for module, name, value in (
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "synchronize", lambda device=None: None),
            (torch, "autocast", _Autocast),
            (torch.cuda.amp, "autocast", partial(_Autocast, "cuda")),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        stack.callback(swap, torch.__future__.get_overwrite_module_params_on_conversion())
        swap(True)  # a module's parameters become tensors of another class
        stack.enter_context(_Operators(waits))
        stack.enter_context(_Functions(waits))
        yield waits

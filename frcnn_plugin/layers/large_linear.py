"""A fully connected layer whose weight is hundreds of megabytes, for CPUs: fc6 has 411."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .packed import PackedLayer, is_traced

_PART = 512  # outputs that are computed at a time without a gradient
_MIN_BYTES = 2**25  # of a weight; for less, the C library keeps the memory

_MADV_HUGEPAGE = 14  # sys/mman.h of Linux; Python's mmap has it for its own mappings only


class LargeLinear(PackedLayer, nn.Linear):
    """``nn.Linear`` that needs less memory and fewer page faults on CPUs.

    Without a gradient it is computed in parts: at each call, torch copies the weight to a layout
    that suits the CPU, and in mixed precision to another dtype; a copy of the whole weight would be
    the peak memory of inference.

    In training, memory for the weight's gradient comes from the system in huge pages: it is mapped
    anew in every iteration, and 100,000 page faults of 4 KiB take longer than computing it.

    In mixed precision without a gradient, with matrix units (AMX), the weight is kept in packed
    form.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (R, in) to (R, out), with the numbers and the dtype of ``nn.Linear``."""
        if self.bias is None or x.device.type != "cpu" or x.dim() != 2:
            return super().forward(x)
        if is_traced():
            return super().forward(x)
        if torch.is_grad_enabled():
            large = self.weight.numel() * self.weight.element_size() >= _MIN_BYTES
            if not (large and self.weight.requires_grad):
                return super().forward(x)
            return _Linear.apply(x, self.weight, self.bias)
        if self._packed.serves(self, x):
            return self._packed.multiply(self, x)
        parts = len(self.weight) // _PART
        if parts < 2:
            return super().forward(x)
        weights, biases = self.weight.chunk(parts), self.bias.chunk(parts)
        return torch.cat([F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)], dim=1)


class _Linear(torch.autograd.Function):
    """``F.linear`` and its gradients, with autocast's dtypes where it is on."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        ctx.dtype = x.dtype
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, bias = x.to(dtype), bias.to(dtype)
        used = weight.to(x.dtype)
        ctx.save_for_backward(x, used, weight)
        with torch.autocast("cpu", enabled=False):
            return F.linear(x, used, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, used, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        grad_weight = None
        if of_weight:
            grad_weight = empty_in_huge_pages(weight)
            if x.dtype == weight.dtype:
                torch.mm(grad.t(), x, out=grad_weight)
            else:
                grad_weight.copy_(grad.t() @ x)
        return (
            (grad @ used).to(ctx.dtype) if of_x else None,
            grad_weight,
            grad.sum(0).to(weight.dtype) if of_bias else None,
        )


def empty_in_huge_pages(like: torch.Tensor) -> torch.Tensor:
    """Call ``torch.empty_like`` and, on Linux, ask for huge pages."""
    result = torch.empty_like(like, memory_format=torch.contiguous_format)
    if sys.platform.startswith("linux"):
        start = -(-result.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = result.data_ptr() + result.numel() * result.element_size() - start
        # Only advice: if the system does not follow it, nothing is lost.
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(start), ctypes.c_size_t(max(0, size)), _MADV_HUGEPAGE
        )
    return result

"""Settings of a whole process that make PyTorch faster on CPUs and leave results as they are.

The tools apply them to their own processes. Importing the package changes nothing, so a host
program decides for itself; it may call :func:`tune_process`.
"""

from __future__ import annotations

import ctypes
import logging
import sys

import torch

logger = logging.getLogger(__name__)

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def tune_process() -> None:
    """Set up this process for computing on the CPU; call it before the first large tensor.

    - :func:`keep_freed_memory`
    - :func:`use_faster_matmul`
    """
    keep_freed_memory()
    use_faster_matmul()


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory instead of returning it to the system.

    Feature maps are so large that glibc maps each anew and unmaps it at once; the kernel then
    clears every page again, a fifth of the time of a forward pass. The process keeps its peak
    memory, which it needs in the next iteration anyway. (The gradient of fc6 is larger still: see
    :class:`~frcnn_plugin.modeling.large_linear.LargeLinear`.)

    Returns:
        whether there was something to set: only with glibc, on Linux.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**28) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def use_faster_matmul() -> bool:
    """Multiply float32 matrices with oneDNN instead of MKL, if the products stay as exact.

    ``torch.set_float32_matmul_precision("medium")`` asks for it, for the whole process; it also
    allows rounding to bfloat16, which oneDNN does only on CPUs with matrix units (AMX). Whether it
    does is tried; if so, or with CUDA, which rounds too, nothing is changed.

    Returns:
        whether oneDNN is used from now on.
    """
    if torch.cuda.is_available():
        return False
    before = torch.get_float32_matmul_precision()
    a = torch.linspace(-1, 1, 256 * 256).sin().view(256, 256)
    exact = a.double() @ a.double().t()
    torch.set_float32_matmul_precision("medium")
    if ((a @ a.t()).double() - exact).abs().max() > 1e-5 * exact.abs().max():
        torch.set_float32_matmul_precision(before)
        return False
    return True

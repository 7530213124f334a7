"""Processes: starting several, sharing a model between them, and settings that make one faster.

The commands apply the settings to their own processes. Importing the package changes nothing, so a
larger program decides for itself; it may call :func:`tune_process`.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import create_ddp_model
from detectron2.engine import launch as host_launch
from detectron2.utils import comm
from torch import nn
from torch.multiprocessing import ProcessRaisedException
from torch.nn.parallel import DistributedDataParallel

from .errors import UserError

logger = logging.getLogger(__name__)

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def launch(
    main: Callable[..., Any],
    num_processes: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple[Any, ...] = (),
) -> Any:
    """The host's launcher, with workers that end cleanly.

    Without CUDA the processes run on the CPU and talk over gloo. There, torch aborts a worker at
    exit, at random, while the host's cached process groups are alive; so the groups are taken
    down when ``main`` returns.

    Args:
        main: function every process runs; picklable.
        num_processes: processes on this machine (one per GPU).
        num_machines: machines.
        machine_rank: rank of this one.
        dist_url: where the processes meet, as for the host.
        args: arguments of ``main``.

    Returns:
        what ``main`` returns if there is a single process, else None.

    Raises:
        UserError: a process raised it.
    """
    if num_machines * num_processes == 1:
        return main(*args)  # the host drops the result
    try:
        return host_launch(
            _run_and_shut_down,
            num_processes,
            num_machines=num_machines,
            machine_rank=machine_rank,
            dist_url=dist_url,
            args=(main, args),
        )
    except ProcessRaisedException as e:
        # It carries the worker's traceback as text; a user's mistake is the end of it.
        _, mark, message = str(e).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")
        if not mark:
            raise
        raise UserError(message.strip()) from None


def _run_and_shut_down(main: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    result = main(*args)
    # After an error nothing is synchronised: the other workers may never arrive.
    shut_down()
    return result


def shut_down() -> None:
    """Take down the process groups of this worker, and the host's caches of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    comm.synchronize()
    dist.destroy_process_group()
    comm._LOCAL_PROCESS_GROUP = None
    for cached in ("_get_global_gloo_group", "create_local_process_group"):
        function = getattr(comm, cached, None)
        if function is not None and hasattr(function, "cache_clear"):
            function.cache_clear()
    gc.collect()


def wrap_model(model: nn.Module) -> nn.Module:
    """Wrap ``model`` in DistributedDataParallel; as it is if there is only one process.

    The host passes ``device_ids`` always, which a model on the CPU refuses.
    """
    on_gpu = next(model.parameters()).is_cuda
    kwargs = {} if on_gpu else {"device_ids": None}
    wrapped: nn.Module = create_ddp_model(model, broadcast_buffers=False, **kwargs)
    return wrapped


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside the wrapper, if there is one."""
    return model.module if isinstance(model, DistributedDataParallel) else model


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
    :class:`~frcnn_plugin.layers.large_linear.LargeLinear`.)

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

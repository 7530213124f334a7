"""Starting and ending worker processes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from detectron2.engine import launch as host_launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessRaisedException

from ..errors import UserError


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

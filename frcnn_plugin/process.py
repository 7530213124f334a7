"""Processes: starting several, settings that make one faster, what it runs on.

The commands apply the settings to their own processes. Importing the package changes nothing, so a
larger program decides for itself; it may call :func:`tune_process`.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import multiprocessing
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import DEFAULT_TIMEOUT, create_ddp_model
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
from torch.nn.parallel import DistributedDataParallel

from . import stopping
from .errors import UserError
from .host import forget_process_groups
from .stopping import Stopped

# Parameters of glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_PATIENCE = 10  # seconds that a process has to end when it is asked to
_LOOKUPS = 10  # of a name, a second apart, before it is taken for wrong
_MEETING = 60  # seconds in which processes that are all there connect
# Lines of Detectron2 that only a run's log gets: pages long, or about its own works.
_LOG_ONLY = re.compile(
    r"detectron2: (Rank of|Environment|Command line|Contents of|Running with full)"
    r"|detectron2\.engine\.defaults: (Model:|Evaluation results)|detectron2\.evaluation\.testing: "
    r"|detectron2\.data\.(common|dataset_mapper): |detectron2\.data\.build: Making"
    r"|detectron2\.evaluation\.evaluator: Total inference pure|detectron2\.checkpoint\."
)
# What starts processes, and the variables that say which one this is.
_LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"),  # names anybody may use
    # Not SLURM_NTASKS, which a batch script and the shell of salloc have as well.
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
}


def launch(
    main: Callable[..., Any],
    num_processes: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    args: tuple[Any, ...] = (),
) -> Any:
    """Launch processes as Detectron2's ``launch`` does, with workers that end cleanly.

    Without CUDA the processes run on the CPU and talk over gloo. There, torch sometimes aborts a
    worker at exit while process groups that Detectron2 keeps are alive; so the groups are taken
    down when ``main`` returns.

    Args:
        main: function every process runs; picklable.
        num_processes: processes on this machine (one per GPU).
        num_machines: as for Detectron2's ``launch``.
        machine_rank: likewise.
        dist_url: likewise.
        args: arguments of ``main``.

    Returns:
        What ``main`` returns if there is a single process, else None.

    Raises:
        UserError: a process raised it, or was killed; or torchrun has started this one.
        Stopped: a signal came. It was passed on to the processes, which have ended.
    """
    if num_machines == 1 and not dist.is_initialized():
        refuse_launcher()
    if num_machines * num_processes == 1:
        return main(*args)  # Detectron2 drops the result
    others = set(multiprocessing.active_children())

    def pass_on(number: int) -> None:
        for process in set(multiprocessing.active_children()) - others:
            os.kill(process.pid or 0, number)

    try:
        with stopping.listening(pass_on):
            try:
                detectron2_launch(
                    run_rank,
                    num_processes,
                    num_machines=num_machines,
                    machine_rank=machine_rank,
                    dist_url=dist_url,
                    args=(main, args),
                )
            except (ProcessRaisedException, ProcessExitedException) as e:
                raise _explained(e) from None
            if name := stopping.asked():  # older versions of torch take Ctrl-C for success
                raise Stopped("interrupted", 128 + signal.Signals[name])
    finally:
        # After Ctrl-C some may still run, and write into a folder that is free for another run.
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
            process.join(_PATIENCE)
            process.kill()
            process.join()


def _explained(error: Any) -> Any:
    """Return what to raise where a worker has failed."""
    code = getattr(error, "exit_code", None)
    if code == stopping.STATUS:
        return Stopped()  # the worker has said so
    # It carries the worker's traceback as text; the message of a UserError is the end of it.
    _, mark, message = str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")
    if mark:
        return UserError(message.strip())
    if name := stopping.asked():
        return Stopped("interrupted", 128 + signal.Signals[name])
    if code is None:
        return error
    return UserError(
        f"process {error.error_index} has ended ({error.signal_name or f'status {code}'}), so the "
        "others were stopped. SIGKILL usually means that memory ran out. --resume goes on"
    )


def run_rank(main: Callable[..., Any], args: tuple[Any, ...] = ()) -> Any:
    """Call ``main(*args)`` as one of several processes, and take down the process groups."""
    try:
        result = main(*args)
    except Stopped as stopped:
        if stopped.code == 1 and comm.get_rank():
            time.sleep(1)  # the launcher ends the others with the first: let that one say why
        # Not by way of the interpreter's end, where torch may abort, or wait for the others.
        sys.stdout.flush()
        os._exit(int(str(stopped.code)))
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise UserError("another process of this run has ended: see its own message") from None
    # After an error nothing is synchronised: the other workers may never arrive.
    shut_down()
    return result


def _started() -> tuple[str, int, int, int] | None:
    """Return what has started this process among others, its rank, their number, its local rank."""
    for how, names in _LAUNCHERS.items():
        values = [os.environ.get(name, "") for name in names]
        if all(values) and all(v.isdecimal() for v in values[:3]) and int(values[1]) > 1:
            return how, int(values[0]), int(values[1]), int(values[2])
    return None


def refuse_launcher() -> None:
    """Raise UserError in a process that is one of several, each of which would do the same."""
    if started := _started():
        how, _, number, _ = started
        raise UserError(
            f"{how} has started {number} processes, each of which would do all the work: start one,"
            f" by srun --ntasks=1 or without torchrun; --num-gpus {number}, if there, shares it out"
        )


def join_launcher() -> int:
    """Join the processes that torchrun, or SLURM's srun, has started together with this one.

    Detectron2's ``launch`` starts processes itself. This is what it does in each of them, with
    rank and size from the environment.

    Returns:
        The number of processes on each machine; 0 if this process was started alone.

    Raises:
        UserError: the processes do not meet, or some machine has more of them.
    """
    if (started := _started()) is None:
        return 0
    _, rank, world, local_rank = started
    if not (addr := os.environ.get("MASTER_ADDR")):
        raise UserError(
            f"srun has started {world} processes, but MASTER_ADDR is not set: export the first "
            'machine, $(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    job = os.environ.get("SLURM_JOB_ID", "")  # two may share a machine
    above = int(job) % 20000 if job.isdecimal() else 0
    port = os.environ.setdefault("MASTER_PORT", str(20000 + above))
    on_gpus, limit = torch.cuda.is_available(), DEFAULT_TIMEOUT
    what = f"process {rank} of {world} cannot meet the others at "
    what += f"MASTER_ADDR {addr}, MASTER_PORT {port}: "
    hint = "; if gloo takes the wrong network interface, set GLOO_SOCKET_IFNAME"

    def give_up() -> None:
        print(f"error: {what}no answer in {_MEETING} s{hint}", file=sys.stderr, flush=True)
        os._exit(1)

    too_late = threading.Timer(_MEETING, give_up)
    try:
        _look_up(addr)  # torch would try for half an hour
        store, *_ = next(dist.rendezvous("env://", rank, world, timeout=limit))
        # torchrun keeps its store when it restarts the processes: with the addresses of dead ones.
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", ""), store)
        store.set(f"here{rank}", "")
        store.wait([f"here{number}" for number in range(world)], limit)
        too_late.start()  # all are there; but gloo waits without end for one that cannot reach it
        backend = "NCCL" if on_gpus else "GLOO"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
        local_ranks = comm.all_gather(local_rank)
    except (OSError, RuntimeError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise UserError(what + text + hint * ("gloo" in text.lower())) from None
    finally:
        too_late.cancel()
    size = world // max(1, local_ranks.count(0))
    if local_ranks != [number % size for number in range(world)]:
        raise UserError(
            f"the processes have the local ranks {local_ranks}: start equally many on each machine"
            ", in a row (srun --ntasks-per-node N --distribution block)"
        )
    comm.create_local_process_group(size)
    if on_gpus:  # that there are too few, the checks will say
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    return size


def _look_up(host: str) -> None:
    """Raise OSError if no machine has this name, also after a while: name servers stumble."""
    for left in reversed(range(_LOOKUPS)):
        try:
            socket.getaddrinfo(host, None)
            return
        except (OSError, UnicodeError) as error:  # the second of names such as a..b
            if not left:
                hint = "use an IP address, or a name that all machines know; torchrun: --local-addr"
                raise OSError(f"{getattr(error, 'strerror', error)}; {hint}") from None
            time.sleep(1)


def leave_if_asked() -> None:
    """Raise Stopped in the main process if it was asked to stop; for long work in iterations.

    The others work on until they miss the main one, so that no two wait for each other.
    """
    if stopping.asked() and comm.is_main_process():
        raise Stopped


def is_lost_process(error: BaseException) -> bool:
    """Return whether an exception says that another process of this run is gone."""
    signs = ("gloo/transport", "Connection closed by peer", "NCCL error")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def shut_down() -> None:
    """Take down the process groups of this worker, and Detectron2's caches of them."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    comm.synchronize()
    dist.destroy_process_group()
    forget_process_groups()
    gc.collect()


def wrap_model(model: nn.Module) -> nn.Module:
    """Wrap ``model`` in DistributedDataParallel if there is more than one process."""
    # Detectron2 always passes ``device_ids``, which a model on the CPU refuses.
    on_gpu = next(model.parameters()).is_cuda
    kwargs = {} if on_gpu else {"device_ids": None}
    wrapped: nn.Module = create_ddp_model(model, broadcast_buffers=False, **kwargs)
    return wrapped


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside the wrapper, if there is one."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def set_up_logs(folder: str) -> None:
    """Set up the loggers of a run as Detectron2's ``default_setup`` will; call it before that.

    ``log.txt`` in the folder gets all, and the warnings that frcnn_command.py kept. The console
    gets no pages, and what data sets say only once.
    """
    said: set[str] = set()

    def for_console(record: logging.LogRecord) -> bool:
        line = f"{record.name}: {record.getMessage()}"
        hidden = line in said or _LOG_ONLY.match(line)
        if ".data." in record.name:
            said.add(line)
        return record.levelno > logging.INFO or not hidden

    for name in ({"name": "fvcore"}, {"name": "frcnn_plugin"}, {}):
        # In the very words of `default_setup`, for which Detectron2 then finds it done.
        *others, log = setup_logger(folder, distributed_rank=comm.get_rank(), **name).handlers
        for handler in others:
            handler.addFilter(for_console)
    for handler in logging.getLogger("py.warnings").handlers:
        if isinstance(handler, MemoryHandler):
            handler.setTarget(log)
            handler.flush()
    logging.getLogger(__name__).info("environment, config and model: %s/log.txt", folder)


def tune_process() -> None:
    """Set up this process for computing on the CPU; call it before the first large tensor."""
    keep_freed_memory()
    use_faster_matmul()


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory instead of returning it to the system.

    Feature maps are so large that glibc maps each one afresh and unmaps it at once; the kernel then
    clears every page again, which takes a fifth of a forward pass. The process keeps its peak
    memory, which it needs in the next iteration anyway. (The gradient of fc6 is larger still: see
    :class:`~frcnn_plugin.layers.large_linear.LargeLinear`.)

    Returns:
        Whether there was something to set: only with glibc, on Linux.
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
    allows rounding to bfloat16, which oneDNN does only on CPUs with matrix units (AMX). A trial
    shows whether it does; if so, or with CUDA, which rounds too, nothing is changed.

    Returns:
        Whether oneDNN is used from now on.
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


def environment() -> dict[str, str]:
    """Describe what this process runs on, as name -> value.

    The plugin's version, with the commit of a checkout; what Detectron2 lists when a run starts
    ("Python", "PyTorch", "GPU 0", "Driver version", ...); the system, threads and processes.
    """
    package = Path(__file__).resolve().parent
    # From the loaded module: importing it here would turn the order of imports around.
    version = str(sys.modules[__name__.partition(".")[0]].__version__)
    commit = _git_commit(package.parent)
    return {
        "frcnn_plugin": version + (f", commit {commit}" if commit else ""),
        **_detectron2_table(collect_env_info()),
        "system": platform.platform(),
        "CPU": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads per process",
        "processes": str(comm.get_world_size()),
    }


def _detectron2_table(text: str) -> dict[str, str]:
    """Take the two columns between the rules; none if the text has no such table."""
    rules = list(re.finditer(r"^(-+)\s+-+$", text, re.MULTILINE))
    if len(rules) < 2:
        return {}
    width = len(rules[0][1])
    table: dict[str, str] = {}
    for line in text[rules[0].end() : rules[1].start()].strip("\n").splitlines():
        name, value = line[:width].strip(), line[width:].strip()
        if name:
            table[name] = value
        elif table:  # the second line of a value
            table[list(table)[-1]] += f" {value}"
    return table


def _git_commit(root: Path) -> str:
    """Return the commit of a checkout, and whether files differ from it; "" if it is none."""
    if not (root / ".git").exists():  # a wheel; git would look further up
        return ""
    try:
        answers = [
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10
            )
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "-uno"])
        ]
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if any(answer.returncode for answer in answers):
        return ""
    commit, changes = (answer.stdout.strip() for answer in answers)
    return commit + (" with changes" if changes else "")

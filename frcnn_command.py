"""Where the console command `frcnn` starts; frcnn_plugin/cli/__main__.py is the command itself.

It is no part of the package, because importing the package needs PyTorch and Detectron2: `frcnn
--help` should not take seconds, and a missing Detectron2 should be one line and no traceback.

It is imported by commands only, and again by each process that they start, before anything else. So
this is where warnings of other libraries are kept off the console: importing the package as part of
another project changes nothing of how that one warns.
"""

import importlib.util
import logging
import os
import runpy
from collections.abc import Sequence
from logging.handlers import MemoryHandler
from pathlib import Path

# What other libraries say of each other, whatever a user does, and she can do nothing about.
NOISE = (
    "FutureWarning: `torch.jit.script`",  # Detectron2 compiles functions when it is imported
    "FutureWarning: `torch.jit.load`",  # files that `frcnn export` compares
    "FutureWarning: `torch.cuda.amp.",  # its AMPTrainer
    "FutureWarning: `broadcast_buffers` is deprecated",  # of models in several processes
    "UserWarning: torch.meshgrid: ",  # Detectron2's anchors
    "UserWarning: pkg_resources is deprecated",  # its model zoo
    "is_fx_tracing will return true for both ",  # its RoIAlign, of masks
    "No CUDA runtime is found, using CUDA_HOME=",  # torch, when Detectron2 lists the environment
    "Terminating process ",  # torch, of processes that end with the first one, which says why
)


def worth_showing(record: logging.LogRecord) -> bool:
    """Return whether a line is none of ``NOISE``: a filter for handlers of the console."""
    message = record.getMessage()
    return not any(noise in message for noise in NOISE)


def _among_warnings(record: logging.LogRecord) -> bool:
    """Hand noise of another logger to that of Python's warnings: a filter."""
    shown = worth_showing(record)
    if not shown:
        logging.getLogger("py.warnings").handle(record)
    return shown


def keep_noise_off_console() -> None:
    """Show Python's warnings as before, but ``NOISE``; keep all, until a run has a log for them."""
    logging.captureWarnings(True)
    console = logging.StreamHandler()
    console.terminator = ""  # a warning ends with one
    console.addFilter(worth_showing)
    logger = logging.getLogger("py.warnings")
    logger.propagate = False
    logger.addHandler(console)
    logger.addHandler(MemoryHandler(1000, flushLevel=logging.WARNING))
    for name in ("utils.cpp_extension", "multiprocessing.spawn", "fx._symbolic_trace"):
        logging.getLogger(f"torch.{name}").addFilter(_among_warnings)
    # Of semaphores of a process that left at once, by a helper process of Python, which frees them.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")


keep_noise_off_console()


def wait_briefly() -> None:
    """Let threads that wait for another one sleep soon, unless the environment says how they wait.

    Usually they keep their cores busy for milliseconds, which the other thread lacks if there are
    more threads than free cores. GNU's OpenMP reads this when PyTorch is loaded, so it is too late
    once the package is imported; others ignore it. Results do not depend on it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (default: the command line) names; return the exit status."""
    wait_briefly()
    package = importlib.util.find_spec("frcnn_plugin")  # finds it without importing it
    assert package is not None and package.origin is not None, "frcnn_plugin is not installed"
    frame = runpy.run_path(str(Path(package.origin).parent / "cli" / "__main__.py"))
    status: int = frame["main"](argv)
    return status

"""Where the console command `frcnn` starts; frcnn_plugin/cli/__main__.py is the command itself.

It is no part of the package, because importing the package needs PyTorch and Detectron2: `frcnn
--help` should not take seconds, and a missing Detectron2 should be one line and no traceback.
"""

import importlib.util
import os
import runpy
from collections.abc import Sequence
from pathlib import Path


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

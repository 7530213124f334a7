"""Where the console command `frcnn` starts; frcnn_plugin/cli/__main__.py is the command itself.

It is no part of the package, because importing the package needs PyTorch and Detectron2: `frcnn
--help` should not take seconds, and a missing Detectron2 should be one line and no traceback.
"""

import importlib.util
import runpy
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (default: the command line) names; return the exit status."""
    package = importlib.util.find_spec("frcnn_plugin")  # finds it without importing it
    assert package is not None and package.origin is not None, "frcnn_plugin is not installed"
    frame = runpy.run_path(str(Path(package.origin).parent / "cli" / "__main__.py"))
    status: int = frame["main"](argv)
    return status

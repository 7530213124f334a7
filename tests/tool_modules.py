"""Scripts of tools/, and commands of the package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"


def load_tool(name: str) -> ModuleType:
    """``tools/<name>.py``, made anew by each call."""
    # Not "from tools": a checkout of Detectron2 on the path has a package of that name.
    return _load(name, TOOLS / f"{name}.py")


def load_command(name: str) -> ModuleType:
    """``frcnn_plugin/cli/<name>.py``, made anew by each call."""
    return _load(f"frcnn_plugin.cli.{name}", ROOT / "frcnn_plugin" / "cli" / f"{name}.py")


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module

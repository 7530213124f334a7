"""What the package offers, and what it costs to import it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import frcnn_plugin.visualization as visualization


def test_every_name_is_there() -> None:
    for name in visualization.__all__:
        assert getattr(visualization, name) is not None
    with pytest.raises(AttributeError, match="draw_nothing"):
        _ = visualization.draw_nothing


def test_matplotlib_is_loaded_when_there_is_something_to_draw() -> None:
    code = """
import sys
import frcnn_plugin.visualization as v
assert not any(name.startswith(("matplotlib", "frcnn_plugin.engine")) for name in sys.modules)
v.Canvas
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_drawings_know_no_model() -> None:
    for file in (Path(visualization.__file__).parent / "drawings").glob("*.py"):
        rooms = set(re.findall(r"^from \.\.(\.?\w*)", file.read_text(), re.MULTILINE))
        assert rooms <= {".atomic_files"}, file

"""`frcnn report`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import frcnn
from tests.report.conftest import write_four_step


def test_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_four_step(tmp_path / "run", done=180)
    assert frcnn("report", folder) == folder / "report.html"
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert frcnn("report", folder, "--output", tmp_path / "other.html").is_file()


def test_a_mistake_is_one_line(fails: Callable[..., str], tmp_path: Path) -> None:
    said = fails("report", tmp_path)
    assert "holds no run" in said and "give the OUTPUT_DIR" in said

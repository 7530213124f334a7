"""tools/report.py, called here, as starting a process takes seconds."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.report.conftest import write_four_step
from tests.tool_modules import load_command


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_command("report")


def test_writes_the_page(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_four_step(tmp_path / "run", done=180)
    assert tool.main([str(folder)]) == folder / "report.html"
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert tool.main([str(folder), "--output", str(tmp_path / "other.html")]).is_file()


def test_a_mistake_is_one_line(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: .* holds no run .*give the OUTPUT_DIR"):
        tool.main([str(tmp_path)])

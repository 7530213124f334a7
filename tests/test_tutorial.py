"""The notebook of docs/, run from the first cell to the last as a reader would."""

from __future__ import annotations

import json
import os
import re
import resource
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
SECONDS = 240  # of processor time, which is two minutes on two cores


def test_notebook_is_short_and_holds_no_output() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len(cells) == 10
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) == 5
    assert [cell["outputs"] for cell in code] == [[]] * 5
    assert {cell["execution_count"] for cell in code} == {None}
    text = "".join("".join(cell["source"]) for cell in cells if cell not in code)
    links = re.findall(r"\]\(([^)#]+)", text)
    assert links and all((NOTEBOOK.parent / link).is_file() for link in links)


def children() -> float:
    """Processor time, in seconds, of this process's children that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.getenv("PYTHONPATH")]))
    )
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}
    )
    start = children()
    client.execute()
    assert children() - start < SECONDS  # however busy the machine is

    def text(cell: int) -> str:
        return "".join(out.get("text", "") for out in notebook.cells[cell - 1].outputs)

    assert "frcnn_plugin" in text(2)
    assert (Path(*tmp_path.glob("frcnn_tutorial_*")) / "page.html").stat().st_size > 100_000
    assert "0 errors" in text(6)
    assert "AP50" in text(8)
    pictures = [out for out in notebook.cells[9].outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 2
    assert any(name in text(10) for name in ("circle", "square", "triangle"))

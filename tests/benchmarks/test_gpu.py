"""python -m benchmarks gpu: its processes, and its parts in small; runtimes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_parts, runtimes
from benchmarks.__main__ import main
from benchmarks.gpu_parts import NARROW, PARTS, Cell, Part, Setting
from frcnn_plugin.errors import UserError

from ..pretended_gpu import pretended_gpu
from .tiny import CONFIG, SIZE, SMALL

ROOT = Path(__file__).resolve().parents[2]


def good(at: Setting) -> Iterator[Cell]:
    print("a line for the log")
    yield Cell("a", 1234.5, "ms", "well")
    yield Cell("b", None, "", "for GPUs only")


def bad(at: Setting) -> Iterator[Cell]:
    yield Cell("a", 1.0)
    raise ValueError("no luck\nat all")


def endless(at: Setting) -> Iterator[Cell]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    yield Cell("child", child.pid)
    time.sleep(100)


def killed(at: Setting) -> Iterator[Cell]:
    yield Cell("a", 1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def is_running(pid: int) -> bool:
    """Also one that has ended but that nobody has asked for its status counts as gone."""
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_was_measured_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts that fail, die or take too long cost their own cells only."""
    parts = {
        "bad": Part(bad, 10, ("a", "b")),
        "killed": Part(killed, 10, ("a", "b")),
        "endless": Part(endless, 0.5, ("child", "b")),
        "good": Part(good, 50, ("a", "b", "c")),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu, "STARTED", time.monotonic())
    # Other tests have asked for GPUs; processes that are no forks would import torch again.
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    main(["gpu", "--device", "cpu", "--minutes", "2", "--output", str(tmp_path)])
    result = json.loads((tmp_path / "benchmark.json").read_text())
    cells = {(c["part"], c["what"]): (c["value"], c["note"]) for c in result["cells"]}
    child, _ = cells.pop(("endless", "child"))
    note = cells["endless", "b"][1]
    assert note.startswith("not run: its ") and note.endswith(" s were over")
    assert cells == {
        ("bad", "a"): (1.0, ""),
        ("bad", "b"): (None, "failed: ValueError: no luck"),
        ("killed", "a"): (1.0, ""),
        ("killed", "b"): (None, "failed: its process ended with code -9"),
        ("endless", "b"): (None, note),
        ("good", "a"): (1234.5, "well"),
        ("good", "b"): (None, "for GPUs only"),
        ("good", "c"): (None, "not measured"),
    }
    assert not is_running(int(child))
    assert {"command", "cpu", "environment", "minutes"} <= set(result)
    table = (tmp_path / "table.txt").read_text()
    assert table.splitlines()[-3].split() == ["good", "a", "1234", "ms", "well"]
    assert table.splitlines()[-3:] == capsys.readouterr().out.splitlines()[-5:-2]
    assert "a line for the log" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize(
    "part",
    ["matrix products", "against the CPU", "synchronisations", "inference", "stages", "options"],
)
def test_parts_give_their_cells(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that their names promise, on a CPU, where some cells have no number."""
    monkeypatch.setattr(torch, "compile", lambda module, **kwargs: module)
    with torch.random.fork_rng():
        cells = list(PARTS[part].measure(Setting(CONFIG, "cpu")))
    assert sorted(cell.what for cell in cells) == sorted(PARTS[part].cells)
    for cell in cells:
        assert (cell.value is None) == ("GPUs only" in cell.note)
        assert "failed" not in cell.note


def test_results_are_compared_on_two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a pretended GPU float32 differs in nothing, and bfloat16 does."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    small = Setting(CONFIG, "cpu")
    work = Setting.work
    monkeypatch.setattr(Setting, "work", lambda at, *args: work(small, *args))
    with pretended_gpu(), torch.random.fork_rng():
        cells = list(gpu_parts.compare_results(Setting(CONFIG, "cuda", NARROW)))
    values = {cell.what: cell.value for cell in cells}
    assert set(values) == set(PARTS["against the CPU"].cells)
    for what in ("features", "loss", "gradient"):
        assert values[f"float32: {what}"] == values[f"TF32: {what}"] == 0
        assert 0 < (values[f"bfloat16: {what}"] or 0) < 0.5
    assert values["float32: detections"] == 100
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--minutes", "0.5"], "error: --minutes is 0.5: give 1 to 600"),
        (["--device", "cpu", "MODEL.NONE", "1"], "error: there is no key MODEL.NONE"),
    ],
)
def test_mistakes(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["gpu", "--output", str(tmp_path), *options])
    assert str(stop.value.code).startswith(message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_no_gpu(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no CUDA here; cpu runs it in small"):
        main(["gpu", "--output", str(tmp_path)])


# ---- runtimes -------------------------------------------------------------------------------


def test_beside_other_runtimes(tmp_path: Path) -> None:
    for name in ("onnx", "onnxruntime"):
        if find_spec(name) is None:
            pytest.skip(f"needs {name}")
    # In a process of its own: one that has loaded OpenVINO dies when a data loader forks it.
    words = ["runtimes", *SIZE, "--output", str(tmp_path), *SMALL]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout
    seconds = json.loads((tmp_path / "benchmark.json").read_text())["convolutions"]
    assert {"ours", "ours bf16", "onnxruntime"} <= set(seconds)
    assert all(len(own) == 2 for own in seconds.values())
    row = next(line for line in out.splitlines() if line.startswith("onnxruntime"))
    assert float(row.split()[-1]) < 1e-4  # the same features
    assert "target 0.75: " in out


def test_without_other_runtimes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runtimes, "_module", lambda name: None)
    with pytest.raises(UserError, match="pip install onnx onnxruntime openvino"):
        runtimes._others(tmp_path / "model.onnx", [])

"""Software and devices."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import ops

from frcnn_plugin.preflight import environment
from frcnn_plugin.preflight.environment import check_environment
from tests.preflight.conftest import only


@pytest.fixture(autouse=True)
def _idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


def bad(*args: Any, **kwargs: Any) -> list[Any]:
    return [f for f in check_environment(*args, **kwargs) if f.level != "ok"]


def test_this_machine_is_fine() -> None:
    findings = list(check_environment("cpu"))
    assert {f.level for f in findings} <= {"ok", "warning"}
    text = "\n".join(f.text for f in findings)
    assert f"torch {torch.__version__}" in text
    assert "PIL" in text and "Detectron2 in " in text
    assert "nms and roi_pool work on cpu" in text


def test_compiled_part_of_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        raise ImportError("undefined symbol: _ZNK2at10TensorBase8data_ptrIdEEPT_v")

    monkeypatch.setattr(importlib, "import_module", load)
    finding = environment._detectron2()
    assert finding.level == "error"
    assert "undefined symbol" in finding.text and "install_detectron2.py" in finding.fix


def test_torchvision_of_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def nms(*args: Any) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(ops, "nms", nms)
    sentence = only(bad("cpu"), "environment")
    assert "operator torchvision::nms does not exist)" in sentence
    assert "pip install --upgrade torch torchvision" in sentence


def test_operators_with_wrong_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "nms", lambda *args: torch.tensor([0]))
    assert "nms gave [0]" in only(bad("cpu"), "environment")


def test_more_processes_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(environment, "_DRIVER", Path("nothing"))
    sentence = only(bad("cpu", 4), "environment", "warning")
    assert "4 processes share 2 CPU cores" in sentence and "--num-gpus 2" in sentence


@pytest.mark.parametrize(
    ("load", "cores", "processes", "threads", "wanted"),
    [
        (2.0, 2, 1, 2, "OMP_NUM_THREADS=1"),
        (1.0, 2, 1, 2, "OMP_NUM_THREADS=1"),
        (9.0, 16, 1, 16, "OMP_NUM_THREADS=7"),
        (8.0, 16, 2, 8, "OMP_NUM_THREADS=4"),
        (0.9, 2, 1, 2, None),  # one that has just ended
        (3.0, 16, 1, 16, None),
        (8.0, 16, 1, 8, None),
        (9.0, 2, 1, 1, None),  # it waits for none
    ],
)
def test_more_threads_than_free_cores(
    monkeypatch: pytest.MonkeyPatch,
    load: float,
    cores: int,
    processes: int,
    threads: int,
    wanted: str | None,
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(environment, "_DRIVER", Path("nothing"))
    found = bad("cpu", processes)
    if wanted is None:
        assert not found
    else:
        sentence = only(found, "environment", "warning")
        assert f"is {load:.1f} on {cores} CPU cores" in sentence and wanted in sentence


def test_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\n")
    monkeypatch.setattr(environment, "_DRIVER", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.version, "cuda", None)
    sentence = only(bad("cpu"), "environment", "warning")
    assert "535.104.05), but torch" in sentence and ", without CUDA, finds no device" in sentence
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    sentence = only(bad("cpu"), "environment", "warning")
    assert "built for CUDA 13.2, finds no device" in sentence and "pytorch.org" in sentence


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    sentence = only(bad("cuda", 4), "environment")
    assert "--num-gpus 4, but 1 GPU can be seen" in sentence and "--num-gpus 1" in sentence


def test_gpu_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    sentence = only(bad("cuda:2"), "environment")
    assert "MODEL.DEVICE is cuda:2, but 2 GPUs can be seen" in sentence
    assert "Type MODEL.DEVICE cuda" in sentence


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_gpu() -> None:
    texts = [f.text for f in check_environment("cuda")]
    assert any(t.startswith("GPU 0: ") and "driver" in t for t in texts)
    assert "torchvision's nms and roi_pool work on cuda:0" in texts
    untouched = [f.text for f in check_environment("cuda", touch_gpus=False)]
    assert not any("cuda:0" in t for t in untouched)

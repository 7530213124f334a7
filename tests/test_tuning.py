"""Settings of the process."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from frcnn_plugin import process as tuning


def test_importing_changed_nothing() -> None:
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is changed with CUDA")
def test_matmul_where_it_stays_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    def exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.matmul(a.double(), b.double()).to(a.dtype)

    monkeypatch.setattr(torch.Tensor, "__matmul__", exact)
    assert tuning.use_faster_matmul()
    assert torch.get_float32_matmul_precision() == "medium"


def test_matmul_of_a_cpu_that_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with AMX: products of bfloat16 numbers."""

    def rounded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype == torch.float32:
            a, b = a.bfloat16(), b.bfloat16()
        return torch.matmul(a.double(), b.double()).float()

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not tuning.use_faster_matmul()
    assert torch.get_float32_matmul_precision() == "highest"


def test_matmul_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not tuning.use_faster_matmul()
    assert torch.get_float32_matmul_precision() == "highest"


def test_other_systems_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning.ctypes, "CDLL", lambda name: object())  # without mallopt, as musl
    assert not tuning.keep_freed_memory()
    monkeypatch.setattr(tuning.sys, "platform", "darwin")
    assert not tuning.keep_freed_memory()


KEPT = """
import sys, numpy
import runpy
from pathlib import Path
keep_freed_memory = runpy.run_path(sys.argv[2])["keep_freed_memory"]  # without Detectron2: seconds
def rss():
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmRSS")) // 1024
if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = rss()
block = numpy.ones(100 * 2**20, dtype=numpy.uint8)
del block
print(rss() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about Linux's C library")
def test_memory_is_kept() -> None:
    """100 MiB are freed: with the setting they stay with the process. In processes of their own."""
    left = {}
    for word in ("keep", "default"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", KEPT, word, tuning.__file__],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        left[word] = int(done.stdout)
    assert left["keep"] > 90 and left["default"] < 10

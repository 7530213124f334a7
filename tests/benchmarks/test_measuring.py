"""How it is measured: processes of their own, turns, statistics."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks import measuring
from benchmarks.weights import RandomWeights
from frcnn_plugin.errors import UserError

from .tiny import spec_and_work


def test_a_mistake_in_a_process_of_its_own_is_one_sentence() -> None:
    """What the process sends, and what comes of it here; without the seconds of starting one."""
    spec, work = spec_and_work()
    spec = replace(spec, name="x", opts=("MODEL.NONE", "1"))
    near, far = torch.multiprocessing.Pipe()
    measuring._serve(far, spec, work, RandomWeights(0), torch.get_num_threads())
    session = object.__new__(measuring.ChildSession)
    session.name, session._pipe = "x", near
    with pytest.raises(UserError, match=r"^x: there is no key MODEL.NONE"):
        session._receive()
    far.close()  # as when it is killed
    session._process = SimpleNamespace(join=lambda: None, exitcode=-9)
    with pytest.raises(UserError, match=r"^x: its process ended with code -9 \(out of memory\?\)$"):
        session._receive()


def test_peak_memory() -> None:
    before = measuring.peak()
    assert 50 < before["process_mib"] < 2**20
    block = torch.ones(50 * 2**20)
    after = measuring.peak()["process_mib"]
    assert after >= max(before["process_mib"], block.numel() * 4 / 2**20)
    if not torch.cuda.is_available():
        assert "cuda_mib" not in before


def test_process_settings_are_for_the_plugin_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(measuring, "tune_process", lambda: calls.append("tuned"))
    for kind in ("detectron2", "torchvision"):
        measuring.tune(spec_and_work(kind=kind)[0])
    assert calls == []
    measuring.tune(spec_and_work()[0])
    assert calls == ["tuned"]


def test_how_threads_wait_is_told_to_the_plugin_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process would take it over when it starts; here none does."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    found: list[str | None] = []
    process = SimpleNamespace(start=lambda: found.append(os.environ.get("GOMP_SPINCOUNT")))
    ends = (SimpleNamespace(), SimpleNamespace(close=lambda: None))
    context = SimpleNamespace(Pipe=lambda: ends, Process=lambda **kwargs: process)
    monkeypatch.setattr(measuring.multiprocessing, "get_context", lambda method: context)
    monkeypatch.setattr(measuring.ChildSession, "_receive", lambda self: None)
    for kind in ("config", "detectron2"):
        measuring.ChildSession(*spec_and_work(kind=kind), RandomWeights(0))
    assert found == ["10000", None] and "GOMP_SPINCOUNT" not in os.environ


def test_models_take_turns_after_the_warm_up() -> None:
    calls: list[str] = []

    def run(name: str) -> Callable[[], dict[str, float]]:
        def sample() -> dict[str, float]:
            calls.append(name)
            return {"total": float(len(calls))}

        return sample

    samples = measuring.in_turn({"A": run("A"), "B": run("B")}, repeats=2, warmup=1)
    assert "".join(calls) == "ABABAB"
    assert samples == [
        ("A", {"total": 3.0}),
        ("B", {"total": 4.0}),
        ("A", {"total": 5.0}),
        ("B", {"total": 6.0}),
    ]
    assert measuring.by_section(samples) == {"A": {"total": [3, 5]}, "B": {"total": [4, 6]}}


def test_others_compute_until_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        started.append(process(command))
        return started[-1]

    process = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(KeyError), measuring.busy(2):
        with pytest.raises(subprocess.TimeoutExpired):
            started[0].wait(1)
        assert [other.poll() for other in started] == [None, None]
        raise KeyError
    assert all(other.returncode < 0 for other in started)


def test_ratio_of_medians() -> None:
    found = measuring.ratio([1.0, 2.0, 9.0], [4.0, 4.0, 4.0])
    assert found.value == 0.5  # 2 / 4
    assert (found.lower, found.upper) == (0.25, 2.25)  # 1 / 4 and 9 / 4: three rounds say little
    assert str(found) == "0.500 [0.250, 2.250]"


def test_quartiles() -> None:
    found = measuring.spread([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (found.lower, found.median, found.upper) == (2.0, 3.0, 4.0)

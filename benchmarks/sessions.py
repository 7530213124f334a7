"""Contenders that are run in turn, in this process or in one each."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import multiprocessing

from benchmarks.contenders import Contender
from benchmarks.specs import Sample, Spec, Work
from benchmarks.syncs import count_syncs
from benchmarks.weights import RandomWeights
from frcnn_plugin.errors import UserError
from frcnn_plugin.process import peak_memory

MIB = 2**20


class Session(Protocol):
    """A contender somewhere."""

    name: str

    def call(self, method: str) -> Any:
        """Call "sample", "outcome", "syncs" or "peak"; returns what it returns."""

    def close(self) -> None:
        """Give its memory back."""


def peak() -> dict[str, float]:
    """Peak memory so far: of this process and, if it has one, on its GPU; MiB."""
    on = {"process_mib": peak_memory("cpu"), "cuda_mib": peak_memory("cuda")}
    return {name: size / MIB for name, size in on.items() if size is not None}


def _answer(contender: Contender, method: str) -> Any:
    if method == "peak":
        return peak()
    if method == "syncs":
        return count_syncs(contender.run)
    return getattr(contender, method)()


def tune(spec: Spec) -> None:
    """Set up this process as the plugin's tools do, if it is the plugin's model that runs here.

    Versions that leave the process alone have nothing to call.
    """
    if spec.kind != "config":
        return
    try:
        tuning = importlib.import_module("frcnn_plugin.process")
    except ImportError:
        return
    tuning.tune_process()


class LocalSession:
    """In this process."""

    def __init__(self, spec: Spec, work: Work, weights: RandomWeights) -> None:
        self.name = spec.name
        self._contender: Contender | None = Contender(spec, work, weights)

    def call(self, method: str) -> Any:
        assert self._contender is not None
        return _answer(self._contender, method)

    def close(self) -> None:
        self._contender = None


class ChildSession:
    """In a process of its own, which sleeps while others run.

    Process-wide settings are made for the plugin's model, as its tools make them, and stay there;
    peak memory is its own.
    """

    def __init__(self, spec: Spec, work: Work, weights: RandomWeights) -> None:
        self.name = spec.name
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        arguments = (far, spec, work, weights, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        far.close()
        self._receive()  # until it is built

    def _receive(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            code = self._process.exitcode
            raise UserError(
                f"{self.name}: its process ended with code {code}"
                + (" (out of memory?)" if code == -9 else "")
            ) from None
        if kind == "error":
            raise UserError(f"{self.name}: {value}")
        return value

    def call(self, method: str) -> Any:
        self._pipe.send(method)
        return self._receive()

    def close(self) -> None:
        if self._process.is_alive():
            self._pipe.send("close")
        self._process.join()
        self._pipe.close()


def _serve(pipe: Any, spec: Spec, work: Work, weights: RandomWeights, threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        tune(spec)
        contender = Contender(spec, work, weights)
        pipe.send(("value", None))
        while (method := pipe.recv()) != "close":
            pipe.send(("value", _answer(contender, method)))
    except UserError as error:
        pipe.send(("error", str(error)))
    except Exception as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))
        raise


def interleave(
    sessions: Sequence[Session], repeats: int, warmup: int = 1
) -> list[tuple[str, Sample]]:
    """Run all in turn, A B C A B C ..., so that what slows the machine slows all alike.

    Args:
        sessions: what to run.
        repeats: measured rounds.
        warmup: rounds before them.

    Returns:
        name and sample of every measured run, in the order of the runs.
    """
    samples = []
    for i in range(warmup + repeats):
        for session in sessions:
            sample = session.call("sample")
            if i >= warmup:
                samples.append((session.name, sample))
    return samples

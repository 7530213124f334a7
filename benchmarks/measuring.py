"""How it is measured: contenders in turn, in this process or in one each; the statistics."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import multiprocessing

from benchmarks.contenders import SECTIONS, Contender, Sample, calibrated_weights, found_again
from benchmarks.syncs import count_syncs, sync_rows
from benchmarks.weights import RandomWeights
from benchmarks.work import Spec, Work
from frcnn_command import wait_briefly
from frcnn_plugin.errors import UserError
from frcnn_plugin.process import tune_process

logger = logging.getLogger(__name__)

T = TypeVar("T")

_MIB = 2**20
# Keeps a core busy, until the process that started it is gone.
_LOOP = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
_RESAMPLES = 2000
_BESIDE = " beside others"


# ---- contenders, here or elsewhere ----------------------------------------------------------


def peak() -> dict[str, float]:
    """Return the peak memory of this process so far and, if it uses a GPU, of that; MiB."""
    try:
        # Better than `getrusage`, which in a child starts at the parent's peak.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        size = int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):  # macOS
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    on = {"process_mib": size / _MIB}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        on["cuda_mib"] = torch.cuda.max_memory_allocated() / _MIB
    return on


def tune(spec: Spec) -> None:
    """Set up this process as the plugin's commands do, if it is the plugin's model that runs."""
    if spec.kind == "config":
        tune_process()


def _answer(contender: Contender, method: str) -> Any:
    if method == "peak":
        return peak()
    if method == "syncs":
        return count_syncs(contender.run)
    return getattr(contender, method)()


class LocalSession:
    """A contender in this process."""

    def __init__(self, spec: Spec, work: Work, weights: RandomWeights) -> None:
        self.name = spec.name
        self._contender: Contender | None = Contender(spec, work, weights)

    def call(self, method: str) -> Any:
        """Call "sample", "outcome", "detections", "syncs" or "peak"; return what it returns."""
        assert self._contender is not None
        return _answer(self._contender, method)

    def close(self) -> None:
        """Give its memory back."""
        self._contender = None


class ChildSession:
    """A contender in a process of its own, which sleeps while others run.

    Process-wide settings are made for the plugin's model, as its commands make them, and stay
    there; peak memory is its own.
    """

    def __init__(self, spec: Spec, work: Work, weights: RandomWeights) -> None:
        self.name = spec.name
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        arguments = (far, spec, work, weights, torch.get_num_threads())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        before = dict(os.environ)
        try:
            if spec.kind == "config":  # as the plugin's commands do
                wait_briefly()
            self._process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
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


# ---- in turn --------------------------------------------------------------------------------


def in_turn(
    runs: Mapping[str, Callable[[], T]], repeats: int, warmup: int = 1
) -> list[tuple[str, T]]:
    """Run all in turn, A B C A B C ..., so that what slows the machine slows all alike.

    Return name and result of every run after those of the warm-up rounds, in their order.
    """
    results = []
    for i in range(warmup + repeats):
        logger.info("round %d of %d: %s", i + 1, warmup + repeats, ", ".join(runs))
        for name, run in runs.items():
            result = run()
            if i >= warmup:
                results.append((name, result))
    return results


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Let so many other processes compute during the ``with`` block, each on one thread."""
    with ExitStack() as stack:
        for _ in range(count):
            other = stack.enter_context(subprocess.Popen([sys.executable, "-c", _LOOP]))
            stack.callback(other.kill)
        yield


def _beside(count: int, session: LocalSession | ChildSession) -> Sample:
    with busy(count):
        sample: Sample = session.call("sample")
    return sample


def by_section(samples: Sequence[tuple[str, Sample]]) -> dict[str, dict[str, list[float]]]:
    """Turn the samples of :func:`in_turn` into name -> section -> seconds of every round."""
    rounds: dict[str, list[Sample]] = {}
    for name, sample in samples:
        rounds.setdefault(name, []).append(sample)
    return {name: {key: [s[key] for s in own] for key in own[0]} for name, own in rounds.items()}


def measure(
    specs: Sequence[Spec],
    work: Work,
    *,
    repeats: int,  # measured runs of each, after one that is not
    separate: bool,  # each model in a process of its own
    memory: bool = False,  # measure the peak of each, in a process of its own
    syncs: bool = False,  # count operators that wait for a GPU
    others: int = 0,  # each also runs beside so many busy processes, in every round
) -> dict[str, Any]:
    """Build all models, ours first, and run them in turn.

    Return, for the JSON file, "order" of the runs, and under "models" per name its seconds,
    sections, outcome, memory, synchronising operators, and "busy", its seconds beside the others.
    """
    for spec in specs:
        spec.cfg(work.training)  # a mistake shows before minutes of work
    # Peers have the layers of ours. A config may have others, which need deviations of their own.
    own = {s.name: calibrated_weights(s, work) for s in specs if s.kind == "config"}
    weights = {s.name: own.get(s.name, own[specs[0].name]) for s in specs}
    sessions: list[LocalSession | ChildSession] = []
    models: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        for spec in specs:
            logger.info("building %s", spec.name)
            session = (ChildSession if separate else LocalSession)(spec, work, weights[spec.name])
            sessions.append(stack.enter_context(closing(session)))
        for session in sessions:
            models[session.name] = {"outcome": session.call("outcome")}
        if not work.training:
            ours, *found = (session.call("detections") for session in sessions)
            for session, theirs in zip(sessions[1:], found, strict=True):
                models[session.name]["outcome"]["ours found, %"] = found_again(ours, theirs)
        runs = {s.name: partial(s.call, "sample") for s in sessions}
        if others:
            runs |= {f"{s.name}{_BESIDE}": partial(_beside, others, s) for s in sessions}
        samples = in_turn(runs, repeats)
        for session in sessions:
            if separate and memory:
                models[session.name]["peak"] = session.call("peak")
            if syncs:
                logger.info("counting synchronising operators of %s", session.name)
                models[session.name]["syncs"] = sync_rows(session.call("syncs"))
    for spec in specs if memory and not separate else ():
        logger.info("measuring the memory of %s", spec.name)
        with closing(ChildSession(spec, work, weights[spec.name])) as child:
            for _ in range(2):
                child.call("sample")
            models[spec.name]["peak"] = child.call("peak")
    for name, sections in by_section(samples).items():
        if name in models:
            models[name].update(seconds=sections["total"], sections=sections)
        else:
            models[name.removesuffix(_BESIDE)]["busy"] = sections["total"]
    return {"work": asdict(work), "order": [name for name, _ in samples], "models": models}


# ---- statistics -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Median and quartiles, in the unit of the values."""

    median: float
    lower: float
    upper: float

    def in_ms(self) -> tuple[float, str]:
        """Return the median of seconds, and the quartiles as text, in milliseconds."""
        return 1000 * self.median, f"{1000 * self.lower:.0f}-{1000 * self.upper:.0f}"


def spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles of one value or more."""
    lower, median, upper = np.percentile(values, [25, 50, 75])
    return Spread(float(median), float(lower), float(upper))


def medians(sections: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median seconds of each section, without "total" and "layers"."""
    return {key: spread(sections[key]).median for key in SECTIONS if key in sections}


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians and its 95% interval."""

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.lower:.3f}, {self.upper:.3f}]"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Return the median of ours divided by the median of theirs, one value per round each.

    The interval is from bootstrap resamples of whole rounds, as the two of a round belong together.
    """
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    picked = np.random.default_rng(0).integers(0, len(a), (_RESAMPLES, len(a)))
    resampled = np.median(a[picked], axis=1) / np.median(b[picked], axis=1)
    lower, upper = np.percentile(resampled, [2.5, 97.5])
    return Ratio(float(np.median(a) / np.median(b)), float(lower), float(upper))

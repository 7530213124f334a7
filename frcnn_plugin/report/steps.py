"""The steps of a run and how long they took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .metrics import Metrics
from .run_record import RunRecord

_NAMES = ("1 RPN", "2 detector", "3 RPN", "4 detector")
_PHASES = {"joint": "joint training", "rpn": "RPN", "fast_rcnn": "detector"}


@dataclass(frozen=True)
class Step:
    """A part of the run.

    Attributes:
        number: 1 to 4; 0 for a run without steps.
        name: what it trains.
        first: its first iteration, counted over the run.
        end: the iteration after its last one.
    """

    number: int
    name: str
    first: int
    end: int


@dataclass(frozen=True)
class Timing:
    """How long one step took; seconds, None where nothing is known.

    Attributes:
        step: the step.
        done: iterations of it that are done.
        iteration: per iteration, as the host measures it: without evaluation between the steps.
        data: of these, waiting for images.
        training: all its iterations.
        before: from the end of the step before, or the start, to its first iteration: weights,
            proposals, evaluation.
        estimated: `training` is iterations x seconds, for want of a measurement.
    """

    step: Step
    done: int
    iteration: float | None
    data: float | None
    training: float | None
    before: float | None
    estimated: bool


def steps_of(config: Mapping[str, Any]) -> list[Step]:
    """The steps of a run, from its config; one if it is not trained in steps.

    Raises:
        ValueError: the config lacks the keys, or has nonsense in them.
    """
    try:
        if not config.get("FOUR_STEP.ENABLED"):
            phase = config.get("MODEL.PAPER_RCNN.PHASE", "joint")
            return [Step(0, _PHASES.get(phase, str(phase)), 0, int(config["SOLVER.MAX_ITER"]))]
        steps: list[Step] = []
        first = 0
        for number in range(config["FOUR_STEP.START_AT"], config["FOUR_STEP.STOP_AFTER"] + 1):
            end = first + int(config["FOUR_STEP.ITERS"][number - 1])
            steps.append(Step(number, _NAMES[number - 1], first, end))
            first = end
        return steps
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"the config does not say how long it trains ({error})") from error


def time_steps(steps: list[Step], metrics: Metrics, record: RunRecord | None) -> list[Timing]:
    """Times of all steps.

    Args:
        steps: of the run.
        metrics: what it logged.
        record: notes of the run, if there are any.
    """
    return [_time(step, metrics, record) for step in steps]


def total_seconds(timings: list[Timing], record: RunRecord | None) -> float | None:
    """Time of the whole run, as far as it went; None if nothing is known."""
    if record is None:
        known = [timing.training for timing in timings if timing.training is not None]
        return sum(known) if known else None
    total = 0.0
    for session in record.sessions:
        last = max([0.0, *(span.ends or span.begins for span in session.spans)])
        total += session.ended or last
    # Killed in the middle of a step: what its iterations took, about.
    return total + sum(t.training for t in timings if t.estimated and t.training is not None)


def _time(step: Step, metrics: Metrics, record: RunRecord | None) -> Timing:
    seconds = [value for _, value in metrics.series("time", step.first, step.end)]
    data = [value for _, value in metrics.series("data_time", step.first, step.end)]
    per_iteration = sum(seconds) / len(seconds) if seconds else None
    done = max(0, min(metrics.done, step.end) - step.first)
    training = before = None
    measured = 0
    for session in record.sessions if record else ():
        previous = 0.0
        for span in session.spans:
            if span.step == step.number:
                before = (before or 0.0) + span.begins - previous
                if span.ends is not None:
                    training = (training or 0.0) + span.ends - span.begins
                    measured += step.end - span.first
                    done = step.end - step.first
            previous = span.ends or span.begins
    estimated = done > measured and per_iteration is not None
    if estimated:
        assert per_iteration is not None
        training = (training or 0.0) + (done - measured) * per_iteration
    return Timing(
        step=step,
        done=done,
        iteration=per_iteration,
        data=sum(data) / len(data) if data else None,
        training=training,
        before=before,
        estimated=estimated,
    )

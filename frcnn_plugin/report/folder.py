"""What a run left in its ``OUTPUT_DIR``, and what of it is missing or damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..errors import UserError
from ..evaluation.proposals.recall import RecallCurves
from ..evaluation.record import EVALUATION_FILE, EvaluationRecord
from .config_diff import Flat, parse_config
from .metrics import Metrics, read_metrics
from .run_record import RUN_FILE, RunRecord
from .steps import Step, steps_of

_T = TypeVar("_T")
_SIGNS = ("config.yaml", RUN_FILE, "metrics.json")


@dataclass
class RunFolder:
    """A run, read.

    Attributes:
        path: its folder.
        record: what training noted; None if it did not.
        config: the whole config, "A.B" -> value; empty if there is none.
        metrics: what was logged.
        steps: parts of the run; empty if there is no config.
        recalls: data set -> ("step 1", or "evaluation" -> recall of its proposals).
        evaluations: of detectors, newest last.
        host_environment: what Detectron2 wrote about versions at the newest start; "" if nothing.
        finished: whether training came to its end.
        problems: what is missing or damaged, a sentence each.
    """

    path: Path
    record: RunRecord | None = None
    config: Flat = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    steps: list[Step] = field(default_factory=list)
    recalls: dict[str, dict[str, RecallCurves]] = field(default_factory=dict)
    evaluations: list[EvaluationRecord] = field(default_factory=list)
    host_environment: str = ""
    finished: bool = False
    problems: list[str] = field(default_factory=list)


def read_run(path: str | os.PathLike[str]) -> RunFolder:
    """Reads all that the report needs; what is missing is noted in `problems`.

    Raises:
        UserError: the folder does not exist or holds no run.
    """
    folder = Path(path)
    _check_is_run(folder)
    run = RunFolder(folder)
    run.record = _attempt(run, lambda: RunRecord.load(folder))
    _read_config(run)
    run.metrics = read_metrics(
        folder / "metrics.json", run.record.metrics_start if run.record else 0
    )
    if run.metrics.unreadable:
        run.problems.append(
            "Lines of metrics.json that are not readable and left out: "
            f"{run.metrics.unreadable}. A torn last one is what a killed run leaves."
        )
    if not run.metrics.training:
        run.problems.append(
            "metrics.json has no training values: the run stopped before it logged anything, or "
            "was an evaluation only."
        )
    for file in sorted(folder.glob("proposals/stage*/*.recall.json")):
        step = f"step {file.parent.name.removeprefix('stage')}"
        _add_recall(run, file, step)
    for file in sorted(folder.glob("inference/*/recall.json")):
        _add_recall(run, file, "evaluation")
    for file in sorted(folder.glob(f"inference/*/{EVALUATION_FILE}"), key=os.path.getmtime):
        evaluation = _attempt(run, lambda file=file: EvaluationRecord.load(file))  # type: ignore[misc]
        if evaluation is not None:
            run.evaluations.append(evaluation)
    run.host_environment = _host_environment(folder / "log.txt")
    if run.record:
        run.finished = run.record.sessions[-1].complete if run.record.sessions else False
    else:
        run.finished = (folder / "model_final.pth").is_file()
    return run


def _check_is_run(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}'; give the OUTPUT_DIR of a training")
    if any((folder / name).is_file() for name in _SIGNS):
        return
    inside = sorted(
        {file.parent for name in _SIGNS for file in folder.glob(f"*/{name}")}
    )  # a typical slip: output instead of output/run
    hint = f"did you mean {inside[0]}?" if inside else "give the OUTPUT_DIR of a training"
    raise UserError(f"{folder} holds no run (no {', '.join(_SIGNS)} in it); {hint}")


def _read_config(run: RunFolder) -> None:
    file = run.path / "config.yaml"
    if run.record:
        text = run.record.config
    elif file.is_file():
        text = file.read_text(encoding="utf-8", errors="replace")
        run.problems.append(
            f"There is no {RUN_FILE}, which tools/train_net.py writes: plan, command line and "
            "exact times are not known, and the config is that of the last start, also if that "
            "was an evaluation."
        )
    else:
        run.problems.append(f"Neither {RUN_FILE} nor config.yaml is there: the config is unknown.")
        return
    try:
        run.config = parse_config(text)
        run.steps = steps_of(run.config)
    except ValueError as error:
        run.problems.append(f"The config is damaged: {error}.")


def _add_recall(run: RunFolder, file: Path, label: str) -> None:
    curves = _attempt(run, lambda: RecallCurves.load(file))
    if curves is not None:
        run.recalls.setdefault(curves.dataset, {})[label] = curves


def _attempt(run: RunFolder, load: Callable[[], _T]) -> _T | None:
    """What `load` gives, or None and a note."""
    try:
        return load()
    except UserError as error:
        run.problems.append(f"{error}.")
        return None


def _host_environment(log: Path) -> str:
    """The newest table of versions in a ``log.txt``."""
    if not log.is_file():
        return ""
    text = log.read_text(encoding="utf-8", errors="replace")
    begin = text.rfind("Environment info:\n")
    if begin < 0:
        return ""
    lines = []
    for line in text[begin:].splitlines()[1:]:
        if line.startswith("[") or "Command line arguments" in line:  # the next entry
            break
        lines.append(line)
    return "\n".join(lines).strip()

"""What a run left in its ``OUTPUT_DIR``, and what of it is missing or damaged."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from detectron2.config import CfgNode

from ..config import plugin_cfg
from ..errors import UserError
from ..evaluation.proposals.recall import RecallCurves
from ..evaluation.record import EVALUATION_FILE, EvaluationRecord
from ..four_step.stages import ScheduledStage, build_stages
from .recorder import RUN_FILE, RunRecord

_T = TypeVar("_T")
_SIGNS = ("config.yaml", RUN_FILE, "metrics.json")
_PHASES = {"joint": "joint training", "rpn": "RPN", "fast_rcnn": "detector"}


def name_of(stage: ScheduledStage) -> str:
    """Return "stage 1 RPN", or what a run does that is not trained in stages."""
    return f"stage {stage.title}" if stage.number else stage.name


@dataclass
class Metrics:
    """What Detectron2 logged.

    Attributes:
        training: values of the iterations that were logged, by name, in order of "iteration".
        results: newest value of everything else, such as "stage2/bbox/AP50".
        unreadable: lines that are no JSON object with an iteration.
    """

    training: list[dict[str, float]] = field(default_factory=list)
    results: dict[str, float] = field(default_factory=dict)
    unreadable: int = 0

    def series(self, name: str, stage: ScheduledStage | None = None) -> list[tuple[int, float]]:
        """Return ``(iteration, value)`` where `name` was logged, in a stage or the whole run."""
        first, end = (stage.start, stage.end) if stage else (0, math.inf)
        return [
            (int(row["iteration"]), row[name])
            for row in self.training
            if name in row and first <= row["iteration"] < end
        ]

    def losses(self) -> list[str]:
        """Return the names of all losses, the total first."""
        names = {name for row in self.training for name in row if "loss" in name}
        return sorted(names, key=lambda name: (name != "total_loss", name))

    @property
    def done(self) -> int:
        """Iterations known to be done."""
        return int(self.training[-1]["iteration"]) + 1 if self.training else 0

    def not_finite(self) -> tuple[str, int] | None:
        """Return the first loss that is nan or infinite, and its iteration."""
        for row in self.training:
            for name, value in row.items():
                if "loss" in name and not math.isfinite(value):
                    return name, int(row["iteration"])
        return None


@dataclass
class RunFolder:
    """A run, read.

    Attributes:
        path: its folder.
        record: what training noted; None if it did not.
        cfg: the whole config; None if there is none.
        stages: the four-step stages of the run, or a single one with number 0; empty without a
            config.
        metrics: what was logged.
        recalls: data set -> ("stage 1", or "evaluation" -> recall of its proposals).
        evaluations: of detectors, newest last.
        problems: what is missing or damaged, a sentence each.
    """

    path: Path
    record: RunRecord | None = None
    cfg: CfgNode | None = None
    stages: list[ScheduledStage] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    recalls: dict[str, dict[str, RecallCurves]] = field(default_factory=dict)
    evaluations: list[EvaluationRecord] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        if self.record is None:
            return (self.path / "model_final.pth").is_file()
        return bool(self.record.sessions) and self.record.sessions[-1].complete


def read_run(path: str | os.PathLike[str]) -> RunFolder:
    """Read all that the report needs; what is missing is noted in `problems`.

    Raises:
        UserError: the folder does not exist or holds no run.
    """
    folder = Path(path)
    _check_is_run(folder)
    run = RunFolder(folder)
    run.record = _attempt(run, lambda: RunRecord.load(folder))
    _read_config(run)
    start = run.record.metrics_start if run.record else 0
    run.metrics = read_metrics(folder / "metrics.json", start)
    if run.metrics.unreadable:
        run.problems.append(
            "Lines of metrics.json that are not readable and left out: "
            f"{run.metrics.unreadable}. A torn last one is what a killed run leaves."
        )
    not_finite = run.metrics.not_finite()
    if not_finite:
        name, iteration = not_finite
        run.problems.append(f"{name} is not finite at iteration {iteration:,}: diverged.")
    for file in sorted(folder.glob("proposals/stage*/*.recall.json")):
        _add_recall(run, file, file.parent.name.replace("stage", "stage "))
    for file in sorted(folder.glob("inference/*/recall.json")):
        _add_recall(run, file, "evaluation")
    for file in sorted(folder.glob(f"inference/*/{EVALUATION_FILE}"), key=os.path.getmtime):
        evaluation = _attempt(run, lambda file=file: EvaluationRecord.load(file))  # type: ignore[misc]
        if evaluation is not None:
            run.evaluations.append(evaluation)
    return run


def _check_is_run(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}'; give the OUTPUT_DIR of a training")
    if any((folder / name).is_file() for name in _SIGNS):
        return
    # A typical slip: output instead of output/run.
    inside = sorted({file.parent for name in _SIGNS for file in folder.glob(f"*/{name}")})
    hint = f"did you mean {inside[0]}?" if inside else "give the OUTPUT_DIR of a training"
    raise UserError(f"{folder} holds no run (no {', '.join(_SIGNS)} in it); {hint}")


def _read_config(run: RunFolder) -> None:
    file = run.path / "config.yaml"
    if run.record:
        text = run.record.config
    elif file.is_file():
        text = file.read_text(encoding="utf-8", errors="replace")
        run.problems.append(
            f"There is no {RUN_FILE}, which frcnn train writes: plan, command line, environment "
            "and exact times are not known, and the config is that of the last start, also if "
            "that was an evaluation."
        )
    else:
        run.problems.append(f"Neither {RUN_FILE} nor config.yaml is there: the config is unknown.")
        return
    try:
        cfg = plugin_cfg()
        cfg.set_new_allowed(True)  # keys of another version, or of somebody's own
        cfg.merge_from_other_cfg(CfgNode.load_cfg(text))
        if cfg.FOUR_STEP.ENABLED:
            run.stages = build_stages(cfg)
        else:
            phase = cfg.MODEL.PAPER_RCNN.PHASE
            name, end = _PHASES.get(phase, phase), cfg.SOLVER.MAX_ITER
            run.stages = [ScheduledStage(0, name, phase, trains=(), iters=end)]
        run.cfg = cfg
    except Exception as error:  # yaml's and yacs' errors have no common base
        problem = f"{type(error).__name__}: {error}".partition("\n")[0]
        run.problems.append(f"The config is damaged: {problem}.")


def _add_recall(run: RunFolder, file: Path, label: str) -> None:
    curves = _attempt(run, lambda: RecallCurves.load(file))
    if curves is not None:
        run.recalls.setdefault(curves.dataset, {})[label] = curves


def _attempt(run: RunFolder, load: Callable[[], _T]) -> _T | None:
    """Return what `load` gives, or None and note why."""
    try:
        return load()
    except UserError as error:
        run.problems.append(f"{error}.")
        return None


def read_metrics(path: Path, start: int = 0) -> Metrics:
    """Read a ``metrics.json``, also of a run that was killed, resumed or started anew.

    Detectron2 appends to it. Where iterations go back, a run was resumed or started anew: what the
    file has beyond that iteration is not part of the run any more.

    Args:
        path: the file; nothing is there if it is missing.
        start: bytes to pass over.
    """
    metrics = Metrics()
    if not path.is_file():
        return metrics
    results: dict[str, tuple[int, float]] = {}
    for line in path.read_bytes()[start:].decode("utf-8", errors="replace").splitlines():
        row = _parse(line)
        if row is None:
            metrics.unreadable += bool(line.strip())
            continue
        iteration = int(row["iteration"])
        if "lr" not in row:  # Detectron2 logs it with every training value, and only there
            results.update({k: (iteration, v) for k, v in row.items() if k != "iteration"})
            continue
        if metrics.training and metrics.training[-1]["iteration"] >= iteration:
            metrics.training = [r for r in metrics.training if r["iteration"] < iteration]
            results = {k: v for k, v in results.items() if v[0] <= iteration}
        metrics.training.append(row)
    metrics.results = {name: value for name, (_, value) in results.items()}
    return metrics


def _parse(line: str) -> dict[str, float] | None:
    try:
        row: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("iteration"), int):
        return None
    return {k: v for k, v in row.items() if isinstance(v, (int, float))}

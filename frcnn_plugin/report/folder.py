"""What a run left in its ``OUTPUT_DIR``, and what of it is missing or damaged."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..config_files import saved_config
from ..errors import UserError
from ..evaluation.proposals.recall import RecallCurves
from ..evaluation.record import EVALUATION_FILE, EvaluationRecord
from ..four_step.stages import ScheduledStage, build_stages
from .recorder import RUN_FILE, RunRecord

_SIGNS = ("config.yaml", RUN_FILE, "metrics.json")
# Where recall curves lie, and what the report calls them; the stage by its folder.
_RECALLS = (
    ("proposals/stage*/*.recall.json", ""),
    ("inference/*/recall.json", "Evaluation"),
    ("inference/*/proposals.recall.json", "frcnn proposals dump"),
)
_PHASES = {"joint": "joint training", "rpn": "RPN", "fast_rcnn": "detector"}


def name_of(stage: ScheduledStage) -> str:
    """Return "stage 1 RPN", or what a run does that is not trained in stages."""
    return f"stage {stage.title}" if stage.number else stage.name


@dataclass
class Metrics:
    """What Detectron2 logged."""

    # Values of the iterations that were logged, by name, in order of "iteration".
    training: list[dict[str, float]] = field(default_factory=list)
    # Everything else, such as "stage2/bbox/AP50": (iteration, value), the newest last.
    measured: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    @property
    def results(self) -> dict[str, float]:
        """The newest value of everything that was measured."""
        return {name: points[-1][1] for name, points in self.measured.items()}

    def values(self, name: str, stage: ScheduledStage | None = None) -> list[float]:
        """Return the values of `name`, in a stage or the whole run."""
        first, end = (stage.start, stage.end) if stage else (0, math.inf)
        return [r[name] for r in self.training if name in r and first <= r["iteration"] < end]

    def losses(self) -> list[str]:
        """Return the names of all losses, the total first."""
        names = {name for row in self.training for name in row if "loss" in name}
        return sorted(names, key=lambda name: (name != "total_loss", name))

    @property
    def done(self) -> int:
        """Iterations known to be done."""
        return int(self.training[-1]["iteration"]) + 1 if self.training else 0


@dataclass
class RunFolder:
    """A run, read."""

    path: Path
    record: RunRecord = field(default_factory=lambda: RunRecord("", [], []))  # else empty
    cfg: CfgNode | None = None  # the whole config, if it is known
    # The four-step stages of the run, or a single one with number 0; empty without `cfg`.
    stages: list[ScheduledStage] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    # Data set -> ("Stage 1", "Evaluation" or the command -> recall of its proposals).
    recalls: dict[str, dict[str, RecallCurves]] = field(default_factory=dict)
    evaluations: list[EvaluationRecord] = field(default_factory=list)  # newest last
    problems: list[str] = field(default_factory=list)  # missing or damaged, a sentence each

    @property
    def tested(self) -> Sequence[str]:
        """The data sets that the run is tested on."""
        return () if self.cfg is None else tuple(self.cfg.DATASETS.TEST)

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        if not self.record.sessions:
            return (self.path / "model_final.pth").is_file()
        return self.record.complete


def read_run(path: str | os.PathLike[str]) -> RunFolder:
    """Read all that the report needs; what is missing is noted in `problems`.

    Raises:
        UserError: the folder holds no run.
    """
    folder = Path(path)
    if not any((folder / name).is_file() for name in _SIGNS):
        signs = ", ".join(_SIGNS)
        raise UserError(f"{folder} holds no run (no {signs}); give the OUTPUT_DIR of a training")
    run = RunFolder(folder)
    with _noted(run):
        run.record = RunRecord.load(folder) or run.record
    _read_config(run)
    run.metrics = read_metrics(folder / "metrics.json")
    for pattern, label in _RECALLS:
        for file in sorted(folder.glob(pattern)):
            with _noted(run):
                curves = RecallCurves.load(file)
                name = label or file.parent.name.replace("stage", "Stage ")
                run.recalls.setdefault(curves.dataset, {})[name] = curves
    for file in sorted(folder.glob(f"inference/*/{EVALUATION_FILE}"), key=os.path.getmtime):
        with _noted(run):
            run.evaluations.append(EvaluationRecord.load(file))
    return run


@contextmanager
def _noted(run: RunFolder) -> Iterator[None]:
    """Note what is wrong with a file that the ``with`` block reads."""
    try:
        yield
    except UserError as error:
        run.problems.append(f"{error}.")


def _read_config(run: RunFolder) -> None:
    file = run.path / "config.yaml"
    if run.record.config:
        text = run.record.config
    elif file.is_file():
        text = file.read_text(encoding="utf-8", errors="replace")
        run.problems.append(
            f"Without {RUN_FILE}, which frcnn train writes, plan, command line, environment and "
            "exact times are not known, and the config is that of the last start, even if that "
            "was an evaluation."
        )
    else:
        run.problems.append(f"Neither {RUN_FILE} nor config.yaml is there: the config is unknown.")
        return
    try:
        cfg = saved_config(text)
        if cfg.FOUR_STEP.ENABLED:
            run.stages = build_stages(cfg)
        else:
            phase = cfg.MODEL.PAPER_RCNN.PHASE
            name = _PHASES.get(phase, phase)
            run.stages = [ScheduledStage(0, name, phase, trains=(), iters=cfg.SOLVER.MAX_ITER)]
        run.cfg = cfg
    except Exception as error:  # yaml's and yacs' errors have no common base
        problem = f"{type(error).__name__}: {error}".partition("\n")[0]
        run.problems.append(f"The config is damaged: {problem}.")


def read_metrics(path: Path) -> Metrics:
    """Read a ``metrics.json``, also of a run that was killed, resumed or started anew.

    Detectron2 appends to it. Where iterations go back, a run was resumed or started anew: what the
    file has beyond that iteration is no longer part of the run. Lines that cannot be read, such as
    the torn last one of a killed run, are skipped.
    """
    metrics = Metrics()
    lines = path.read_bytes().splitlines() if path.is_file() else []
    for row in filter(None, map(_parse, lines)):
        iteration = int(row["iteration"])
        if "lr" not in row:  # Detectron2 logs it with every training value, and only there
            for name in row.keys() - {"iteration"}:
                _drop_measured(metrics, name, before=iteration)
                metrics.measured.setdefault(name, []).append((iteration, row[name]))
            continue
        if metrics.done > iteration:
            metrics.training = [r for r in metrics.training if r["iteration"] < iteration]
            for name in list(metrics.measured):
                _drop_measured(metrics, name, before=iteration + 1)
        metrics.training.append(row)
    return metrics


def _drop_measured(metrics: Metrics, name: str, before: int) -> None:
    """Keep what was measured earlier than an iteration: the rest belongs to an abandoned start."""
    kept = [point for point in metrics.measured.get(name, ()) if point[0] < before]
    metrics.measured.pop(name, None)
    if kept:
        metrics.measured[name] = kept


def _parse(line: bytes) -> dict[str, float] | None:
    try:
        row: Any = json.loads(line)
        return {k: v for k, v in row.items() if isinstance(v, (int, float))} | {
            "iteration": int(row["iteration"])
        }
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError):
        return None

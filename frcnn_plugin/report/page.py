"""The page: everything put together and written."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..atomic_files import write_text
from ..config import base_chain, plugin_cfg
from ..errors import UserError
from ..evaluation.record import EvaluationRecord
from ..four_step.stages import ScheduledStage
from .folder import RunFolder, name_of, read_run

_METRICS = {"11point": "11-point", "area": "area", "coco": "101-point"}
_RESULTS = {
    "bbox/AP50": "AP50",
    "bbox/AP": "AP",
    "proposals/R@0.5@300": "recall of 300 proposals at IoU .5",
    "proposals/AR@300": "average recall of 300 proposals",
}
# Keys that nobody sets: they follow from FOUR_STEP.
_DERIVED = {"SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.REFERENCE_WORLD_SIZE"}

Row = list[str]


def write_report(
    output_dir: str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> Path:
    """Write the report of a run, whole or not at all.

    Args:
        output_dir: ``OUTPUT_DIR`` of the run, finished or not.
        path: file to write; default: ``report.html`` in `output_dir`.

    Returns:
        The file.

    Raises:
        UserError: the folder holds no run, or the file cannot be written.
    """
    page = render(read_run(output_dir))
    target = Path(output_dir) / "report.html" if path is None else Path(path)
    try:
        write_text(target, page)
    except OSError as error:
        raise UserError(
            f"cannot write {target} ({error.strerror}); name another file with --output"
        ) from error
    return target


def render(run: RunFolder) -> str:
    """Return the page as text; it refers to nothing outside itself."""
    # Here, because training imports this folder for its recorder, and draws nothing.
    from . import figures

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of classes, files and data sets are anybody's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sessions = run.record.sessions if run.record else []
    eta = run.metrics.series("eta_seconds")
    return environment.get_template("page.html").render(
        run=run,
        figures=figures,
        title=_title(run),
        status=_status(run),
        headlines=_headlines(run),
        total=duration(sum(session.seconds for session in sessions)) if sessions else "",
        eta="" if run.finished or not eta else duration(eta[-1][1]),
        plan=_plan(run),
        config=_config(run) if run.cfg is not None else None,
        evaluations=[_evaluation(run, item) for item in run.evaluations],
        times=[_time(run, stage) for stage in run.stages],
        sessions=sessions,
        duration=duration,
        moment=lambda iso: f"{datetime.fromisoformat(iso):%d %B %Y, %H:%M} UTC",
        join=shlex.join,
    )


def _title(run: RunFolder) -> str:
    """Return words such as "Faster R-CNN, VGG16, stages 1 to 4"."""
    if run.cfg is None:
        return f"Training in {run.path.name or run.path}"
    first, last = run.stages[0], run.stages[-1]
    how = name_of(first) if first is last else f"stages {first.number} to {last.number}"
    return f"Faster R-CNN, {run.cfg.MODEL.BACKBONE.NAME}, {how}"


def _status(run: RunFolder) -> str:
    """Say how far the run came."""
    done = run.metrics.done
    if run.finished:
        return "finished"
    if not done:
        return "nothing logged yet"
    end = f" of {run.stages[-1].end:,}" if run.stages else ""
    stage = next((s for s in run.stages if s.start < done <= s.end), None)
    where = f"{done:,}{end} iterations" + (f", in {name_of(stage)}" if stage else "")
    last = run.record.sessions[-1] if run.record and run.record.sessions else None
    if last is not None and last.ended is not None:
        return f"stopped by an error after {where}"
    return f"interrupted, or still running: {where}"


def _results(run: RunFolder, stage: ScheduledStage, dataset: str) -> dict[str, float]:
    """Return what was measured after a stage, in percent, by name in metrics.json."""
    # Results at the end of the run have no prefix, and those of a single set have none either.
    prefix = f"stage{stage.number}/" if stage.number and not stage.completes else ""
    if run.cfg is not None and len(run.cfg.DATASETS.TEST) > 1:
        prefix += f"{dataset}/"
    found = {key: run.metrics.results.get(prefix + key) for key in _RESULTS}
    return {key: value for key, value in found.items() if value is not None}


def _headlines(run: RunFolder) -> list[tuple[float, str, str]]:
    """Return value, name and what it is of: per test set the AP50 of the latest stage that has one.

    Where no detector was evaluated, recall takes its place.
    """
    rows = []
    for dataset in run.cfg.DATASETS.TEST if run.cfg is not None else ():
        known = [
            (key, value, stage)
            for stage in run.stages
            for key, value in _results(run, stage, dataset).items()
            if key in ("bbox/AP50", "proposals/R@0.5@300")
        ]
        if known:
            # The last one, but any AP50 rather than recall.
            key, value, stage = max(enumerate(known), key=lambda x: (x[1][0] == "bbox/AP50", x[0]))[
                1
            ]
            early = stage is not run.stages[-1]
            rows.append(
                (value, _RESULTS[key], dataset + (f", after {name_of(stage)}" if early else ""))
            )
    return rows


def _plan(run: RunFolder) -> tuple[Row, list[Row]] | None:
    """Return the plan that training noted, with what was measured after each stage."""
    if not run.record or not run.record.plan:
        return None
    columns = [name for name in run.record.plan[0] if name != "checkpoint"]
    dataset = next(iter(run.cfg.DATASETS.TEST if run.cfg is not None else ()), "")
    rows = []
    for row, stage in zip(run.record.plan, run.stages, strict=False):
        results = _results(run, stage, dataset)
        words = [f"{_RESULTS[key]}: {value:.1f}" for key, value in results.items()]
        rows.append([*(row[name] for name in columns), "\n".join(words) or "–"])
    return [*columns, "result"], rows


def _config(run: RunFolder) -> dict[str, Any]:
    """Compare the config with the file it was started with, and with the defaults."""
    file, chain, changed, problem = run.record.config_file if run.record else "", [], [], ""
    if file:
        try:
            chain = [path.name for path in base_chain(file)]
            given = plugin_cfg()
            given.merge_from_file(file, allow_unsafe=False)
            changed = _differences(given, run.cfg)
        except Exception as error:  # deleted, moved or edited since
            problem = f"{type(error).__name__}: {error}".partition("\n")[0]
    defaults = _differences(plugin_cfg(), run.cfg)
    return {"chain": chain, "problem": problem, "changed": changed, "defaults": defaults}


def _differences(one: CfgNode, other: CfgNode) -> list[Row]:
    """Return key, value in one and in the other config, where these differ."""
    # By way of YAML, in which a tuple is a list, and dicts and infinities have one form.
    before, after = (_flat(yaml.safe_load(cfg.dump())) for cfg in (one, other))
    ignored = {"VERSION", *(_DERIVED if other.FOUR_STEP.ENABLED else ())}
    return [
        [key, *(repr(flat[key]) if key in flat else "–" for flat in (before, after))]
        for key in sorted({*before, *after} - ignored)
        if before.get(key) != after.get(key)
    ]


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return ``{"A.B": value}`` of nested mappings."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        part = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        flat.update(part)
    return flat


def _evaluation(run: RunFolder, item: EvaluationRecord) -> dict[str, Any]:
    """Return an evaluation with its table, and which one of the run it is."""
    metrics = list(dict.fromkeys(name for entry in item.classes for name in entry.ap50))
    columns = ["class", "objects", "detections", *(f"AP50, {_METRICS.get(n, n)}" for n in metrics)]
    rows = [
        [entry.name, f"{entry.num_objects:,}", f"{entry.num_detections:,}"]
        + [f"{entry.ap50[name]:.2f}" if name in entry.ap50 else "–" for name in metrics]
        for entry in item.classes
    ]
    # That of stage 2 lies where the final one will.
    after = "of a later evaluation, not of the run itself" if run.metrics.results else ""
    for stage in run.stages:
        if _results(run, stage, item.dataset).get("bbox/AP50") == item.results.get("AP50"):
            after = (
                "at the end of the run" if stage is run.stages[-1] else f"after {name_of(stage)}"
            )
    metric = _METRICS.get(item.metric, item.metric)
    return {"record": item, "after": after, "metric": metric, "columns": columns, "rows": rows}


def _time(run: RunFolder, stage: ScheduledStage) -> Row:
    """Return what one stage took; a dash where nothing is known."""
    seconds, key = 0.0, str(stage.number)
    for session in run.record.sessions if run.record else ():
        if key in session.ends:
            before = [end for end in session.ends.values() if end < session.ends[key]]
            seconds += session.ends[key] - max(before, default=0.0)
    done = stage.iters if seconds else max(0, min(run.metrics.done, stage.end) - stage.start)
    row = [name_of(stage), f"{done:,} of {stage.iters:,}"]
    for name in ("time", "data_time"):
        values = [value for _, value in run.metrics.series(name, stage)]
        row.append(f"{sum(values) / len(values):.4f} s" if values else "–")
    return [*row, duration(seconds) if seconds else "–"]


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds: "1:02:03"."""
    return str(timedelta(seconds=round(seconds)))

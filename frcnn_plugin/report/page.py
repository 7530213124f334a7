"""The page: everything put together and written."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..atomic_files import write_text
from ..config import plugin_cfg
from ..errors import UserError
from ..evaluation.record import EvaluationRecord
from ..four_step.stages import ScheduledStage
from .folder import RunFolder, name_of, read_run

_METRICS = {"11point": "11-point", "area": "area", "coco": "101-point"}
_RESULTS = ("bbox/AP50", "bbox/AP", "proposals/R@0.5@300", "proposals/AR@300")
_HEADLINES = {"bbox/AP50": "AP50", "proposals/R@0.5@300": "recall of 300 proposals at IoU .5"}


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
    import matplotlib

    from . import figures

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of classes, files and data sets are anybody's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sessions = run.record.sessions if run.record else []
    total = sum(session.seconds for session in sessions)
    eta = run.metrics.series("eta_seconds")
    with matplotlib.rc_context(figures.STYLE), warnings.catch_warnings():
        # Letters that Matplotlib's own font lacks: the browser draws the text.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        return environment.get_template("page.html").render(
            run=run,
            figures=figures,
            title=_title(run),
            status=_status(run),
            headlines=_headlines(run),
            total=duration(total) if total else "",
            eta="" if run.finished or not eta else duration(eta[-1][1]),
            plan=_plan(run),
            config=_differences(run.cfg) if run.cfg is not None else None,
            evaluations=[_evaluation(run, item) for item in run.evaluations],
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
    """Return value, name and what it is of: per test set the newest AP50, else recall."""
    rows = []
    for dataset in run.cfg.DATASETS.TEST if run.cfg is not None else ():
        for key, name in _HEADLINES.items():
            values = [(_results(run, stage, dataset).get(key), stage) for stage in run.stages]
            known = [(value, stage) for value, stage in values if value is not None]
            if known:
                value, stage = known[-1]
                of = dataset if stage is run.stages[-1] else f"{dataset}, after {name_of(stage)}"
                rows.append((value, name, of))
                break
    return rows


def _plan(run: RunFolder) -> list[list[str]]:
    """Return the plan that training noted, with what became of each stage: headings and rows."""
    noted = run.record.plan if run.record and run.record.plan else [{} for _ in run.stages]
    rows = [
        {"stage": name_of(stage), **row, "outcome": "\n".join(_outcome(run, stage))}
        for row, stage in zip(noted, run.stages, strict=False)
    ]
    for row in rows:
        row.pop("checkpoint", None)  # its name says nothing new
    return [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []


def _outcome(run: RunFolder, stage: ScheduledStage) -> Iterator[str]:
    """Yield how far a stage came, how long it took and what was measured after it."""
    seconds, key = 0.0, str(stage.number)
    for session in run.record.sessions if run.record else ():
        if key in session.ends:
            before = [end for end in session.ends.values() if end < session.ends[key]]
            seconds += session.ends[key] - max(before, default=0.0)
    done = stage.iters if seconds else max(0, min(run.metrics.done, stage.end) - stage.start)
    yield f"{done:,} of {stage.iters:,} iterations"
    for name, what in (("time", "each"), ("data_time", "of it for data")):
        values = [value for _, value in run.metrics.series(name, stage)]
        if values:
            yield f"{sum(values) / len(values):.4f} s {what}"
    if seconds:
        yield f"{duration(seconds)} in all"
    dataset = next(iter(run.cfg.DATASETS.TEST if run.cfg is not None else ()), "")
    for key, value in _results(run, stage, dataset).items():
        yield f"{key.partition('/')[2]} {value:.1f}"


def _differences(cfg: CfgNode) -> list[list[str]]:
    """Return key, default and value in the config where these two differ."""
    # By way of YAML, in which a tuple is a list, and dicts and infinities have one form.
    before, after = (_flat(yaml.safe_load(node.dump())) for node in (plugin_cfg(), cfg))
    return [
        [key, *(repr(flat[key]) if key in flat else "–" for flat in (before, after))]
        for key in sorted({*before, *after})
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


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds: "1:02:03"."""
    return str(timedelta(seconds=round(seconds)))

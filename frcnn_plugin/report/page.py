"""The page: everything put together and written."""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..atomic_files import write_text
from ..config import plugin_cfg
from ..config_files import flat_keys
from ..errors import UserError
from ..evaluation.proposals.recall import draw_recall
from ..evaluation.record import MIN_SCORE, EvaluationRecord
from ..four_step.stages import ScheduledStage
from .folder import RunFolder, name_of, read_run

_RESULTS = (
    "bbox/AP50",
    "bbox/AP",
    "segm/AP50",
    "segm/AP",
    "proposals/R@0.5@300",
    "proposals/AR@300",
)
_WEIGHTS = ("model_best.pth", "model_final.pth")
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
            f"cannot write {target} ({error.strerror or error}); name another file with --output"
        ) from error
    return target


def fill(template: str, **values: Any) -> str:
    """Fill the template of a page, a path in this package, with values of any kind."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,  # anybody may name classes, files and data sets
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def render(run: RunFolder) -> str:
    """Return the page as text; it refers to nothing outside itself."""
    # Here, because training imports this folder for its recorder, and draws nothing.
    import matplotlib

    from . import figures

    total = sum(session.seconds for session in run.record.sessions)
    with matplotlib.rc_context(figures.STYLE), warnings.catch_warnings():
        # Letters that Matplotlib's own font lacks: the browser draws the text.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        return fill(
            "report/page.html",
            language="en",
            run=run,
            figures=figures,
            draw_recall=draw_recall,
            title=_title(run),
            status=_status(run),
            headlines=_headlines(run),
            total=duration(total) if total else "",
            plan=_plan(run),
            weights=[name for name in _WEIGHTS if (run.path / name).is_file()],
            curves=_curves(run),
            config=_differences(run.cfg) if run.cfg is not None else None,
            evaluations=[_evaluation(run, item) for item in run.evaluations],
            min_score=MIN_SCORE,
            duration=duration,
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
    """Say how far the run got."""
    done = run.metrics.done
    if run.finished:
        return "finished"
    if not done:
        return "nothing logged yet"
    end = f" of {run.stages[-1].end:,}" if run.stages else ""
    stage = next((s for s in run.stages if s.start < done <= s.end), None)
    where = f"{done:,}{end} iterations" + (f", in {name_of(stage)}" if stage else "")
    if run.record.sessions and run.record.sessions[-1].ended is not None:
        return f"stopped by an error after {where}"
    return f"interrupted, or still running: {where}"


def _results(run: RunFolder, stage: ScheduledStage, dataset: str) -> dict[str, float]:
    """Return what was measured after a stage, in percent, by name in metrics.json."""
    # Results at the end of the run have no prefix, and those of a single set have none either.
    prefix = f"stage{stage.number}/" if stage.number and not stage.completes else ""
    if len(run.tested) > 1:
        prefix += f"{dataset}/"
    results = run.metrics.results
    return {key: results[prefix + key] for key in _RESULTS if prefix + key in results}


def _when(run: RunFolder, stage: ScheduledStage) -> str:
    return "at the end of the run" if stage is run.stages[-1] else f"after {name_of(stage)}"


def _headlines(run: RunFolder) -> list[tuple[float, str, str]]:
    """Return value, name and what it is of: per test set the newest AP50, else recall."""
    rows = []
    for dataset in run.tested:
        measured = [(_results(run, stage, dataset), stage) for stage in run.stages]
        for key, name in _HEADLINES.items():
            known = [(values[key], stage) for values, stage in measured if key in values]
            if known:
                value, stage = known[-1]
                rows.append((value, name, f"{dataset}, {_when(run, stage)}"))
                break
    return rows


def _curves(run: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """Return AP50 and AP, such as "stage2 AP50", where they were measured more than once."""
    return {
        name.replace("bbox/", "").replace("/", " "): points
        for name, points in run.metrics.measured.items()
        if name.endswith(("bbox/AP50", "bbox/AP", "segm/AP50", "segm/AP")) and len(points) > 1
    }


def _plan(run: RunFolder) -> list[list[str]]:
    """Return the plan, with what became of each stage: headings and rows."""
    noted = run.record.plan or [_single_plan(run.cfg) for _ in run.stages if run.cfg]
    rows = [
        {"stage": name_of(stage), **row, "outcome": "\n".join(_outcome(run, stage))}
        for row, stage in zip(noted, run.stages, strict=False)
    ]
    for row in rows:
        row.pop("checkpoint", None)  # its name says nothing new
    return [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []


def _single_plan(cfg: CfgNode) -> dict[str, str]:
    """Return the plan of a training without stages, which notes none."""
    solver = cfg.SOLVER
    steps = [step for step in solver.STEPS if step < solver.MAX_ITER]
    rates = [solver.BASE_LR * solver.GAMMA**k for k in range(len(steps) + 1)]
    ends = [*steps, solver.MAX_ITER]
    return {
        "starts from": Path(cfg.MODEL.WEIGHTS).name or "random weights",
        "iterations x images": f"{solver.MAX_ITER:,} x {solver.IMS_PER_BATCH}",
        "learning rate": ", ".join(f"{r:g} to {e:,}" for r, e in zip(rates, ends, strict=True)),
    }


def _outcome(run: RunFolder, stage: ScheduledStage) -> Iterator[str]:
    """Yield how far a stage got, how long it took and what was measured after it."""
    seconds, key = 0.0, str(stage.number)
    for session in run.record.sessions:
        if key in session.ends:
            before = [end for end in session.ends.values() if end < session.ends[key]]
            seconds += session.ends[key] - max(before, default=0.0)
    done = stage.iters if seconds else max(0, min(run.metrics.done, stage.end) - stage.start)
    yield f"{done:,} of {stage.iters:,} iterations"
    for name, what in (("time", "each"), ("data_time", "of it for data")):
        values = run.metrics.values(name, stage)
        if values:
            yield f"{sum(values) / len(values):.4f} s {what}"
    if seconds:
        yield f"{duration(seconds)} in total"
    for key, value in _results(run, stage, next(iter(run.tested), "")).items():
        short = key.removeprefix("bbox/").removeprefix("proposals/").replace("/", " ")
        yield f"{short} {value:.1f}"


def _differences(cfg: CfgNode) -> list[list[str]]:
    """Return key, default and value in the config where these two differ."""
    # Through YAML, in which a tuple is a list, and dicts and infinities have one form.
    before, after = (flat_keys(yaml.safe_load(node.dump())) for node in (plugin_cfg(), cfg))
    return [
        [key, *(repr(flat[key]) if key in flat else "–" for flat in (before, after))]
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def _evaluation(run: RunFolder, item: EvaluationRecord) -> dict[str, Any]:
    """Return an evaluation with its table, and which one of the run it is."""
    metrics = list(dict.fromkeys(name for entry in item.classes for name in entry.aps))
    rows = [
        [entry.name, f"{entry.num_objects:,}", f"{entry.num_detections:,}"]
        + [f"{entry.aps[name]:.2f}" if name in entry.aps else "–" for name in metrics]
        for entry in item.classes
    ]
    # The evaluation of stage 2 is in the same place as the final one.
    when = "of a later evaluation, not of the run itself" if run.metrics.results else ""
    for stage in run.stages:
        if _results(run, stage, item.dataset).get("bbox/AP50") == item.results.get("AP50"):
            when = _when(run, stage)
    columns = ["class", "objects", "detections", *metrics]
    return {"record": item, "when": when, "columns": columns, "rows": rows}


def duration(seconds: float) -> str:
    """Return hours, minutes and seconds: "1:02:03"."""
    return str(timedelta(seconds=round(seconds)))

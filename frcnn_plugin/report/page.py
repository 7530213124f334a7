"""The page: everything put together and written."""

from __future__ import annotations

import os
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..atomic_files import write_text
from ..errors import UserError
from ..evaluation.proposals.recall import RecallCurves
from ..evaluation.record import EvaluationRecord
from .config_diff import diff_config
from .figures import (
    MOST_PANELS,
    draw_precision_recall,
    draw_recalls,
    draw_training,
    without_repeats,
)
from .folder import RunFolder, read_run
from .pictures import LINE, make_picture
from .steps import time_steps
from .summary import data_of, duration, duration_of, eta_of, headlines, status_of, title_of

_METRICS = {"11point": "11-point", "area": "area", "coco": "101-point"}
_STEP_RESULTS = ("bbox/AP50", "bbox/AP", "proposals/R@0.5@300", "proposals/AR@300")


def write_report(
    output_dir: str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> Path:
    """Writes the report of a run, whole or not at all.

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
    """The page as text; it refers to nothing outside itself."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of classes, files and data sets are anybody's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    return environment.get_template("page.html").render(**_content(run))


def _content(run: RunFolder) -> dict[str, Any]:
    record, metrics = run.record, run.metrics
    timings = time_steps(run.steps, metrics, record)
    not_finite = metrics.not_finite()
    problems = list(run.problems)
    if not_finite:
        problems.append(f"{not_finite[0]} is not finite at iteration {not_finite[1]:,}: diverged.")
    config_file = record.config_file if record else None
    return {
        "title": title_of(run),
        "folder": str(run.path.resolve()),
        "status": status_of(run),
        "headlines": headlines(run),
        "data": data_of(run),
        "started": _time(record.sessions[0].started) if record and record.sessions else "",
        "duration_text": duration_of(run, timings),
        "eta": eta_of(run),
        "problems": problems,
        "plan": _plan(run),
        "diff": diff_config(run.config, config_file) if run.config else None,
        "training": draw_training(metrics, run.steps) if metrics.training else None,
        "recalls": [
            {"dataset": name, "plot": draw_recalls(curves), "rows": _recall_rows(curves)}
            for name, curves in ((n, without_repeats(c)) for n, c in run.recalls.items())
        ],
        "evaluations": [_evaluation(run, item) for item in run.evaluations],
        "most_panels": MOST_PANELS,
        "line": LINE,
        "timings": timings,
        "environment": record.sessions[-1].environment if record and record.sessions else {},
        "sessions": [
            {
                "started": _time(session.started),
                "first": session.first,
                "command": shlex.join(session.command),
                "ended": session.ended,
                "complete": session.complete,
            }
            for session in (record.sessions if record else ())
        ],
        "host_environment": run.host_environment,
        "last": {name: metrics.series(name)[-1][1] for name in metrics.losses()},
    }


def _plan(run: RunFolder) -> dict[str, Any] | None:
    """The plan, how far each step came, and what was measured behind it."""
    if not run.record or not run.record.plan:
        return None
    rows = []
    for row in run.record.plan:
        number = int(row["step"].split()[0])
        step = next((s for s in run.steps if s.number == number), None)
        if step is None:
            continue
        done = max(0, min(run.metrics.done, step.end) - step.first)
        # The end of a step need not be logged.
        last = any(
            span.step == number and span.ends is not None
            for session in run.record.sessions
            for span in session.spans
        )
        state = (
            "done" if last else f"{done:,} of {step.end - step.first:,}" if done else "not begun"
        )
        rows.append({**row, "state": state, "result": _step_result(run, number)})
    columns = [name for name in run.record.plan[0] if name != "checkpoint"]
    return {"columns": [*columns, "state", "result"], "rows": rows}


def _step_result(run: RunFolder, number: int) -> str:
    """AP or recall behind a step, on the first test set."""
    names = run.config.get("DATASETS.TEST") or [""]
    prefix = f"{names[0]}/" if len(names) > 1 else ""
    words = []
    for key in _STEP_RESULTS:
        keys = [f"stage{number}/{prefix}{key}"]
        if number == 4:  # the host's evaluation at the end
            keys.append(prefix + key)
        value = next((run.metrics.results[k] for k in keys if k in run.metrics.results), None)
        if value is not None:
            words.append(f"{key.partition('/')[2]} {value:.1f}")
    return "\n".join(words) or "–"


def _recall_rows(curves: dict[str, RecallCurves]) -> list[dict[str, Any]]:
    return [
        {
            "label": label,
            "count": count,
            "values": [100 * item.average_recall(count)]
            + [100 * item.at(count, iou) for iou in (0.5, 0.6, 0.7, 0.8, 0.9)],
            "mean_proposals": item.mean_proposals,
            "num_objects": item.num_objects,
        }
        for label, item in curves.items()
        for count in item.recall
    ]


def _evaluation(run: RunFolder, item: EvaluationRecord) -> dict[str, Any]:
    metrics = list(dict.fromkeys(name for entry in item.classes for name in entry.ap50))
    return {
        "record": item,
        "after": _after(run, item),
        "metric": _METRICS.get(item.metric, item.metric),
        "metrics": [(name, _METRICS.get(name, name)) for name in metrics],
        "plot": draw_precision_recall(item.classes) if item.classes else "",
        "num_with_objects": sum(entry.num_objects > 0 for entry in item.classes),
        "best": [make_picture(image) for image in item.best],
        "worst": [make_picture(image) for image in item.worst],
    }


def _after(run: RunFolder, item: EvaluationRecord) -> str:
    """Which evaluation of the run this is: step 2's lies where the final one will."""
    names = run.config.get("DATASETS.TEST") or []
    prefix = f"{item.dataset}/" if len(names) > 1 else ""
    for stage, words in (("", "at the end of the run"), ("stage2/", "after step 2 of 4")):
        if run.metrics.results.get(f"{stage}{prefix}bbox/AP50") == item.results.get("AP50"):
            return words
    return "of a later evaluation, not of the run itself" if run.metrics.results else ""


def _time(iso: str) -> str:
    return f"{datetime.fromisoformat(iso):%d %B %Y, %H:%M} UTC"

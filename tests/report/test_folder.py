"""Reading metrics.json, also of runs that were killed, resumed or started anew."""

from __future__ import annotations

import json
from pathlib import Path

from frcnn_plugin.four_step.stages import ScheduledStage
from frcnn_plugin.report.folder import read_metrics


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def row(iteration: int, loss: float) -> dict[str, float]:
    return {"iteration": iteration, "lr": 0.1, "total_loss": loss}


def test_nothing() -> None:
    metrics = read_metrics(Path("nowhere/metrics.json"))
    assert metrics.done == 0 and metrics.losses() == [] and metrics.series("lr") == []


def test_resumed_run_replaces_what_the_killed_one_had_logged_beyond(tmp_path: Path) -> None:
    """Killed at 79, resumed at 40, killed at 59: 79 is not part of the run."""
    file = write(
        tmp_path / "metrics.json",
        row(19, 4.0), row(39, 3.0), row(59, 2.5), row(79, 2.0), {"iteration": 80, "bbox/AP50": 9.0},
        row(59, 2.25),
    )  # fmt: skip
    metrics = read_metrics(file)
    assert metrics.series("total_loss") == [(19, 4.0), (39, 3.0), (59, 2.25)]
    assert metrics.results == {}
    assert metrics.done == 60


def test_results_written_after_a_later_iteration_stay(tmp_path: Path) -> None:
    """Detectron2's writer does so: the line of iteration 19 comes before that of iteration 5."""
    file = write(
        tmp_path / "metrics.json",
        row(19, 4.0), {"iteration": 5, "stage1/proposals/AR@300": 49.0}, row(39, 3.0),
    )  # fmt: skip
    metrics = read_metrics(file)
    assert metrics.results == {"stage1/proposals/AR@300": 49.0}
    assert metrics.series("total_loss") == [(19, 4.0), (39, 3.0)]
    stage = ScheduledStage(2, "detector", "fast_rcnn", trains=(), start=20, iters=20)
    assert metrics.series("total_loss", stage) == [(39, 3.0)]


def test_start_passes_over_the_run_before(tmp_path: Path) -> None:
    file = write(tmp_path / "metrics.json", row(19, 4.0), {"iteration": 20, "bbox/AP50": 9.0})
    start = file.stat().st_size
    with file.open("a") as stream:
        stream.write(json.dumps(row(39, 1.0)) + "\n")
    assert read_metrics(file, start).series("total_loss") == [(39, 1.0)]
    assert read_metrics(file, start).results == {}


def test_unreadable_lines(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    good = json.dumps(row(19, 4.0))
    file.write_bytes(f'{good}\n[1]\n"x"\n{{"lr": 1}}\n\n{good[:20]}'.encode() + b"\xff\xfe")
    metrics = read_metrics(file)
    assert metrics.unreadable == 4  # a list, a string, no iteration, torn; an empty line is none
    assert metrics.done == 20


def test_not_finite_names_the_first(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    file.write_text(
        '{"iteration": 19, "lr": 1, "total_loss": 1.0}\n'
        '{"iteration": 39, "lr": 1, "total_loss": Infinity}\n'
        '{"iteration": 59, "lr": 1, "total_loss": NaN}\n'
    )
    assert read_metrics(file).not_finite() == ("total_loss", 39)

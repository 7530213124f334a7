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
    assert metrics.done == 0 and metrics.losses() == [] and metrics.values("lr") == []


def test_resumed_run_replaces_what_the_killed_one_had_logged_beyond(tmp_path: Path) -> None:
    """Killed at 79, resumed at 40, killed at 59: 79 is not part of the run."""
    file = write(
        tmp_path / "metrics.json",
        row(19, 4.0), row(39, 3.0), row(59, 2.5), row(79, 2.0), {"iteration": 80, "bbox/AP50": 9.0},
        row(59, 2.25),
    )  # fmt: skip
    metrics = read_metrics(file)
    assert metrics.training == [row(19, 4.0), row(39, 3.0), row(59, 2.25)]
    assert metrics.results == {}
    assert metrics.done == 60


def test_all_values_that_were_measured_are_kept_in_order(tmp_path: Path) -> None:
    """Evaluated at 20, 40 and 60; resumed at 40, evaluated there again."""
    values = [{"iteration": at, "bbox/AP50": at / 2} for at in (20, 40, 60)]
    again = {"iteration": 40, "bbox/AP50": 21.0}
    file = write(
        tmp_path / "metrics.json",
        row(19, 4.0), values[0], row(39, 3.0), values[1], row(59, 2.0), values[2],
        row(39, 3.0), again,
    )  # fmt: skip
    metrics = read_metrics(file)
    assert metrics.measured == {"bbox/AP50": [(20, 10.0), (40, 21.0)]}
    assert metrics.results == {"bbox/AP50": 21.0}


def test_results_written_after_a_later_iteration_stay(tmp_path: Path) -> None:
    """Detectron2's writer does so: the line of iteration 19 comes before that of iteration 5."""
    file = write(
        tmp_path / "metrics.json",
        row(19, 4.0), {"iteration": 5, "stage1/proposals/AR@300": 49.0}, row(39, 3.0),
    )  # fmt: skip
    metrics = read_metrics(file)
    assert metrics.results == {"stage1/proposals/AR@300": 49.0}
    assert metrics.values("total_loss") == [4.0, 3.0]
    stage = ScheduledStage(2, "detector", "fast_rcnn", trains=(), start=20, iters=20)
    assert metrics.values("total_loss", stage) == [3.0]


def test_run_started_anew_in_the_same_folder(tmp_path: Path) -> None:
    file = write(
        tmp_path / "metrics.json",
        row(19, 4.0), row(39, 2.0), {"iteration": 40, "bbox/AP50": 9.0}, row(19, 1.0),
    )  # fmt: skip
    assert read_metrics(file).training == [row(19, 1.0)]
    assert read_metrics(file).results == {}


def test_unreadable_lines_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    good = json.dumps(row(19, 4.0))
    file.write_bytes(f'{good}\n[1]\n"x"\n{{"lr": 1}}\n\n{good[:20]}'.encode() + b"\xff\xfe")
    metrics = read_metrics(file)
    # A list, a string, no iteration, an empty line, a torn one.
    assert metrics.training == [row(19, 4.0)] and metrics.results == {}

"""The output folder: free or resumable, writable."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..checkpoint.read import peek
from ..errors import UserError
from .finding import Finding, error, ok, warning
from .planned_run import PlannedRun

_SUBJECT = "output"


def check_output(run: PlannedRun) -> Iterator[Finding]:
    """Check that ``OUTPUT_DIR`` is free, or that the run in it is what the user means."""
    if run.eval_only:
        return
    folder = Path(run.cfg.OUTPUT_DIR)
    last = folder / "last_checkpoint"
    if last.exists() and not (run.resume or run.overwrite):
        yield error(
            _SUBJECT,
            f"OUTPUT_DIR {folder} holds a run already: go on with it (--resume), start anew and "
            "lose it (--overwrite), or choose another OUTPUT_DIR",
        )
        return
    problem = _why_not_writable(folder)
    if problem:
        yield error(
            _SUBJECT,
            f"OUTPUT_DIR {folder} cannot be written to ({problem})",
            "Give another one, for example OUTPUT_DIR /tmp/run",
        )
    elif last.exists() and run.resume:
        yield from _resumed(run, last)
    elif last.exists():
        yield warning(_SUBJECT, f"the run in {folder} is overwritten (--overwrite)")
    elif run.resume:
        yield warning(
            _SUBJECT,
            f"--resume, but there is no run in {folder}: training starts at iteration 0",
            "If there should be one, check OUTPUT_DIR",
        )
    elif (folder / "metrics.json").exists():
        yield warning(
            _SUBJECT,
            f"{folder} holds the log of another run (metrics.json), which would be continued",
            "Choose another OUTPUT_DIR",
        )
    else:
        yield ok(_SUBJECT, f"OUTPUT_DIR {folder} is free")


def nearest_folder(path: Path) -> Path:
    """Return the path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    return next((p for p in (path, *path.parents) if p.exists()), path)


def resumed_iteration(run: PlannedRun) -> int:
    """Return the iteration that training starts with: 0 unless a run is resumed."""
    last = Path(run.cfg.OUTPUT_DIR) / "last_checkpoint"
    if run.eval_only or not run.resume or not last.is_file():
        return 0
    try:
        iteration = peek(last.parent / last.read_text().strip()).iteration
    except UserError:  # the check of the weights will say what is wrong with it
        return 0
    return 0 if iteration is None else iteration + 1


def _resumed(run: PlannedRun, last: Path) -> Iterator[Finding]:
    file = last.parent / last.read_text().strip()
    if not file.is_file():
        return  # check_weights says what is missing
    start, end = resumed_iteration(run), run.scaled.SOLVER.MAX_ITER
    if start >= end:
        yield warning(
            _SUBJECT,
            f"the run in {last.parent} is finished ({file.name}, iteration {start:,} of {end:,}): "
            "nothing is left to train",
        )
    else:
        yield ok(_SUBJECT, f"resuming from {file} at iteration {start:,} of {end:,}")


def _why_not_writable(folder: Path) -> str:
    """Return what the system says when a file is written where the folder is or would be made."""
    try:
        # Trying is the only test that knows of read-only disks and quotas.
        with tempfile.TemporaryFile(dir=nearest_folder(folder)):
            return ""
    except OSError as e:
        return e.strerror or str(e)

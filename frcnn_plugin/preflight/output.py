"""Whether a run may write to ``OUTPUT_DIR``, and what is in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..checkpoint.read import peek
from ..engine.run_folder import LOCK_FILE
from ..engine.same_run import check_config
from ..errors import UserError
from .finding import Finding, Subject
from .planned_run import PlannedRun

_OUTPUT = Subject("output")


def check_output(run: PlannedRun) -> Iterator[Finding]:
    """Check that ``OUTPUT_DIR`` is free, or that the run in it is what the user means."""
    try:
        last = None if run.eval_only else run.last_checkpoint
    except UserError:  # damaged, as the check of the weights will say
        return
    folder = Path(run.cfg.OUTPUT_DIR)
    problem = _why_not_writable(folder)
    if last and not (run.resume or run.overwrite):
        going_on = ", which may still be going on" if (folder / LOCK_FILE).exists() else ""
        yield _OUTPUT.error(
            f"OUTPUT_DIR {folder} holds a run already{going_on}: continue it (--resume), start "
            "again and lose it (--overwrite), or choose another OUTPUT_DIR"
        )
    elif problem:
        yield _OUTPUT.error(
            f"OUTPUT_DIR {folder} cannot be written to ({problem})",
            "Give another one, for example OUTPUT_DIR /tmp/run",
        )
    elif run.eval_only:
        return
    elif last and run.resume:
        yield from _resumed(run, last)
    elif last:
        yield _OUTPUT.warning(f"the run in {folder} is overwritten (--overwrite)")
    elif run.resume:
        there = sorted(file.name for file in folder.glob("model_*.pth"))
        lost = f"; {there[-1]} is there, but no last_checkpoint that names it" if there else ""
        yield _OUTPUT.warning(
            f"--resume, but there is no run in {folder}: training starts at iteration 0{lost}",
            f"To continue, write {there[-1]} into {folder / 'last_checkpoint'}"
            if there
            else "If there should be one, check OUTPUT_DIR",
        )
    elif (folder / "metrics.json").exists():
        yield _OUTPUT.warning(
            f"{folder} holds the log of another run (metrics.json), which would be continued",
            "Choose another OUTPUT_DIR",
        )
    else:
        yield _OUTPUT.ok(f"OUTPUT_DIR {folder} is free")


def _resumed(run: PlannedRun, file: Path) -> Iterator[Finding]:
    try:
        found = peek(file)
    except UserError:  # missing or damaged, as the check of the weights will say
        return
    try:
        check_config(run.scaled, found, run.num_processes)
    except UserError as e:
        yield _OUTPUT.error(str(e))
        return
    start, end = 0 if found.iteration is None else found.iteration + 1, run.scaled.SOLVER.MAX_ITER
    if start >= end:
        yield _OUTPUT.warning(
            f"the run in {file.parent} is finished ({file.name}, iteration {start:,} of {end:,}): "
            "nothing is left to train"
        )
    else:
        yield _OUTPUT.ok(f"resuming from {file} at iteration {start:,} of {end:,}")


def nearest_folder(path: Path) -> Path:
    """Return the path itself, or the nearest folder above it that exists."""
    path = path.absolute()
    return next((p for p in (path, *path.parents) if os.path.exists(p)), path)


def _why_not_writable(folder: Path) -> str:
    """Return what the system says when a file is written where the folder is or would be made."""
    try:
        with suppress(FileNotFoundError):
            folder.stat()  # names that are too long
        # Trying is the only test that knows about read-only disks and quotas.
        with tempfile.TemporaryFile(dir=nearest_folder(folder)):
            return ""
    except OSError as e:
        return e.strerror or str(e)

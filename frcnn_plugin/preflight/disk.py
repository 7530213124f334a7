"""Disk space for what a run writes: checkpoints, and what four-step training adds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from ..four_step.stages import build_stages
from .finding import Finding, error, ok, plural, warning
from .output import nearest_folder, resumed_iteration
from .planned_run import PlannedRun

_GIB = 2**30
_FLOAT = 4  # bytes
_PROPOSAL = 5 * _FLOAT  # four coordinates and a logit
_TIGHT = 0.8  # part of the free space from which on it is worth a warning


def check_disk(run: PlannedRun) -> Iterator[Finding]:
    """Compare what the run writes with what is free."""
    if run.eval_only:
        return
    folder = nearest_folder(Path(run.cfg.OUTPUT_DIR))
    free = shutil.disk_usage(folder).free
    sizes, others = checkpoints(run), stage_files(run)
    need = sum(sizes) + others
    text = (
        f"the run writes up to {_text(need)} ({plural(len(sizes), 'checkpoint')} of up to "
        f"{_text(max(sizes))}) and {_text(free)} are free in {folder}"
    )
    if need <= _TIGHT * free:
        yield ok("disk", text)
        return
    fix = "Free some, or choose another OUTPUT_DIR"
    room = max(1, int((_TIGHT * free - others) // max(sizes)) - 1)  # beside the final one
    if room < len(sizes) - 1:
        fix += f", or keep fewer: SOLVER.CHECKPOINTS_KEPT {room}"
    yield (error if need > free else warning)("disk", text, fix)


def checkpoints(run: PlannedRun) -> list[int]:
    """Bytes of the checkpoints that stay: the newest periodic ones, the best, and the final one."""
    cfg, start = run.scaled, resumed_iteration(run)
    period, end = max(1, cfg.SOLVER.CHECKPOINT_PERIOD), cfg.SOLVER.MAX_ITER
    iterations = [i for i in range(period - 1, end, period) if i >= start]
    sizes = [checkpoint_bytes(run, i) for i in iterations][-cfg.SOLVER.CHECKPOINTS_KEPT :]
    # Four-step training keeps the best of stage 2 beside that of stage 4.
    number = 1 + cfg.FOUR_STEP.ENABLED if cfg.TEST.EVAL_PERIOD > 0 else 0
    best = sizes[-1:] * number
    return [*sizes, *best, checkpoint_bytes(run, end - 1)]


def checkpoint_bytes(run: PlannedRun, iteration: int) -> int:
    """Return the size of the checkpoint of an iteration.

    It holds all weights and, for those that train at that moment, the momentum: parameters x 4
    bytes x 2 if everything trains.
    """
    cfg = run.scaled
    parts: tuple[str, ...] = ("",)
    if cfg.FOUR_STEP.ENABLED:
        stages = build_stages(cfg)
        stage = next((s for s in stages if iteration < s.end), stages[-1])
        parts = tuple(f"{name}." for name in stage.trains)
    named = list(run.model.named_parameters())
    trained = sum(p.numel() for n, p in named if p.requires_grad and n.startswith(parts))
    return (sum(p.numel() for _, p in named) + trained) * _FLOAT


def stage_files(run: PlannedRun) -> int:
    """Bytes of what four-step training adds: a file per stage, proposals, initial weights."""
    cfg = run.scaled
    if not cfg.FOUR_STEP.ENABLED:
        return 0
    total = sum(p.numel() for p in run.model.parameters()) * _FLOAT  # initial_weights.pth
    copies = 2 if cfg.FOUR_STEP.MIRRORED_PROPOSALS == "recompute" else 1
    images = copies * sum(map(run.size, run.train)) + sum(map(run.size, run.test))
    for stage in build_stages(cfg):
        total += checkpoint_bytes(run, stage.end - 1)
        if stage.phase == "rpn":
            total += images * cfg.FOUR_STEP.POST_NMS_TOPK * _PROPOSAL
    return total


def _text(size: float) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.1f} MiB"

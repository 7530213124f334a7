"""Memory: what was measured, beside what is free.

Nothing is estimated. The peaks are those of docs/benchmarks.md: one process, a CPU, VGG16 at its
full width, images of 600x1000 pixels. Nothing is said of what was not measured: other networks,
smaller images, GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from detectron2.config import CfgNode

from ..config import plugin_cfg
from .finding import Finding, ok, plural, warning
from .planned_run import PlannedRun

_GIB = 2**30
_SHORT_SIDE, _LONG_SIDE = 600, 1000
# What runs: images that pass the network together, and the peak in MiB.
_MEASURED = {
    "inference": (1, 1719),  # "Inference", ours
    "joint training": (1, 3076),  # "Training", ours
    "four-step training": (2, 4261),  # "What four-step training costs ...", stage 2
}


def check_memory(run: PlannedRun) -> Iterator[Finding]:
    """Compare the measured peak of such a run with what is free on this machine."""
    if not _is_like_the_measured(run):
        return
    what = "inference" if run.eval_only else "joint training"
    if run.cfg.FOUR_STEP.ENABLED and not run.eval_only:
        what = "four-step training"
    images, mib = _MEASURED[what]
    need, free = mib * 2**20, free_ram()
    text = (
        f"{what} of VGG16 took {need / _GIB:.1f} GiB per process, measured with "
        f"{plural(images, 'image')} of {_SHORT_SIDE}x{_LONG_SIDE} pixels"
    )
    if free is None:
        yield ok("memory", text)
    elif need * run.processes_here <= free:
        yield ok("memory", f"{text}; {free / _GIB:.1f} GiB of RAM are free")
    else:
        yield warning(
            "memory",
            f"{text}, but only {free / _GIB:.1f} GiB of RAM are free for "
            f"{plural(run.processes_here, 'process')}",
            f"If memory runs out, lower {_keys(run)}",
        )


def free_ram() -> int | None:
    """Return the bytes of RAM that can be taken without swapping; None if the system keeps it."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError):
        return None


def _is_like_the_measured(run: PlannedRun) -> bool:
    model, full = run.cfg.MODEL, plugin_cfg().MODEL
    short, long = _sides(run.cfg, run.eval_only)
    network = (model.META_ARCHITECTURE, model.BACKBONE.NAME, model.ROI_BOX_HEAD.FC_DIM)
    return (
        model.DEVICE == "cpu"
        and network == ("PaperRCNN", "VGG16", 4096)
        and model.VGG.CHANNELS == full.VGG.CHANNELS
        and run.model_cfg.MODEL.PAPER_RCNN.PHASE == "joint"
        and short >= _SHORT_SIDE
        and long >= _LONG_SIDE
    )


def _sides(cfg: CfgNode, eval_only: bool) -> tuple[int, int]:
    node = cfg.INPUT
    if eval_only:
        return node.MIN_SIZE_TEST, node.MAX_SIZE_TEST
    return max(node.MIN_SIZE_TRAIN), node.MAX_SIZE_TRAIN


def _keys(run: PlannedRun) -> str:
    node = run.cfg.INPUT
    if run.eval_only:
        keys = [f"INPUT.MIN_SIZE_TEST (now {node.MIN_SIZE_TEST})"]
    else:
        keys = [
            f"INPUT.MIN_SIZE_TRAIN (now {tuple(node.MIN_SIZE_TRAIN)})",
            "FOUR_STEP.IMS_PER_BATCH" if run.cfg.FOUR_STEP.ENABLED else "SOLVER.IMS_PER_BATCH",
        ]
    return " or ".join(keys) + (" or --num-gpus" if run.processes_here > 1 else "")

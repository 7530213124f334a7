"""What a run needs of the machine: disk space and memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..four_step.stages import build_stages
from .finding import Finding, Subject, plural
from .output import nearest_folder
from .planned_run import PlannedRun

_DISK = Subject("disk")
_MEMORY = Subject("memory")
_SCHEDULE = Subject("schedule")

_GIB = 2**30
_FLOAT = 4  # bytes
_PROPOSAL = 5 * _FLOAT  # four coordinates and a logit
_TIGHT = 0.8  # the share of the free space from which on a warning is due

# Peaks of docs/benchmarks.md: one process on a CPU, VGG16 at its full width. Nothing is estimated,
# so nothing is said about what was not measured: other networks, smaller images, GPUs.
_SHORT_SIDE, _LONG_SIDE = 600, 1000
# What runs: images that pass through the network together, and the peak in MiB.
_MEASURED = {
    "inference": (1, 1719),  # "Inference", ours
    "joint training": (1, 3076),  # "Training", ours
    "four-step training": (2, 4261),  # "What four-step training costs ...", stage 2
}
# Seconds that an iteration of them takes on two cores, and hours after which a checkpoint is due.
_SECONDS = {"joint training": 3.0, "four-step training": 10.3}
_LONG = 8.0
_SHM = Path("/dev/shm")


# ---- disk -----------------------------------------------------------------------------------


def check_disk(run: PlannedRun) -> Iterator[Finding]:
    """Compare what the run writes with what is free."""
    if run.eval_only:
        return
    folder = nearest_folder(Path(run.cfg.OUTPUT_DIR))
    free = shutil.disk_usage(folder).free
    number, size = number_of_checkpoints(run), checkpoint_bytes(run)
    need = number * size + proposal_bytes(run)
    text = (
        f"the run writes up to {_text(need)} ({plural(number, 'checkpoint')} of up to "
        f"{_text(size)}) and {_text(free)} are free in {folder}"
    )
    if need <= _TIGHT * free:
        yield _DISK.ok(text)
    else:
        fix = "Free some, or choose another OUTPUT_DIR, or lower SOLVER.CHECKPOINTS_KEPT"
        yield (_DISK.error if need > free else _DISK.warning)(text, fix)


def number_of_checkpoints(run: PlannedRun) -> int:
    """Count the files of weights that stay."""
    solver, four_step = run.scaled.SOLVER, run.cfg.FOUR_STEP.ENABLED
    periodic = solver.MAX_ITER // max(1, solver.CHECKPOINT_PERIOD)
    kept = min(periodic, solver.CHECKPOINTS_KEPT or periodic)
    # Four-step training has two detectors, and keeps its initial weights and the end of each stage.
    best = 1 + four_step if run.cfg.TEST.EVAL_PERIOD > 0 else 0
    return kept + 1 + best + (5 if four_step else 0)


def checkpoint_bytes(run: PlannedRun) -> int:
    """Return the most that a checkpoint takes: all weights, and the momentum of what trains."""
    parameters = list(run.model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return (sum(p.numel() for p in parameters) + trained) * _FLOAT


def proposal_bytes(run: PlannedRun) -> int:
    """Return what the proposals take that four-step training caches."""
    cfg = run.cfg
    if not cfg.FOUR_STEP.ENABLED:
        return 0
    copies = 2 if cfg.FOUR_STEP.MIRRORED_PROPOSALS == "recompute" else 1
    images = copies * sum(map(run.size, run.train)) + sum(map(run.size, run.test))
    rpn_stages = sum(stage.phase == "rpn" for stage in build_stages(cfg))
    return rpn_stages * images * cfg.FOUR_STEP.POST_NMS_TOPK * _PROPOSAL


def _text(size: float) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.1f} MiB"


# ---- memory ---------------------------------------------------------------------------------


def check_memory(run: PlannedRun) -> Iterator[Finding]:
    """Compare the measured peak of such a run with what is free on this machine."""
    free = free_ram()
    if free is None or not _is_like_the_measured(run):
        return
    what = _what_runs(run)
    images, mib = _MEASURED[what]
    text = (
        f"{what} of VGG16 took {mib / 1024:.1f} GiB per process, measured with "
        f"{plural(images, 'image')} of {_SHORT_SIDE}x{_LONG_SIDE} pixels; {_text(free)} of RAM are "
        f"free for {plural(run.processes_here, 'process')}"
    )
    if mib * 2**20 * run.processes_here <= free:
        yield _MEMORY.ok(text)
    else:
        yield _MEMORY.warning(text, 'If it runs out, see docs/troubleshooting.md, "Out of memory"')


def check_hours(run: PlannedRun) -> Iterator[Finding]:
    """Say how long a run on the CPU may take, and how much of it an interruption would lose."""
    if run.eval_only or not _is_like_the_measured(run):
        return
    solver, seconds = run.scaled.SOLVER, _SECONDS[_what_runs(run)]
    period = min(solver.CHECKPOINT_PERIOD, solver.MAX_ITER)
    hours, whole = (seconds * iterations / 3600 for iterations in (period, solver.MAX_ITER))
    if hours > _LONG:
        yield _SCHEDULE.warning(
            f"on a CPU, where an iteration of VGG16 took up to {seconds:g} s on two cores, "
            f"training takes about {whole:,.0f} hours, with a checkpoint every {hours:,.0f} "
            f"(SOLVER.CHECKPOINT_PERIOD {solver.CHECKPOINT_PERIOD})",
            f"Train on a GPU, or type SOLVER.CHECKPOINT_PERIOD {int(3600 / seconds / 100) * 100}",
        )


def check_workers(run: PlannedRun) -> Iterator[Finding]:
    """Compare the workers that load images with the cores, and their images with /dev/shm."""
    workers = run.scaled.DATALOADER.NUM_WORKERS
    if run.eval_only or workers == 0:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if workers * run.processes_here > (cores or 1):
        yield _MEMORY.warning(
            f"DATALOADER.NUM_WORKERS {workers} in {plural(run.processes_here, 'process')} on "
            f"{plural(cores or 1, 'CPU core')}: workers compete for them",
            f"Type DATALOADER.NUM_WORKERS {max(1, (cores or 1) // run.processes_here)}",
        )
    if not _SHM.is_dir():  # not Linux
        return
    free = shutil.disk_usage(_SHM).free
    # Every worker prepares two batches ahead; the process holds two more.
    need = run.processes_here * (2 * workers + 2) * batch_bytes(run)
    if need > free:
        most = int(free / batch_bytes(run) / run.processes_here - 2) // 2
        yield _MEMORY.error(
            f"DATALOADER.NUM_WORKERS {workers}: batches that are waiting take up to {_text(need)} "
            f"of {_SHM}, where {_text(free)} are free; when it is full, training hangs",
            f"Start the container with more (docker run --shm-size=1g), or type "
            f"DATALOADER.NUM_WORKERS {max(0, most)}",
        )


def batch_bytes(run: PlannedRun) -> int:
    """Return the most that the images of a batch of one process take."""
    cfg = run.scaled
    images = cfg.SOLVER.IMS_PER_BATCH // run.num_processes
    if cfg.FOUR_STEP.ENABLED:
        images = max(stage.images for stage in build_stages(cfg))
    elif not cfg.DATALOADER.MIRRORED_COPIES and cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        images = 1  # Detectron2 groups them later
    short, long = max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN
    bytes_per_value = _FLOAT if cfg.INPUT.RESIZE == "opencv" else 1
    return max(1, images) * len(cfg.MODEL.PIXEL_MEAN) * min(short, long) * long * bytes_per_value


def _what_runs(run: PlannedRun) -> str:
    if run.eval_only:
        return "inference"
    return "four-step training" if run.cfg.FOUR_STEP.ENABLED else "joint training"


def free_ram() -> int | None:
    """Return the bytes of RAM that can be taken without swapping; None if that is not known."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            kib = next(line.split()[1] for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return None
    return int(kib) * 1024


def _is_like_the_measured(run: PlannedRun) -> bool:
    model, sizes = run.cfg.MODEL, run.cfg.INPUT
    network = (model.META_ARCHITECTURE, model.BACKBONE.NAME, model.ROI_BOX_HEAD.FC_DIM)
    if run.eval_only:
        short, long = sizes.MIN_SIZE_TEST, sizes.MAX_SIZE_TEST
    else:
        short, long = max(sizes.MIN_SIZE_TRAIN), sizes.MAX_SIZE_TRAIN
    return (
        model.DEVICE == "cpu"
        and network == ("PaperRCNN", "VGG16", 4096)
        and model.PAPER_VGG.CHANNELS == [64, 128, 256, 512, 512]
        and run.model_cfg.MODEL.PAPER_RCNN.PHASE == "joint"
        and short >= _SHORT_SIDE
        and long >= _LONG_SIDE
    )

"""Out of memory: which keys to lower, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from ...errors import UserError
from ...process import peak_memory

# torch raises a RuntimeError of its own class on GPUs, a plain one on CPUs.
_SIGNS = (
    "out of memory",
    "DefaultCPUAllocator",
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_GIB = 1024**3


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that a GPU's memory, or the machine's, ran out."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextmanager
def memory_errors_explained(
    cfg: CfgNode, batch: Sequence[dict[str, Any]] = (), phase: str = "joint"
) -> Iterator[None]:
    """Turn "out of memory" into a message that says what to lower.

    Args:
        cfg: config of the run.
        batch: see :func:`explain_out_of_memory`.
        phase: see there.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            raise
        raise UserError(explain_out_of_memory(cfg, e, batch, phase)) from None


def explain_out_of_memory(
    cfg: CfgNode,
    error: BaseException,
    batch: Sequence[dict[str, Any]] = (),
    phase: str = "joint",
) -> str:
    """Lay out what to lower.

    Args:
        cfg: config of the run.
        error: what was raised.
        batch: the images it happened with, as the model gets them; none if it was not in training.
        phase: phase of PaperRCNN: the RPN alone has no RoIs.

    Returns:
        several lines: the batch, the peak, the keys to lower with their values, in order of effect.
    """
    where = "the GPU" if cfg.MODEL.DEVICE.startswith("cuda") else "this machine"
    lines = [f"{where} ran out of memory ({_first_line(error)}). Peak so far: {_peak(cfg)}"]
    if batch:
        sizes = ", ".join("x".join(map(str, reversed(x["image"].shape[-2:]))) for x in batch)
        lines.append(f"The batch: {len(batch)} images of {sizes} pixels (as the network sees them)")
    lines.append("Lower one of these, in order of effect:")
    lines += [
        f"  {number}. {key}"
        for number, key in enumerate(_keys(cfg, phase, in_training=bool(batch)), start=1)
    ]
    last = Path(cfg.OUTPUT_DIR) / "last_checkpoint"
    if last.is_file():
        lines.append(
            f"The last checkpoint, {last.read_text().strip()}, is whole: go on from it with "
            "--resume and the lower values"
        )
    return "\n".join(lines)


def _keys(cfg: CfgNode, phase: str, *, in_training: bool) -> list[str]:
    if not in_training:
        return [
            f"INPUT.MIN_SIZE_TEST (now {cfg.INPUT.MIN_SIZE_TEST}) and INPUT.MAX_SIZE_TEST "
            f"(now {cfg.INPUT.MAX_SIZE_TEST})",
            f"MODEL.RPN.PRE_NMS_TOPK_TEST (now {cfg.MODEL.RPN.PRE_NMS_TOPK_TEST}) and, in four "
            f"steps, FOUR_STEP.PRE_NMS_TOPK (now {cfg.FOUR_STEP.PRE_NMS_TOPK})",
        ]
    keys = [
        f"INPUT.MIN_SIZE_TRAIN (now {tuple(cfg.INPUT.MIN_SIZE_TRAIN)}) and INPUT.MAX_SIZE_TRAIN "
        f"(now {cfg.INPUT.MAX_SIZE_TRAIN}): memory grows with the area. Lower the _TEST keys alike"
    ]
    if cfg.FOUR_STEP.ENABLED:
        keys.append(
            f"FOUR_STEP.IMS_PER_BATCH (now {list(cfg.FOUR_STEP.IMS_PER_BATCH)}: per stage, images "
            "per iteration and process); the schedule is another one then, so start a new run"
        )
    elif cfg.SOLVER.IMS_PER_BATCH > 1:
        keys.append(
            f"SOLVER.IMS_PER_BATCH (now {cfg.SOLVER.IMS_PER_BATCH}), and SOLVER.BASE_LR (now "
            f"{cfg.SOLVER.BASE_LR:g}) in proportion"
        )
    if phase != "rpn":
        keys.append(
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE (now "
            f"{cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE} RoIs per image)"
        )
    if cfg.MODEL.DEVICE.startswith("cuda") and not cfg.SOLVER.AMP.ENABLED:
        keys.append("or set SOLVER.AMP.ENABLED True (now False): mixed precision")
    return keys


def _peak(cfg: CfgNode) -> str:
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    peak = peak_memory("cuda" if on_gpu else "cpu")
    if peak is None:
        return "not known"
    if not on_gpu:
        return f"{peak / _GIB:.1f} GiB (this process)"
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return f"{peak / _GIB:.1f} of {total / _GIB:.1f} GiB"


def _first_line(error: BaseException) -> str:
    """Return what the allocator said, without the addresses of its sources and its advice."""
    line = str(error).strip().partition("\n")[0]
    line = line[max(0, line.find("DefaultCPUAllocator")) :]
    for end in (" GPU ", " Error code", " If reserved"):
        line = line.partition(end)[0]
    return line.rstrip(". ")[:160] or type(error).__name__

"""Out of memory: which keys to lower, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ...data.loading.bad_images import explain_dead_worker
from ...errors import UserError

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


@contextmanager
def memory_errors_explained(cfg: CfgNode, batch: Sequence[dict[str, Any]] = ()) -> Iterator[None]:
    """Turn "out of memory" into a message that says what to lower.

    Args:
        cfg: config of the run.
        batch: the images, as the model gets them; none outside of training. It may be filled
            within the ``with`` block.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if explanation := explain_dead_worker(e):  # torch raises it wherever the code happens to be
            raise UserError(explanation) from None
        if not is_out_of_memory(e):
            raise
        raise UserError(explain_out_of_memory(cfg, e, batch)) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that a GPU's memory, or the machine's, ran out."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def explain_out_of_memory(
    cfg: CfgNode, error: BaseException, batch: Sequence[dict[str, Any]] = ()
) -> str:
    """Return what happened, in several lines, and which keys to lower, in order of effect."""
    where = "the GPU" if cfg.MODEL.DEVICE.startswith("cuda") else "this machine"
    reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    lines = [f"{where} ran out of memory ({reason})"]
    if batch:
        sizes = ", ".join("x".join(map(str, reversed(x["image"].shape[-2:]))) for x in batch)
        lines.append(f"The batch: {len(batch)} images of {sizes} pixels (as the network sees them)")
    lines.append("Lower one of these, in order of effect:")
    keys = _keys_of_training(cfg) if batch else _keys_of_inference(cfg)
    lines += [f"  {number}. {key}" for number, key in enumerate(keys, start=1)]
    last = Path(cfg.OUTPUT_DIR) / "last_checkpoint"
    if last.is_file():
        lines.append(
            f"The last checkpoint, {last.read_text().strip()}, is whole: continue from it with "
            "--resume, the lower values, and their keys in RESUME_MAY_DIFFER"
        )
    return "\n".join(lines)


def _keys_of_inference(cfg: CfgNode) -> list[str]:
    return [
        f"INPUT.MIN_SIZE_TEST (now {cfg.INPUT.MIN_SIZE_TEST}) and INPUT.MAX_SIZE_TEST "
        f"(now {cfg.INPUT.MAX_SIZE_TEST})",
        f"MODEL.RPN.PRE_NMS_TOPK_TEST (now {cfg.MODEL.RPN.PRE_NMS_TOPK_TEST}) and, in four-step "
        f"training, FOUR_STEP.PRE_NMS_TOPK (now {cfg.FOUR_STEP.PRE_NMS_TOPK})",
    ]


def _keys_of_training(cfg: CfgNode) -> list[str]:
    keys = [
        f"INPUT.MIN_SIZE_TRAIN (now {tuple(cfg.INPUT.MIN_SIZE_TRAIN)}) and INPUT.MAX_SIZE_TRAIN "
        f"(now {cfg.INPUT.MAX_SIZE_TRAIN}): memory grows with the area. Lower the _TEST keys alike"
    ]
    if cfg.FOUR_STEP.ENABLED:
        keys.append(
            f"FOUR_STEP.IMS_PER_BATCH (now {list(cfg.FOUR_STEP.IMS_PER_BATCH)}: per stage, images "
            "per iteration and process); this changes the schedule, so start a new run"
        )
    elif cfg.SOLVER.IMS_PER_BATCH > 1:
        keys.append(
            f"SOLVER.IMS_PER_BATCH (now {cfg.SOLVER.IMS_PER_BATCH}), and SOLVER.BASE_LR (now "
            f"{cfg.SOLVER.BASE_LR:g}) in proportion"
        )
    keys.append(
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE (now "
        f"{cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE} RoIs per image; not for an RPN alone)"
    )
    if cfg.MODEL.DEVICE.startswith("cuda") and not cfg.SOLVER.AMP.ENABLED:
        keys.append("or set SOLVER.AMP.ENABLED True (now False): mixed precision")
    return keys

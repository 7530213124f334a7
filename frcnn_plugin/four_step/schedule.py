"""The learning rate over the four stages, and what follows from them for Detectron2's keys."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch.optim import Optimizer

from ..errors import UserError
from .stages import ScheduledStage, build_stages


def learning_rate_factors(
    stages: Sequence[ScheduledStage], gamma: float
) -> tuple[list[int], list[float]]:
    """Return the learning rate over the run, relative to ``SOLVER.BASE_LR``.

    Each stage starts again at 1: in the originals it is a training of its own.

    Returns:
        milestones (iterations at which the factor changes) and factors (one more).
    """
    milestones: list[int] = []
    factors: list[float] = []
    for stage in stages:
        if stage.start > 0:
            milestones.append(stage.start)
        milestones.extend(stage.start + d for d in stage.drops)
        factors.extend(gamma**k for k in range(len(stage.drops) + 1))
    return milestones, factors


def build_four_step_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRMultiplier:
    """Build one learning-rate schedule for all stages, for ``build_lr_scheduler`` of any trainer.

    One schedule, and not one per stage: a resumed run then finds its rate by the iteration alone,
    and the remaining time that Detectron2 prints is that of the whole run.
    """
    stages = build_stages(cfg)
    milestones, factors = learning_rate_factors(stages, cfg.SOLVER.GAMMA)
    total = stages[-1].end
    schedule = MultiStepParamScheduler(factors, milestones=milestones, num_updates=total)
    return LRMultiplier(optimizer, schedule, max_iter=total)


def apply_four_step(cfg: CfgNode) -> None:
    """Set the keys of Detectron2 that follow from ``FOUR_STEP``, in place; none if it is off.

    ``SOLVER.MAX_ITER`` and ``STEPS`` become those of the whole run.

    Raises:
        UserError: see :func:`~frcnn_plugin.four_step.build_stages`; another
            meta-architecture than PaperRCNN.
    """
    if not cfg.FOUR_STEP.ENABLED:
        return
    stages = build_stages(cfg)
    if cfg.MODEL.META_ARCHITECTURE != "PaperRCNN":
        raise UserError(
            f"FOUR_STEP.ENABLED needs MODEL.META_ARCHITECTURE PaperRCNN, which can train its parts "
            f"one by one; it is {cfg.MODEL.META_ARCHITECTURE}"
        )
    if len(cfg.INPUT.MIN_SIZE_TRAIN) != 1 and cfg.FOUR_STEP.RPN_TARGET_STATISTICS:
        raise UserError(
            f"INPUT.MIN_SIZE_TRAIN {tuple(cfg.INPUT.MIN_SIZE_TRAIN)} must be a single size for "
            "FOUR_STEP.RPN_TARGET_STATISTICS, which are measured at the size that is trained on"
        )
    if not cfg.DATALOADER.MIRRORED_COPIES:
        raise UserError("FOUR_STEP.ENABLED needs DATALOADER.MIRRORED_COPIES True")
    cfg.SOLVER.MAX_ITER = stages[-1].end
    cfg.SOLVER.STEPS = tuple(learning_rate_factors(stages, cfg.SOLVER.GAMMA)[0])
    # Detectron2 would rescale rate and iterations with the number of processes by its one batch
    # size. Here every stage has its own, and further processes add to it (see FOUR_STEP).
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0

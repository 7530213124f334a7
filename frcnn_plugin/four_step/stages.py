"""The four steps as data: what trains when, for how long, at which rate (paper section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch.optim import Optimizer

from ..errors import UserError

# Sub-modules of the model that train in each step.
_TRAINS = (
    ("backbone", "proposal_generator"),
    ("backbone", "roi_heads"),
    ("proposal_generator",),
    ("roi_heads",),
)
_PHASES = ("rpn", "fast_rcnn", "rpn", "fast_rcnn")


@dataclass(frozen=True)
class Stage:
    """One step of the schedule.

    Attributes:
        number: 1 to 4.
        phase: phase of :class:`~frcnn_plugin.modeling.PaperRCNN`, "rpn" or "fast_rcnn".
        trains: names of the sub-modules that train.
        start: first iteration, counted over the whole run.
        iters: number of iterations.
        drops: iterations after ``start`` at which the learning rate drops.
        images: images per iteration and process.
    """

    number: int
    phase: str
    trains: tuple[str, ...]
    start: int
    iters: int
    drops: tuple[int, ...]
    images: int

    @property
    def end(self) -> int:
        """The iteration after the last one."""
        return self.start + self.iters

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint at its end."""
        return f"stage{self.number}_final"


def build_stages(cfg: CfgNode) -> list[Stage]:
    """The steps of a run, from ``FOUR_STEP``.

    Raises:
        UserError: a list has not four entries, a number is out of range.
    """
    node = cfg.FOUR_STEP
    for key in ("ITERS", "DROPS", "IMS_PER_BATCH"):
        if len(node[key]) != 4:
            raise UserError(f"FOUR_STEP.{key} is {node[key]}: it needs four entries, one per step")
    if not 1 <= node.START_AT <= node.STOP_AFTER <= 4:
        raise UserError(
            f"FOUR_STEP.START_AT is {node.START_AT} and FOUR_STEP.STOP_AFTER {node.STOP_AFTER}: "
            "they must be two growing numbers from 1 to 4"
        )
    for key, choices in (
        ("PREDICTOR_START", ("continue", "restart")),
        ("TARGET_STATISTICS", ("per_class", "fixed")),
        ("MIRRORED_PROPOSALS", ("mirror", "recompute")),
    ):
        if node[key] not in choices:
            raise UserError(f"FOUR_STEP.{key} is '{node[key]}': use one of {', '.join(choices)}")
    stages: list[Stage] = []
    start = 0
    for number in range(node.START_AT, node.STOP_AFTER + 1):
        i = number - 1
        iters, drops, images = node.ITERS[i], tuple(node.DROPS[i]), node.IMS_PER_BATCH[i]
        if iters < 1 or images < 1:
            raise UserError(
                f"step {number}: FOUR_STEP.ITERS {iters} and FOUR_STEP.IMS_PER_BATCH {images} must "
                "be 1 or more; leave steps out with FOUR_STEP.START_AT and FOUR_STEP.STOP_AFTER"
            )
        if any(not 0 < d < iters for d in drops) or list(drops) != sorted(set(drops)):
            raise UserError(
                f"step {number}: FOUR_STEP.DROPS {list(drops)} must be growing and lie between 0 "
                f"and its FOUR_STEP.ITERS {iters}"
            )
        stages.append(Stage(number, _PHASES[i], _TRAINS[i], start, iters, drops, images))
        start += iters
    return stages


def learning_rate_factors(stages: list[Stage], gamma: float) -> tuple[list[int], list[float]]:
    """The learning rate over the run, relative to ``SOLVER.BASE_LR``.

    Each step starts again at 1.

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
    """One learning-rate schedule for all steps, for ``build_lr_scheduler`` of any trainer."""
    stages = build_stages(cfg)
    milestones, factors = learning_rate_factors(stages, cfg.SOLVER.GAMMA)
    total = stages[-1].end
    schedule = MultiStepParamScheduler(factors, milestones=milestones, num_updates=total)
    return LRMultiplier(optimizer, schedule, max_iter=total)


def apply_four_step(cfg: CfgNode) -> None:
    """Set the keys of the host that follow from ``FOUR_STEP``, in place; none if it is off.

    ``SOLVER.MAX_ITER`` and ``STEPS`` become those of the whole run.

    Raises:
        UserError: see :func:`build_stages`; another meta-architecture than PaperRCNN.
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
    # Only one batch size exists for the host; processes beyond the first add to it (see FOUR_STEP).
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0

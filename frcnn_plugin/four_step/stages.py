"""The paper's four stages as a table, those of a run, and its learning rate (section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch.optim import Optimizer

from ..errors import UserError, check_choice

# Keys of Detectron2 that four-step training does not look at: FOUR_STEP has its own.
IGNORED_KEYS = (
    "SOLVER.IMS_PER_BATCH", "SOLVER.LR_SCHEDULER_NAME", "SOLVER.MAX_ITER", "SOLVER.NUM_DECAYS",
    "SOLVER.REFERENCE_WORLD_SIZE", "SOLVER.RESCALE_INTERVAL", "SOLVER.STEPS",
    "SOLVER.WARMUP_FACTOR", "SOLVER.WARMUP_ITERS", "SOLVER.WARMUP_METHOD",
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """One of the paper's four stages.

    Attributes:
        number: 1 to 4.
        name: what it trains, in a word: "RPN" or "detector".
        phase: phase of :class:`~frcnn_plugin.modeling.PaperRCNN`, "rpn" or "fast_rcnn".
        trains: names of the sub-modules of the model that train.
        weights_of: number of the stage whose weights it continues with; 0: the initial weights.
        restores: whether what it trains is set back to the initial weights first.
        redraws: name of the sub-module that starts with new random weights; "" for none.
        proposals_of: number of the stage whose proposals it trains on; 0 for none.
        completes: whether the model is a whole detector after it.
    """

    number: int
    name: str
    phase: str
    trains: tuple[str, ...]
    weights_of: int = 0
    restores: bool = False
    redraws: str = ""
    proposals_of: int = 0
    completes: bool = False

    @property
    def title(self) -> str:
        """Number and name, as people read it: "1 RPN"."""
        return f"{self.number} {self.name}"

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint at its end, without ".pth"."""
        return f"stage{self.number}_final"

    @property
    def proposals(self) -> str:
        """Folder in ``OUTPUT_DIR`` of the proposals that it trains on, or else makes."""
        return f"proposals/stage{self.proposals_of or self.number}"

    @property
    def previous(self) -> Stage | None:
        """The stage before it in the table; None for the first one."""
        return STAGES[self.number - 2] if self.number > 1 else None


RPN_HEAD, PREDICTOR = "proposal_generator.rpn_head", "roi_heads.box_predictor"

STAGES = (
    Stage(1, "RPN", "rpn", trains=("backbone", "proposal_generator")),
    # From ImageNet again: up to here the two networks share nothing. The detector uses the
    # proposals of stage 1, but not its convolutions.
    Stage(
        2, "detector", "fast_rcnn", trains=("backbone", "roi_heads"), restores=True, proposals_of=1
    ),
    # From here on the convolutions are those that the detector made for itself, and stay as they
    # are, so that the second RPN and the detector have them in common. The RPN head of stage 1
    # was trained on other convolutions and starts anew.
    Stage(
        3, "RPN", "rpn", trains=("proposal_generator",), weights_of=2, redraws=RPN_HEAD
    ),
    # py-faster-rcnn draws the last two layers anew. The MATLAB code does not, and neither does
    # FOUR_STEP.PREDICTOR_START "continue": see build_stages.
    Stage(
        4, "detector", "fast_rcnn", trains=("roi_heads",), weights_of=2, redraws=PREDICTOR,
        proposals_of=3, completes=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class ScheduledStage(Stage):
    """A stage of a run.

    Attributes:
        start: first iteration, counted over the whole run.
        iters: number of iterations.
        drops: iterations after ``start`` at which the learning rate drops.
        images: images per iteration and process.
    """

    start: int = 0
    iters: int = 0
    drops: tuple[int, ...] = ()
    images: int = 0

    @property
    def end(self) -> int:
        """The iteration after the last one."""
        return self.start + self.iters


def build_stages(cfg: CfgNode) -> list[ScheduledStage]:
    """Return the stages of a run, from ``FOUR_STEP``.

    Raises:
        UserError: a list does not have four entries, or a value is out of range.
    """
    node = cfg.FOUR_STEP
    for key in ("ITERS", "DROPS", "IMS_PER_BATCH"):
        if len(node[key]) != len(STAGES):
            raise UserError(f"FOUR_STEP.{key} is {node[key]}: it needs four entries, one per stage")
        if key != "DROPS" and not _are_whole(node[key]):
            raise UserError(f"FOUR_STEP.{key} is {node[key]}: it must be four whole numbers")
    if not all(isinstance(drops, (list, tuple)) and _are_whole(drops) for drops in node.DROPS):
        raise UserError(
            f"FOUR_STEP.DROPS is {node.DROPS}: it must be four lists of whole numbers, such as "
            '"[[60000], [30000], [60000], [30000]]"'
        )
    if not 1 <= node.START_AT <= node.STOP_AFTER <= len(STAGES):
        raise UserError(
            f"FOUR_STEP.START_AT is {node.START_AT} and FOUR_STEP.STOP_AFTER {node.STOP_AFTER}: "
            "they must be two growing numbers from 1 to 4"
        )
    for key, choices in (
        ("PREDICTOR_START", ("continue", "restart")),
        ("TARGET_STATISTICS", ("per_class", "fixed")),
        ("MIRRORED_PROPOSALS", ("mirror", "recompute")),
    ):
        check_choice(f"FOUR_STEP.{key}", node[key], choices)
    stages: list[ScheduledStage] = []
    start = 0
    for i, stage in list(enumerate(STAGES))[node.START_AT - 1 : node.STOP_AFTER]:
        iters, drops, images = node.ITERS[i], tuple(node.DROPS[i]), node.IMS_PER_BATCH[i]
        if iters < 1 or images < 1:
            raise UserError(
                f"stage {stage.number}: FOUR_STEP.ITERS {iters} and FOUR_STEP.IMS_PER_BATCH "
                f"{images} must be 1 or more; leave stages out with FOUR_STEP.START_AT and "
                "FOUR_STEP.STOP_AFTER"
            )
        if any(not 0 < d < iters for d in drops) or list(drops) != sorted(set(drops)):
            raise UserError(
                f"stage {stage.number}: FOUR_STEP.DROPS {list(drops)} must be growing and lie "
                f"between 0 and its FOUR_STEP.ITERS {iters}. With one drop after three quarters of "
                f'each stage: FOUR_STEP.DROPS "{[[n * 3 // 4] * (n > 1) for n in node.ITERS]}"'
            )
        if stage.redraws == PREDICTOR and node.PREDICTOR_START == "continue":
            stage = replace(stage, redraws="")
        stages.append(
            ScheduledStage(**vars(stage), start=start, iters=iters, drops=drops, images=images)
        )
        start += iters
    return stages


def _are_whole(numbers: Sequence[object]) -> bool:
    return all(type(number) is int for number in numbers)


def stage_at(stages: Sequence[ScheduledStage], iteration: int) -> ScheduledStage | None:
    """Return the stage that an iteration of the run belongs to; None after the last one."""
    return next((s for s in stages if s.start <= iteration < s.end), None)


def _learning_rate(stages: Sequence[ScheduledStage], gamma: float) -> tuple[list[int], list[float]]:
    """Return the iterations at which the rate changes, and its factors (one more).

    Each stage starts again at 1: in the originals it is a separate training.
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

    With one schedule for all, a resumed run finds its rate from the iteration alone, and the
    remaining time that Detectron2 prints is that of the whole run.
    """
    stages = build_stages(cfg)
    milestones, factors = _learning_rate(stages, cfg.SOLVER.GAMMA)
    total = stages[-1].end
    schedule = MultiStepParamScheduler(factors, milestones=milestones, num_updates=total)
    return LRMultiplier(optimizer, schedule, max_iter=total)


def apply_four_step(cfg: CfgNode) -> None:
    """Set the keys of Detectron2 that follow from ``FOUR_STEP``, in place; none if it is off.

    ``SOLVER.MAX_ITER`` and ``STEPS`` become those of the whole run.

    Raises:
        UserError: see :func:`build_stages`; or other keys do not allow four stages.
    """
    if not cfg.FOUR_STEP.ENABLED:
        return
    stages = build_stages(cfg)
    for stage in stages:
        for name in cfg.MODEL.PAPER_RCNN.FREEZE if stage.redraws else ():
            if f"{name}.".startswith(f"{stage.redraws}.") or stage.redraws.startswith(f"{name}."):
                advice = ", or set FOUR_STEP.PREDICTOR_START continue"
                raise UserError(
                    f"MODEL.PAPER_RCNN.FREEZE names '{name}', but stage {stage.number} draws "
                    f"{stage.redraws} anew and must train all of it: take it out of the list"
                    f"{advice if stage.redraws == PREDICTOR else ''}"
                )
    if cfg.MODEL.META_ARCHITECTURE != "PaperRCNN":
        raise UserError(
            "FOUR_STEP.ENABLED needs MODEL.META_ARCHITECTURE PaperRCNN, which can train its parts "
            f"one by one; it is {cfg.MODEL.META_ARCHITECTURE}"
        )
    if len(cfg.INPUT.MIN_SIZE_TRAIN) != 1 and cfg.FOUR_STEP.RPN_TARGET_STATISTICS:
        raise UserError(
            f"INPUT.MIN_SIZE_TRAIN {tuple(cfg.INPUT.MIN_SIZE_TRAIN)} must be a single size for "
            "FOUR_STEP.RPN_TARGET_STATISTICS, which are measured at the size that is trained on"
        )
    cfg.SOLVER.MAX_ITER = stages[-1].end
    cfg.SOLVER.STEPS = tuple(_learning_rate(stages, cfg.SOLVER.GAMMA)[0])
    # Detectron2 would rescale rate and iterations with the number of processes, from its single
    # batch size. Here every stage has its own, and more processes add to it (see FOUR_STEP).
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 0

"""The paper's four stages as a table, and the stages of a run (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from detectron2.config import CfgNode

from ..errors import UserError


@dataclass(frozen=True)
class Stage:
    """One of the paper's four stages.

    Attributes:
        number: 1 to 4.
        name: what it trains, in a word: "RPN" or "detector".
        phase: phase of :class:`~frcnn_plugin.modeling.PaperRCNN`, "rpn" or "fast_rcnn".
        trains: names of the sub-modules of the model that train.
        weights_of: number of the stage whose weights it goes on with; 0: the initial weights.
        restores: whether what it trains must be set back to the initial weights first.
        redraws: name of the sub-module that begins with new random weights; "" for none.
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
        """Number and name, for people: "1 RPN"."""
        return f"{self.number} {self.name}"

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint at its end, without ".pth"."""
        return f"stage{self.number}_final"

    @property
    def proposals(self) -> str:
        """Folder below ``OUTPUT_DIR`` of the proposals that it trains on, or makes."""
        return f"proposals/stage{self.proposals_of or self.number}"

    @property
    def previous(self) -> Stage | None:
        """The stage before it in the table; None for the first one."""
        return STAGES[self.number - 2] if self.number > 1 else None


RPN_HEAD, PREDICTOR = "proposal_generator.rpn_head", "roi_heads.box_predictor"

STAGES = (
    Stage(1, "RPN", "rpn", trains=("backbone", "proposal_generator")),
    # From ImageNet again: up to here the two networks share nothing. The detector learns from the
    # proposals of stage 1, but not from its convolutions.
    Stage(
        2, "detector", "fast_rcnn", trains=("backbone", "roi_heads"), restores=True, proposals_of=1
    ),
    # From here on the convolutions are those that the detector made for itself, and stay as they
    # are: only so can a second RPN and the detector have them in common. The RPN head of stage 1
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
        UserError: a list has not four entries, a number is out of range.
    """
    node = cfg.FOUR_STEP
    for key in ("ITERS", "DROPS", "IMS_PER_BATCH"):
        if len(node[key]) != len(STAGES):
            raise UserError(f"FOUR_STEP.{key} is {node[key]}: it needs four entries, one per stage")
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
        if node[key] not in choices:
            raise UserError(f"FOUR_STEP.{key} is '{node[key]}': use one of {', '.join(choices)}")
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
                f"between 0 and its FOUR_STEP.ITERS {iters}"
            )
        if stage.redraws == PREDICTOR and node.PREDICTOR_START == "continue":
            stage = replace(stage, redraws="")
        stages.append(
            ScheduledStage(**vars(stage), start=start, iters=iters, drops=drops, images=images)
        )
        start += iters
    return stages


def stage_at(stages: Sequence[ScheduledStage], iteration: int) -> ScheduledStage | None:
    """Return the stage that an iteration of the whole run belongs to, None after the last one."""
    return next((s for s in stages if s.start <= iteration < s.end), None)

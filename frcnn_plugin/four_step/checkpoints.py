"""Checkpoints of four-step training: where a run starts, what it leaves, what it may resume."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint.read import peek
from ..errors import UserError
from .evaluation import with_test_proposals
from .stages import STAGES, ScheduledStage, Stage

logger = logging.getLogger(__name__)

# A resumed run must have been started with the same values of these.
_SCHEDULE_KEYS = (
    *(
        f"FOUR_STEP.{key}"
        for key in (
            "ITERS", "DROPS", "IMS_PER_BATCH", "PREDICTOR_START", "TARGET_STATISTICS",
            "RPN_TARGET_STATISTICS", "PRE_NMS_TOPK", "POST_NMS_TOPK", "MIRRORED_PROPOSALS",
            "START_AT",
        )
    ),
    *(f"SOLVER.{key}" for key in ("BASE_LR", "GAMMA", "MOMENTUM", "WEIGHT_DECAY")),
    "SEED",
    "DATASETS.TRAIN",
)  # fmt: skip
_PROCESSES = "the number of processes"


class StageCheckpointer(HookBase):
    """Write ``stage<k>_final`` after the last iteration of each stage.

    Put it after Detectron2's LRScheduler hook, so that the schedule's state is that of the next
    iteration. Main process only, as Detectron2's PeriodicCheckpointer.
    """

    def __init__(self, stages: Sequence[ScheduledStage]) -> None:
        """Take the stages of the run."""
        self._stages = stages

    def after_step(self) -> None:
        """Save at the end of a stage."""
        for stage in self._stages:
            if self.trainer.iter + 1 == stage.end:
                self.trainer.checkpointer.save(
                    stage.checkpoint, iteration=self.trainer.iter, phase=stage.phase
                )


def schedule_state(cfg: CfgNode) -> dict[str, str]:
    """Return what must be the same when the run is resumed, as plain strings."""
    state = {key: repr(_value(cfg, key)) for key in _SCHEDULE_KEYS}
    # Each process adds to the batch, and the order of images is dealt out to them.
    state[_PROCESSES] = str(comm.get_world_size())
    return state


def check_schedule(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Make sure that a run is resumed as it began.

    Args:
        before: :func:`schedule_state` of the checkpoint.
        now: that of this run.

    Raises:
        UserError: names the keys that differ, and both values.
    """
    changed = [
        f"{key} was {value} and is {now[key]}"
        for key, value in before.items()
        if key in now and now[key] != value
    ]
    if changed:
        raise UserError(
            f"this run began with another schedule: {'; '.join(changed)}. Resume it with the "
            "old values, or start a new run in another OUTPUT_DIR"
        )


def check_start(cfg: CfgNode) -> None:
    """Make sure that a run that leaves out stages has what these would have made.

    Raises:
        UserError: ``FOUR_STEP.START_AT`` lacks weights, or has those of another stage.
    """
    first = cfg.FOUR_STEP.START_AT
    if not 1 < first <= len(STAGES):  # build_stages refuses what is no stage
        return
    stage, previous = STAGES[first - 1], STAGES[first - 2]
    wanted = f"{previous.checkpoint}.pth"
    if not cfg.MODEL.WEIGHTS:
        raise UserError(
            f"FOUR_STEP.START_AT {first} goes on from stage {first - 1}: add MODEL.WEIGHTS "
            f"path/to/{wanted}"
        )
    name = re.fullmatch(r"stage(\d)_final\.pth", Path(cfg.MODEL.WEIGHTS).name)
    if name and int(name[1]) != first - 1:
        raise UserError(
            f"FOUR_STEP.START_AT {first} goes on from stage {first - 1}, but MODEL.WEIGHTS "
            f"{cfg.MODEL.WEIGHTS} is from the end of stage {name[1]}: give {wanted}"
        )
    if stage.restores and not cfg.FOUR_STEP.INITIAL_WEIGHTS:
        raise UserError(
            f"FOUR_STEP.START_AT {first}: stage {first} starts again from the weights that the run "
            f"began with, and MODEL.WEIGHTS are those that stage {first - 1} ended with: add "
            "FOUR_STEP.INITIAL_WEIGHTS path/to/initial_weights.pth, which is in the OUTPUT_DIR of "
            f"the run that trained stage {first - 1}"
        )


def stage_of(weights: str | os.PathLike[str]) -> Stage | None:
    """Return the stage that a checkpoint is from; None if it is a whole detector.

    The checkpoint itself says so, whatever its name: FourStepHook's state is in it.

    Args:
        weights: file; one that is missing, or of another kind, counts as a whole detector.
    """
    path = Path(weights)
    if path.suffix != ".pth" or not path.is_file():
        return None
    try:
        number = peek(path).stage
    except UserError:  # the checkpointer will judge it
        return None
    return next((s for s in STAGES if s.number == number and not s.completes), None)


def as_checkpoint_is(cfg: CfgNode) -> CfgNode:
    """Return a copy of the config that evaluates ``MODEL.WEIGHTS`` as the stage it is from.

    Raises:
        UserError: it detects on proposals of the stage before, and they are missing.
    """
    cfg = cfg.clone()
    cfg.defrost()
    weights = Path(cfg.MODEL.WEIGHTS)
    stage = stage_of(weights)
    if stage is None or cfg.MODEL.PAPER_RCNN.PHASE != "joint":
        return cfg
    logger.info(
        "%s is from stage %d of %d: evaluated as '%s'",
        weights, stage.number, len(STAGES), stage.phase,
    )  # fmt: skip
    cfg.MODEL.PAPER_RCNN.PHASE = stage.phase
    if not stage.proposals_of:  # select as the run did, so that the numbers are the run's
        cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = cfg.FOUR_STEP.PRE_NMS_TOPK
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cfg.FOUR_STEP.POST_NMS_TOPK
        logger.info("with the FOUR_STEP.POST_NMS_TOPK %d best", cfg.FOUR_STEP.POST_NMS_TOPK)
        return cfg
    folder = weights.parent / stage.proposals
    files = [str(folder / f"{name}.pkl") for name in cfg.DATASETS.TEST]
    missing = next((f for f in files if not Path(f).is_file()), None)
    if missing is not None:
        source = STAGES[stage.proposals_of - 1]
        raise UserError(
            f"{weights} detects on proposals of stage {source.number}, but {missing} is missing; "
            f"make it with frcnn proposals dump from {source.checkpoint}.pth"
        )
    return with_test_proposals(cfg, files)


def _value(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg

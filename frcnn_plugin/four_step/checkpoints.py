"""Checkpoints of four-step training: where a run starts, what it leaves, what it may resume."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..errors import UserError
from .stages import STAGES, ScheduledStage

logger = logging.getLogger(__name__)

PROCESSES = "the number of processes"
INITIAL_WEIGHTS = "the file of initial weights"

# A resumed run must have the values with which it began.
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


class StageCheckpointer(HookBase):
    """Write ``stage<k>_final`` after the last iteration of each stage.

    Put it after Detectron2's LRScheduler hook, so that the schedule's state is that of the next
    iteration. Main process only, as Detectron2's PeriodicCheckpointer.
    """

    def __init__(self, stages: Sequence[ScheduledStage]) -> None:
        self._stages = stages

    def before_train(self) -> None:
        """Save if a run is resumed that was killed before it could, or while it did."""
        for stage in self._stages:
            newest = Path(self.trainer.checkpointer.get_checkpoint_file()).stem
            if self.trainer.start_iter == stage.end and newest != stage.checkpoint:
                save_belatedly(self.trainer, stage.checkpoint, phase=stage.phase)

    def after_step(self) -> None:
        """Save at the end of a stage."""
        for stage in self._stages:
            if self.trainer.iter + 1 == stage.end:
                self.trainer.checkpointer.save(
                    stage.checkpoint, iteration=self.trainer.iter, phase=stage.phase
                )


def save_belatedly(trainer: Any, name: str, **extra: Any) -> None:
    """Save what the iteration before the first one would have saved; for ``before_train``."""
    trainer.iter = trainer.start_iter - 1
    trainer.checkpointer.save(name, iteration=trainer.iter, **extra)
    trainer.iter = trainer.start_iter


def schedule_state(cfg: CfgNode) -> dict[str, str]:
    """Return what must be the same when the run is resumed, as plain strings."""
    state = {key: repr(attrgetter(key)(cfg)) for key in _SCHEDULE_KEYS}
    # Each process adds to the batch, and they share out the images.
    return state | {PROCESSES: str(comm.get_world_size())}


def check_same(
    before: Mapping[str, str], now: Mapping[str, str], may_differ: Sequence[str] = ()
) -> None:
    """Compare what a checkpoint says of its run with the run that resumes it.

    Args:
        before: values as text, by key; what only one side has is not compared.
        now: likewise.
        may_differ: ``RESUME_MAY_DIFFER``. What differs is then logged.

    Raises:
        UserError: something else differs; names it with both values.
    """
    changed = {
        key: f"{key} was {value} and is {now[key]}"
        for key, value in before.items()
        if key in now and now[key] != value
    }
    accepted = [text for key, text in changed.items() if key in may_differ]
    refused = {key: text for key, text in changed.items() if key not in may_differ}
    if refused:
        raise UserError(
            f"this run began with other values: {'; '.join(refused.values())}. Resume it with the "
            "old ones, or start a new run in another OUTPUT_DIR; or, to go on with what is now, "
            f'add RESUME_MAY_DIFFER "{[*may_differ, *refused]}"'
        )
    if accepted:
        logger.warning("RESUME_MAY_DIFFER: %s", "; ".join(accepted))


def check_start(cfg: CfgNode) -> None:
    """Check that a run that leaves out stages has the files that these would have written.

    Raises:
        UserError: ``FOUR_STEP.START_AT`` lacks weights, or has those of another stage.
    """
    first = cfg.FOUR_STEP.START_AT
    if not 1 < first <= len(STAGES):  # build_stages refuses other numbers
        return
    stage, previous = STAGES[first - 1], STAGES[first - 2]
    wanted = f"{previous.checkpoint}.pth"
    if not cfg.MODEL.WEIGHTS:
        raise UserError(
            f"FOUR_STEP.START_AT {first} continues from stage {first - 1}: add MODEL.WEIGHTS "
            f"path/to/{wanted}"
        )
    name = re.fullmatch(r"stage(\d)_final\.pth", Path(cfg.MODEL.WEIGHTS).name)
    if name and int(name[1]) != first - 1:
        raise UserError(
            f"FOUR_STEP.START_AT {first} continues from stage {first - 1}, but MODEL.WEIGHTS "
            f"{cfg.MODEL.WEIGHTS} is from the end of stage {name[1]}: give {wanted}"
        )
    if stage.restores and not cfg.FOUR_STEP.INITIAL_WEIGHTS:
        raise UserError(
            f"FOUR_STEP.START_AT {first}: stage {first} starts again from the weights that the run "
            f"began with, and MODEL.WEIGHTS are those that stage {first - 1} ended with: add "
            "FOUR_STEP.INITIAL_WEIGHTS path/to/initial_weights.pth, which is in the OUTPUT_DIR of "
            f"the run that trained stage {first - 1}"
        )

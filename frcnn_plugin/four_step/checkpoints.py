"""Checkpoints of four-step training: where a run starts, what it leaves, what it may resume."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..errors import UserError
from .stages import Stage

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
    """Writes ``stage<k>_final`` behind the last iteration of each step.

    Put it behind the host's LRScheduler hook, so that the schedule's state is that of the next
    iteration. Main process only, as the host's PeriodicCheckpointer.
    """

    def __init__(self, stages: list[Stage]) -> None:
        """Take the steps of the run."""
        self._stages = stages

    def after_step(self) -> None:
        """Save at the end of a step."""
        for stage in self._stages:
            if self.trainer.iter + 1 == stage.end:
                self.trainer.checkpointer.save(
                    stage.checkpoint, iteration=self.trainer.iter, phase=stage.phase
                )


def schedule_state(cfg: CfgNode) -> dict[str, str]:
    """What must be the same when the run is resumed, as plain strings."""
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
    """Make sure that a run that leaves out steps has what these would have made.

    Raises:
        UserError: ``FOUR_STEP.START_AT`` lacks weights, or has those of another step.
    """
    first = cfg.FOUR_STEP.START_AT
    if first == 1:
        return
    wanted = f"stage{first - 1}_final.pth"
    if not cfg.MODEL.WEIGHTS:
        raise UserError(
            f"FOUR_STEP.START_AT {first} goes on from step {first - 1}: add MODEL.WEIGHTS "
            f"path/to/{wanted}"
        )
    name = re.fullmatch(r"stage(\d)_final\.pth", Path(cfg.MODEL.WEIGHTS).name)
    if name and int(name[1]) != first - 1:
        raise UserError(
            f"FOUR_STEP.START_AT {first} goes on from step {first - 1}, but MODEL.WEIGHTS "
            f"{cfg.MODEL.WEIGHTS} is from the end of step {name[1]}: give {wanted}"
        )
    if first == 2 and not cfg.FOUR_STEP.INITIAL_WEIGHTS:
        raise UserError(
            "FOUR_STEP.START_AT 2: step 2 starts again from the weights that step 1 began with, "
            "and MODEL.WEIGHTS are those it ended with: add FOUR_STEP.INITIAL_WEIGHTS "
            "path/to/initial_weights.pth, which is in the OUTPUT_DIR of the run that trained step 1"
        )


def _value(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg

"""Tiny joint runs: the tiny four-step config without its stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from frcnn_plugin.engine import PaperTrainer
from tests.four_step.four_step_runs import make_trainer

JOINT = [
    *("FOUR_STEP.ENABLED", "False"),
    *("SOLVER.MAX_ITER", "4"),
    *("SOLVER.STEPS", "()"),
    *("SOLVER.CHECKPOINT_PERIOD", "1"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "200"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
]


def make_joint_trainer(
    folder: Path, opts: Sequence[str] = (), *, resume: bool = False
) -> PaperTrainer:
    """A trainer as `frcnn train` has it before ``train()``."""
    return make_trainer(folder, [*JOINT, *opts], resume=resume)

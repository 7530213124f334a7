"""The paper's four-step alternating training (section 3.2), for any Detectron2 trainer."""

from .checkpoints import StageCheckpointer
from .evaluation import StageEvalHook
from .hook import FourStepHook
from .stages import (
    STAGES,
    ScheduledStage,
    Stage,
    apply_four_step,
    build_four_step_scheduler,
    build_stages,
)
from .statistics import head_target_statistics, rpn_target_statistics

__all__ = [
    "STAGES",
    "FourStepHook",
    "ScheduledStage",
    "Stage",
    "StageCheckpointer",
    "StageEvalHook",
    "apply_four_step",
    "build_four_step_scheduler",
    "build_stages",
    "head_target_statistics",
    "rpn_target_statistics",
]

"""The paper's four-step alternating training (section 3.2), for any Detectron2 trainer."""

from .checkpoints import StageCheckpointer
from .hook import FourStepHook
from .stages import Stage, apply_four_step, build_four_step_scheduler, build_stages

__all__ = [
    "FourStepHook",
    "Stage",
    "StageCheckpointer",
    "apply_four_step",
    "build_four_step_scheduler",
    "build_stages",
]

"""Training: the trainer, its hooks, the launcher and the checks before a run."""

from .four_step import FourStepHook, StageCheckpointer
from .hooks import CaffeMomentum, SeedEveryStep
from .launch import launch
from .setup import check_cfg, setup_cfg
from .stages import build_four_step_scheduler, build_stages
from .trainer import PaperTrainer

__all__ = [
    "CaffeMomentum",
    "FourStepHook",
    "PaperTrainer",
    "SeedEveryStep",
    "StageCheckpointer",
    "build_four_step_scheduler",
    "build_stages",
    "check_cfg",
    "launch",
    "setup_cfg",
]

"""Training and use: the trainer, its hooks, the launcher and the checks before a run."""

from .four_step import FourStepHook
from .hooks import CaffeMomentum, SeedEveryStep
from .launch import launch
from .predictor import FasterRCNNPredictor
from .run_recorder import RunRecorder
from .setup import check_cfg, forget_run, setup_cfg
from .stage_checkpoints import StageCheckpointer
from .stages import apply_four_step, build_four_step_scheduler, build_stages
from .trainer import PaperTrainer

__all__ = [
    "CaffeMomentum",
    "FasterRCNNPredictor",
    "FourStepHook",
    "PaperTrainer",
    "RunRecorder",
    "SeedEveryStep",
    "StageCheckpointer",
    "apply_four_step",
    "build_four_step_scheduler",
    "build_stages",
    "check_cfg",
    "forget_run",
    "launch",
    "setup_cfg",
]

"""Training: the trainer, its hooks, the launcher and the checks before a run."""

from .hooks import CaffeMomentum
from .launch import launch
from .setup import check_cfg, setup_cfg
from .trainer import PaperTrainer

__all__ = ["CaffeMomentum", "PaperTrainer", "check_cfg", "launch", "setup_cfg"]

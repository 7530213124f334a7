"""Training: the trainer, its hooks, and the set-up of a run."""

from .hooks import CaffeMomentum, SeedEveryStep
from .setup import forget_run, setup_cfg
from .trainer import PaperTrainer

__all__ = ["CaffeMomentum", "PaperTrainer", "SeedEveryStep", "forget_run", "setup_cfg"]

"""Training: the trainer, its hooks, and the set-up of a run.

Names are loaded when they are asked for: a script that takes one hook need not load the trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hooks import BestCheckpoint, CaffeMomentum, NewestCheckpoints, SeedEveryIteration
    from .run_folder import forget_run, lock_output
    from .setup import setup_cfg
    from .trainer import PaperTrainer, evaluate_checkpoint

_MODULES = {
    "BestCheckpoint": "hooks",
    "CaffeMomentum": "hooks",
    "NewestCheckpoints": "hooks",
    "PaperTrainer": "trainer",
    "SeedEveryIteration": "hooks",
    "evaluate_checkpoint": "trainer",
    "forget_run": "run_folder",
    "lock_output": "run_folder",
    "setup_cfg": "setup",
}

__all__ = [
    "BestCheckpoint",
    "CaffeMomentum",
    "NewestCheckpoints",
    "PaperTrainer",
    "SeedEveryIteration",
    "evaluate_checkpoint",
    "forget_run",
    "lock_output",
    "setup_cfg",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)

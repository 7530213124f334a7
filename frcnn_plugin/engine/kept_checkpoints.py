"""Which checkpoints stay: the newest of the periodic ones, and the best by AP50."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks

from ..atomic_files import write_text
from ..errors import UserError

logger = logging.getLogger(__name__)

_PERIODIC = re.compile(r"model_(\d{7,})\.pth")


def add_checkpoint_hooks(
    cfg: CfgNode, ret: Sequence[HookBase | None], checkpointer: Any
) -> list[HookBase | None]:
    """Put this module's hooks where they belong; for the main process.

    Args:
        cfg: config.
        ret: the hooks of Detectron2's DefaultTrainer, and others.
        checkpointer: of the run.

    Returns:
        the hooks, the periodic checkpointer replaced, those for the best checkpoint after the
        evaluation.

    Raises:
        UserError: ``SOLVER.CHECKPOINTS_KEPT`` is negative.
    """
    kept = cfg.SOLVER.CHECKPOINTS_KEPT
    if kept < 0:
        raise UserError(
            f"SOLVER.CHECKPOINTS_KEPT is {kept}: give the number of periodic checkpoints that stay "
            "on disk, or 0 to keep all"
        )
    added: list[HookBase | None] = []
    for hook in ret:
        if isinstance(hook, hooks.PeriodicCheckpointer):
            hook = NewestCheckpoints(checkpointer, hook.period, max_to_keep=kept or None)
        added.append(hook)
        if isinstance(hook, hooks.EvalHook):
            added.extend(_best_checkpoints(cfg, checkpointer))
    return added


def _best_checkpoints(cfg: CfgNode, checkpointer: Any) -> list[HookBase]:
    phase = cfg.MODEL.PAPER_RCNN.PHASE
    if cfg.TEST.EVAL_PERIOD <= 0 or not cfg.DATASETS.TEST or phase == "rpn":
        return []
    # Detectron2 puts the set's name in front where there are several; the first one decides.
    name = f"{cfg.DATASETS.TEST[0]}/" if len(cfg.DATASETS.TEST) > 1 else ""
    best: list[HookBase] = [
        BestCheckpoint(cfg.TEST.EVAL_PERIOD, checkpointer, f"{name}bbox/AP50", "max", "model_best")
    ]
    if cfg.FOUR_STEP.ENABLED:
        metric = f"stage2/{name}bbox/AP50"
        best.append(
            BestCheckpoint(cfg.TEST.EVAL_PERIOD, checkpointer, metric, "max", "stage2_best")
        )
    return best


class NewestCheckpoints(hooks.PeriodicCheckpointer):
    """Detectron2's hook, which also prunes what a run wrote before it was interrupted."""

    def before_train(self) -> None:
        """Find the periodic checkpoints up to the one that the run is resumed from."""
        super().before_train()
        folder = self.checkpointer.save_dir
        if self.max_to_keep is None or self.trainer.start_iter == 0 or not os.path.isdir(folder):
            return
        found = {int(m[1]): m[0] for m in map(_PERIODIC.fullmatch, os.listdir(folder)) if m}
        self.recent_checkpoints = [
            os.path.join(folder, found[iteration])
            for iteration in sorted(found)
            if iteration < self.trainer.start_iter
        ]


class BestCheckpoint(hooks.BestCheckpointer):
    """Detectron2's hook, which also remembers across an interruption what the best result was.

    That is written into ``<prefix>.json`` beside ``<prefix>.pth``. ``last_checkpoint``, from which
    a run is resumed, goes on naming the newest periodic checkpoint.
    """

    def before_train(self) -> None:
        """Take up the best result of the run so far, if this one is resumed."""
        if self.trainer.start_iter == 0 or not self._file("pth").is_file():
            return
        try:
            best = json.loads(self._file("json").read_text())
            if best["metric"] == self._val_metric:
                self.best_metric, self.best_iter = float(best["value"]), int(best["iteration"])
        except (OSError, ValueError, KeyError, TypeError):
            logger.warning(
                "%s is missing or damaged: the next result replaces %s, whatever it is",
                self._file("json"), self._file("pth"),
            )  # fmt: skip

    def _best_checking(self) -> None:
        """Compare, if there was an evaluation just now; not with one of another stage."""
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None or latest[1] != self.trainer.storage.iter:
            return
        newest = self._checkpointer.get_checkpoint_file()
        super()._best_checking()  # which, if it saves, names its file in last_checkpoint
        if newest:
            self._checkpointer.tag_last_checkpoint(os.path.basename(newest))

    def _update_best(self, val: float, iteration: int) -> bool:
        """Update as Detectron2 does, and write it down, complete or not at all."""
        if not super()._update_best(val, iteration):
            return False
        text = json.dumps({"metric": self._val_metric, "value": val, "iteration": iteration})
        self._file("json").parent.mkdir(parents=True, exist_ok=True)
        write_text(self._file("json"), text + "\n")
        return True

    def _file(self, suffix: str) -> Path:
        return Path(self._checkpointer.save_dir) / f"{self._file_prefix}.{suffix}"

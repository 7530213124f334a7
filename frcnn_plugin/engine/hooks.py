"""Hooks: Caffe's momentum, repeatable random numbers, time to go, and which checkpoints stay."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from ..atomic_files import reading_json, write_json
from ..errors import UserError
from ..four_step.checkpoints import save_belatedly
from ..four_step.stages import ScheduledStage
from ..host import start_data_loader

logger = logging.getLogger(__name__)

_PERIODIC = re.compile(r"model_(\d{7,})\.pth")
# What an image costs in each stage, and if it only passes, where joint training (0) costs 1:
# measured with VGG16, docs/benchmarks.md, "Stages".
_COST, _PASSING = (1.0, 0.76, 0.96, 0.36, 0.48), 0.48


class CaffeMomentum(HookBase):
    """Rescale SGD's momentum at every change of the learning rate, as Caffe's update implies.

    Caffe keeps ``lr * gradient`` in the momentum buffer, torch the bare gradient. With a constant
    rate both change the weights alike; after a drop Caffe's buffer still holds gradients times the
    old rate, for about 20 iterations. Multiplying torch's buffer by old rate / new rate reproduces
    that exactly (example E17 of docs/worked_examples.md, point 34 of docs/faithfulness.md).

    Put it right after Detectron2's ``LRScheduler`` hook, which changes the rate.
    """

    def __init__(self, optimizer: Any) -> None:
        """Watch the learning rates of ``optimizer`` (``torch.optim.SGD``)."""
        self._optimizer = optimizer
        self._rates: list[float] = []

    def before_train(self) -> None:
        """Remember the rates that training starts, or resumes, with."""
        self._rates = [group["lr"] for group in self._optimizer.param_groups]

    def after_step(self) -> None:
        """Rescale the buffers of every group whose rate has just changed."""
        for i, group in enumerate(self._optimizer.param_groups):
            before, now = self._rates[i], group["lr"]
            if now == before or now == 0:  # no buffer recovers from a rate of 0
                continue
            for parameter in group["params"]:
                buffer = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
                if buffer is not None:
                    buffer.mul_(before / now)
            self._rates[i] = now


class SeedEveryIteration(HookBase):
    """Make the random numbers of an iteration depend on its number, not on what ran before.

    Sampling of anchors and RoIs, and dropout, then repeat exactly when a run is resumed, however it
    was interrupted.
    """

    def __init__(self, seed: int, first: int = 0) -> None:
        """Set the run's seed.

        Args:
            seed: ``cfg.SEED``.
            first: number of the run's first iteration, if it is the later part of another run.
        """
        self._seed = seed + 1009 * first

    def before_step(self) -> None:
        """Seed all generators of this process."""
        # Starting a data loader draws a number. That happens in the first iteration, of a resumed
        # run too, so it is done before the seed: the numbers of an iteration are then its own.
        start_data_loader(self.trainer)
        # Iterations are further apart than there are processes, so that no two share a seed.
        seed_all_rng((self._seed + 1009 * self.trainer.iter + comm.get_rank()) % 2**31)


class TimeToGo(HookBase):
    """Say once, in the first minute, how long an iteration takes and when the run will end.

    Detectron2's first line comes after 20 iterations, on a slow CPU after a quarter of an hour, and
    knows neither of evaluations nor of stages. Put it right after ``IterationTimer``.
    """

    def __init__(self, cfg: CfgNode, stages: Sequence[ScheduledStage] = ()) -> None:
        """Take the config, and the stages of four-step training."""
        images = max(1, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size())
        joint = {"completes": True, "iters": cfg.SOLVER.MAX_ITER, "images": images}
        self._cfg, self._stages = cfg, stages or [ScheduledStage(0, "", "joint", (), **joint)]
        self._seconds: list[float] = []
        self._said = False

    def before_train(self) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def before_step(self) -> None:
        """Note when an iteration begins, and forget those of another stage."""
        if any(self.trainer.iter == s.start for s in self._stages):
            self._seconds = []
        self._step = time.perf_counter()

    def after_step(self) -> None:
        """Say it after half a minute or 20 iterations, but not when the last one is done."""
        if self._said:
            return
        now, done = time.perf_counter(), self.trainer.iter + 1
        self._seconds.append(now - self._step)
        long = len(self._seconds) == 20 or now - self._begun > 30
        if long and done < self.trainer.max_iter:
            self._said = True
            logger.info("%s", self._estimate(done, median(self._seconds)))

    def _estimate(self, done: int, seconds: float) -> str:
        work = {s: s.images * _COST[s.number] for s in self._stages}  # of an iteration
        unit = seconds / next(work[s] for s in self._stages if done <= s.end)
        images = self._images_to_pass(done)
        training = unit * sum(work[s] * max(0, s.end - max(done, s.start)) for s in self._stages)
        passing = unit * _PASSING * images / comm.get_world_size()
        whole, *parts = (
            timedelta(seconds=round(t)) for t in (training + passing, training, passing)
        )
        return (
            f"an iteration takes {seconds:.2f} s; the run will end in about {whole}, on "
            f"{datetime.now() + min(whole, timedelta(365000)):%a %d %b %Y at %H:%M}\n"
            f"  {self.trainer.max_iter - done:,} iterations: {parts[0]}; {images:,} images to be "
            f"evaluated or get proposals: {parts[1]}"
            f"{', all from the speed of this stage' if len(work) > 1 else ''}; "
            "checkpoints and metrics: not included"
        )

    def _images_to_pass(self, done: int) -> int:
        node, test, train = self._cfg.FOUR_STEP, 0, 0
        both = self._cfg.DATALOADER.MIRRORED_COPIES and node.MIRRORED_PROPOSALS == "recompute"
        for s in self._stages:
            if done <= s.end:  # what comes at its end is still to come
                test += s.completes or node.EVALUATE_STEPS
                train += s.phase == "rpn" and 1 + both
                for key in ("LOSS_PERIOD", *(["EVAL_PERIOD"] if s.phase != "rpn" else [])):
                    if (every := self._cfg.TEST[key]) > 0:
                        test += (s.end - 1) // every - max(done - 1, s.start) // every
        sets = (self._cfg.DATASETS.TEST, test), (self._cfg.DATASETS.TRAIN, train)
        return sum(n * len(DatasetCatalog.get(name)) for names, n in sets if n for name in names)


# ---- which checkpoints stay -----------------------------------------------------------------


def add_checkpoint_hooks(
    cfg: CfgNode, ret: Sequence[HookBase | None], checkpointer: Any
) -> list[HookBase | None]:
    """Prune periodic checkpoints and keep the best ones; for the main process.

    Args:
        cfg: config.
        ret: the hooks of Detectron2's DefaultTrainer, and others.
        checkpointer: of the run.

    Returns:
        The hooks; the periodic checkpointer is replaced, and each evaluation is followed by those
        that keep the best checkpoint.
    """
    kept = cfg.SOLVER.CHECKPOINTS_KEPT
    added: list[HookBase | None] = []
    for hook in ret:
        if isinstance(hook, hooks.PeriodicCheckpointer):
            hook = NewestCheckpoints(checkpointer, hook.period, max_to_keep=kept or None)
        added.append(hook)
        if isinstance(hook, hooks.EvalHook):
            added.extend(_best_checkpoints(cfg, checkpointer))
    return added


def _best_checkpoints(cfg: CfgNode, checkpointer: Any) -> list[HookBase]:
    period, sets = cfg.TEST.EVAL_PERIOD, cfg.DATASETS.TEST
    if period <= 0 or not sets or cfg.MODEL.PAPER_RCNN.PHASE == "rpn":
        return []
    # Detectron2 puts the set's name in front if there are several; the first one decides.
    metric = f"{sets[0]}/bbox/AP50" if len(sets) > 1 else "bbox/AP50"
    files = {"model_best": metric}
    if cfg.FOUR_STEP.ENABLED:
        files["stage2_best"] = f"stage2/{metric}"
    return [BestCheckpoint(period, checkpointer, m, "max", file) for file, m in files.items()]


class NewestCheckpoints(hooks.PeriodicCheckpointer):
    """Detectron2's hook, which also finishes what it was interrupted in.

    It prunes what the run wrote before, and saves ``model_final`` if only that was missing.
    """

    def before_train(self) -> None:
        """Find the periodic checkpoints up to the one from which the run is resumed."""
        super().before_train()
        folder, start = self.checkpointer.save_dir, self.trainer.start_iter
        if start == 0 or not os.path.isdir(folder):
            return
        newest = os.path.basename(self.checkpointer.get_checkpoint_file())
        final = f"{self.file_prefix}_final"
        if start == self.trainer.max_iter and (
            _PERIODIC.fullmatch(newest) or not os.path.isfile(os.path.join(folder, f"{final}.pth"))
        ):
            save_belatedly(self.trainer, final)
        if self.max_to_keep is None:
            return
        found = {int(m[1]): m[0] for m in map(_PERIODIC.fullmatch, os.listdir(folder)) if m}
        self.recent_checkpoints = [
            os.path.join(folder, found[iteration])
            for iteration in sorted(found)
            if iteration < start
        ]
        while len(self.recent_checkpoints) > self.max_to_keep:
            self.path_manager.rm(self.recent_checkpoints.pop(0))


class BestCheckpoint(hooks.BestCheckpointer):
    """Detectron2's hook, which also remembers across an interruption what the best result was.

    It is written into ``<prefix>.json`` beside ``<prefix>.pth``. ``last_checkpoint``, from which a
    run is resumed, still names the newest periodic checkpoint.

    Attributes:
        compared: the iteration after which it last had a result to compare; None if it never had.
    """

    compared: int | None = None

    def before_train(self) -> None:
        """Read the best result so far, if the run is resumed."""
        if self.trainer.start_iter == 0 or not self._file("json").is_file():
            return
        try:
            with reading_json(self._file("json"), "best result") as best:
                if best["metric"] == self._val_metric and self._file("pth").is_file():
                    self.best_metric, self.best_iter = float(best["value"]), int(best["iteration"])
                # Earlier versions did not say; an evaluation may then be missing.
                self.compared = int(best.get("compared", self.trainer.start_iter - 1))
        except UserError as e:
            logger.warning("%s: the next result replaces %s, whatever it is", e, self._file("pth"))

    def _best_checking(self) -> None:
        """Compare, if there has just been an evaluation, and not one of another stage."""
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None or latest[1] != self.trainer.storage.iter:
            return
        # Hidden while it saves: a run is never resumed from the best checkpoint.
        self._checkpointer.tag_last_checkpoint = lambda name: None
        try:
            super()._best_checking()
        finally:
            del self._checkpointer.tag_last_checkpoint
        self.compared = latest[1]
        if self.best_metric is not None:
            # After the checkpoint: killed in between, the run evaluates once more when resumed.
            write_json(
                self._file("json"),
                {
                    "metric": self._val_metric,
                    "value": self.best_metric,
                    "iteration": self.best_iter,
                    "compared": self.compared,
                },
            )

    def _file(self, suffix: str) -> Path:
        return Path(self._checkpointer.save_dir) / f"{self._file_prefix}.{suffix}"

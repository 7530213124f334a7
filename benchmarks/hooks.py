"""``hooks``: what the plugin's hooks add to the iterations of a four-step training."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from detectron2.engine import HookBase
from tabulate import tabulate

from benchmarks.environment import headline
from benchmarks.report import write_json
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import PaperTrainer, SeedEveryIteration, setup_cfg
from frcnn_plugin.errors import UserError
from frcnn_plugin.four_step import FourStepHook

_FIRST = 3  # iterations of a stage that switch and warm up


class Clock(HookBase):
    """Collects seconds of whole iterations, and of the hooks in them, per stage."""

    def __init__(self, per_stage: int) -> None:
        """Watch a training whose stages all have `per_stage` iterations."""
        self.per_stage = per_stage
        self.iterations: dict[int, list[float]] = defaultdict(list)
        self.hooks: dict[int, list[float]] = defaultdict(list)
        self._in_hooks = self._start = 0.0

    def timed(self, function: Callable[[HookBase], None]) -> Callable[[HookBase], None]:
        """Return a method of a hook, its time counted."""

        def run(hook: HookBase) -> None:
            start = time.perf_counter()
            function(hook)
            self._in_hooks += time.perf_counter() - start

        return run

    def before_step(self) -> None:
        self._start = time.perf_counter() - self._in_hooks  # which came before this one

    def after_step(self) -> None:
        stage, number = divmod(self.trainer.iter, self.per_stage)
        if _FIRST <= number < self.per_stage - 1:  # the last one folds statistics, and saves
            self.iterations[stage + 1].append(time.perf_counter() - self._start)
            self.hooks[stage + 1].append(self._in_hooks)
        self._in_hooks = 0.0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The sub-command ``hooks``."""
    n = args.iterations
    if n < _FIRST + 2:
        raise UserError(f"--iterations must be at least {_FIRST + 2}, not {n}")
    clock = Clock(n)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, patch.dict(os.environ):
        os.environ["DETECTRON2_DATASETS"] = folder
        write_synthetic_voc(Path(folder, "demo_shapes"), num_trainval=args.images, num_test=2)
        schedule = [
            *("FOUR_STEP.ITERS", f"[{n},{n},{n},{n}]", "FOUR_STEP.DROPS", "[[],[],[],[]]"),
            *("FOUR_STEP.EVALUATE_STEPS", "False", "TEST.EVAL_PERIOD", "-1"),
            *("SOLVER.CHECKPOINT_PERIOD", "1000000", "OUTPUT_DIR", str(Path(folder, "run"))),
        ]
        device = ["MODEL.DEVICE", args.device] if args.device else []
        cfg = setup_cfg(args.config_file, [*schedule, *device, *args.opts])
        torch.manual_seed(args.seed)
        trainer = PaperTrainer(cfg)
        for hook in (FourStepHook, SeedEveryIteration):
            for name in ("before_step", "after_step"):
                method = clock.timed(getattr(hook, name))
                patch.object(hook, name, method).start()
        try:
            trainer.register_hooks([clock])
            trainer.train()
        finally:
            patch.stopall()
    stages = {
        number: {
            "iteration_ms": 1000 * statistics.median(seconds),
            "hooks_percent": 100 * sum(clock.hooks[number]) / sum(seconds),
        }
        for number, seconds in clock.iterations.items()
    }
    print(f"\nhooks of four-step training: {headline()}\n")
    rows = [(number, *values.values()) for number, values in stages.items()]
    headers = ("stage", "median iteration, ms", "in the plugin's hooks, %")
    print(tabulate(rows, headers, floatfmt=".2f"))
    results = {"what": "hooks", "stages": stages}
    write_json(args.output, results)
    return results

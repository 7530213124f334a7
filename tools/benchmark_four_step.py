#!/usr/bin/env python
"""Measure what four-step training costs beside the training itself.

    python tools/benchmark_four_step.py --config-file configs/demo/vgg16_shapes.yaml \\
        --images 60 --iterations 30

Trains a few iterations of each step on generated images and prints, per step, the median iteration,
what the plugin's hooks add to it, whether convolutions ran backward, and the memory of the process;
then the speed of proposal generation beside that of the RPN alone on the same images. Nothing here
is a test: times depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.engine import HookBase
from detectron2.evaluation import inference_on_dataset
from tabulate import tabulate

from frcnn_plugin import get_config_file
from frcnn_plugin.atomic_files import write_text
from frcnn_plugin.data.synthetic.generator import write_synthetic_voc
from frcnn_plugin.engine import PaperTrainer, SeedEveryIteration, setup_cfg
from frcnn_plugin.evaluation.proposals.evaluator import ProposalCollector
from frcnn_plugin.four_step import FourStepHook

ROUNDS = 3  # of the comparison with plain inference, interleaved


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=get_config_file("demo/vgg16_shapes.yaml"))
    parser.add_argument("--images", type=int, default=60, help="generated images to train on")
    parser.add_argument("--iterations", type=int, default=30, help="per step")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    return parser.parse_args(argv)


class Clock(HookBase):
    """Collects seconds of whole iterations and of single hooks, per step."""

    def __init__(self, four_step: FourStepHook) -> None:
        self.four_step = four_step
        self.iterations: dict[int, list[float]] = defaultdict(list)
        self.hooks: dict[int, list[float]] = defaultdict(list)
        self.conv_backward: dict[int, bool] = {}
        self.peak_mib: dict[int, float] = {}
        self._in_hooks = 0.0
        self._start = 0.0

    def timed(self, function: Callable[[], None]) -> Callable[[], None]:
        """``function``, its time counted."""

        def run() -> None:
            start = time.perf_counter()
            function()
            self._in_hooks += time.perf_counter() - start

        return run

    def before_step(self) -> None:
        self._start = time.perf_counter()

    def after_step(self) -> None:
        stage = next(s for s in self.four_step.stages if self.trainer.iter < s.end)
        # The first iterations of a step switch and warm up; the last one folds and saves.
        if stage.start + 3 <= self.trainer.iter < stage.end - 1:
            self.iterations[stage.number].append(time.perf_counter() - self._start)
            self.hooks[stage.number].append(self._in_hooks)
        self._in_hooks = 0.0
        convs = self.trainer.model.backbone.parameters()
        self.conv_backward[stage.number] = any(p.grad is not None for p in convs)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.peak_mib[stage.number] = peak / 1024


def measure_steps(trainer: PaperTrainer) -> Clock:
    """Train; returns what was measured."""
    four_step = next(h for h in trainer._hooks if isinstance(h, FourStepHook))
    seed = next(h for h in trainer._hooks if isinstance(h, SeedEveryIteration))
    clock = Clock(four_step)
    for hook in (four_step, seed):
        hook.before_step = clock.timed(hook.before_step)  # type: ignore[method-assign]
        hook.after_step = clock.timed(hook.after_step)  # type: ignore[method-assign]
    trainer.register_hooks([clock])
    trainer.train()
    return clock


def measure_proposals(trainer: PaperTrainer, folder: Path) -> tuple[float, float]:
    """Seconds per image of plain RPN inference and of generation with collecting and writing."""
    cfg, model = trainer.cfg, trainer.model
    name = cfg.DATASETS.TRAIN[0]
    model.set_phase("rpn")
    dicts = get_detection_dataset_dicts(name, filter_empty=False)

    def run(evaluator: Any) -> float:
        loader = build_detection_test_loader(dicts, mapper=DatasetMapper(cfg, is_train=False))
        start = time.perf_counter()
        inference_on_dataset(model, loader, evaluator)
        return (time.perf_counter() - start) / len(dicts)

    run(None)
    plain, made = [], []
    for _ in range(ROUNDS):
        plain.append(run(None))
        made.append(run(ProposalCollector(name, folder / "proposals.pkl")))
    return statistics.median(plain), statistics.median(made)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    n = args.iterations
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = Path(temporary)
        os.environ["DETECTRON2_DATASETS"] = str(folder)
        write_synthetic_voc(folder / "demo_shapes", num_trainval=args.images, num_test=2)
        schedule = [
            *("FOUR_STEP.ITERS", f"[{n},{n},{n},{n}]", "FOUR_STEP.DROPS", "[[],[],[],[]]"),
            *("FOUR_STEP.EVALUATE_STEPS", "False", "TEST.EVAL_PERIOD", "-1"),
            *("SOLVER.CHECKPOINT_PERIOD", "1000000", "OUTPUT_DIR", str(folder / "run")),
        ]
        cfg = setup_cfg(args.config_file, [*schedule, *args.opts])
        torch.manual_seed(0)
        trainer = PaperTrainer(cfg)
        clock = measure_steps(trainer)
        plain, made = measure_proposals(trainer, folder)

    steps = []
    for number, seconds in clock.iterations.items():
        steps.append(
            {
                "step": number,
                "iteration_ms": 1000 * statistics.median(seconds),
                "hooks_percent": 100 * sum(clock.hooks[number]) / sum(seconds),
                "conv_backward": clock.conv_backward[number],
                "peak_mib": clock.peak_mib[number],
            }
        )
    results = {
        "steps": steps,
        "rpn_ms_per_image": 1000 * plain,
        "proposals_ms_per_image": 1000 * made,
        "proposal_speed": plain / made,
        "threads": torch.get_num_threads(),
    }
    print(tabulate(steps, headers="keys", floatfmt=".2f"))
    print(
        f"\nRPN inference {1000 * plain:.1f} ms per image; proposal generation "
        f"{1000 * made:.1f} ms: {plain / made:.3f} of its speed"
    )
    if args.json:
        write_text(args.json, json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main()

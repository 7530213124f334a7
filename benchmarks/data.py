"""``data``: loading images, and steps on images with very many objects."""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tabulate import tabulate

from benchmarks.compare import specs, work
from benchmarks.contenders import Contender, calibrated_weights
from benchmarks.environment import headline
from benchmarks.generated import generated_set
from benchmarks.plots import line_chart
from benchmarks.report import write_json
from benchmarks.samples import Ratio, ratio, spread
from benchmarks.sessions import tune
from benchmarks.specs import Spec, Work
from frcnn_plugin.data.loading.mappers import MirroringMapper
from frcnn_plugin.engine import PaperTrainer
from frcnn_plugin.errors import UserError

logger = logging.getLogger("frcnn_plugin.tools.benchmark")

# Of the image files: VOC's usual shorter side, enlarged to 600 by the mapper.
SHORT_SIDE = 375
FEW, MANY = 5, 500  # ground-truth boxes per image


def loader_speed(cfg: CfgNode, workers: int, images: int) -> float:
    """Images per second that the training loader gives, after its first batch."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = workers
    batches = iter(PaperTrainer.build_train_loader(cfg))
    next(batches)  # workers have started
    batch = cfg.SOLVER.IMS_PER_BATCH
    # Workers load ahead: measuring must use up more than that.
    count = max(1, images // batch) + 2 * workers
    start = time.perf_counter()
    for _ in itertools.islice(batches, count):
        pass
    return count * batch / (time.perf_counter() - start)


def mapper_seconds(cfg: CfgNode, name: str) -> list[float]:
    """Seconds to read, decode, resize and mirror each image of a set."""
    mapper = MirroringMapper(cfg, is_train=True)
    seconds = []
    for i, record in enumerate(DatasetCatalog.get(name)):
        start = time.perf_counter()
        mapper({**record, "mirrored": i % 2 == 1})
        seconds.append(time.perf_counter() - start)
    return seconds


def many_objects(spec: Spec, task: Work, repeats: int) -> dict[str, list[float]]:
    """Seconds of training steps with few and with many ground-truth boxes, in turn."""
    few = replace(task, training=True, objects=FEW)
    contender = Contender(spec, few, calibrated_weights(spec, few))
    arguments = {
        f"{n} boxes": contender.arguments_for(replace(few, objects=n)) for n in (FEW, MANY)
    }
    seconds: dict[str, list[float]] = {name: [] for name in arguments}
    for i in range(1 + repeats):
        for name, value in arguments.items():
            contender.arguments = value
            sample = contender.sample()["total"]
            if i:
                seconds[name].append(sample)
    return seconds


def cost_of_many(seconds: dict[str, list[float]]) -> Ratio:
    """Step with many boxes / step with few."""
    few, many = seconds.values()
    return ratio(many, few)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The sub-command ``data``."""
    (spec, *others), task = specs(args), work(args)
    if others:
        raise UserError("data measures one model: leave out --versus")
    tune(spec)  # nobody else's model runs in this process
    cfg = spec.cfg(True).clone()
    cfg.defrost()
    cfg.FOUR_STEP.ENABLED = False
    speeds = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        with generated_set(Path(folder), args.images, SHORT_SIDE) as name:
            cfg.DATASETS.TRAIN, cfg.MODEL.LOAD_PROPOSALS = (name,), False
            for workers in args.workers:
                logger.info("loading with %d workers", workers)
                speeds.append((workers, loader_speed(cfg, workers, args.images)))
            mapping = spread(mapper_seconds(cfg, name))
    logger.info("steps with %d and %d boxes", FEW, MANY)
    steps = many_objects(spec, task, args.repeats)
    print(f"\ntraining loader: {headline()}\n")
    print(tabulate(speeds, headers=("workers", "images per second"), floatfmt=".1f"))
    print(
        f"\nmapper: {1000 * mapping.median:.1f} ms per image "
        f"(quartiles {1000 * mapping.lower:.1f}-{1000 * mapping.upper:.1f})\n"
    )
    rows: Sequence[Any] = [(name, 1000 * spread(s).median) for name, s in steps.items()]
    print(tabulate(rows, headers=("training step with", "median ms"), floatfmt=".1f"))
    print(f"\n{MANY} boxes / {FEW} boxes: {cost_of_many(steps)}")
    if args.output is not None:
        labels = ("workers", "images per second")
        line_chart({"loader": speeds}, "training loader", labels, args.output / "data.png")
    results = {"what": "data", "loader": speeds, "mapper": vars(mapping), "steps": steps}
    write_json(args.output, results)
    return results

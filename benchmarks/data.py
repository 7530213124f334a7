"""``data``: loading images, and iterations on images with very many objects."""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tabulate import tabulate

from benchmarks.contenders import Contender, Sample, calibrated_weights
from benchmarks.measuring import Ratio, by_section, in_turn, ratio, spread, tune
from benchmarks.output import headline, line_chart, write_results
from benchmarks.work import Spec, Work, generated_set, specs_from, work_from
from frcnn_plugin.data.loading.mappers import MirroringMapper
from frcnn_plugin.engine import PaperTrainer

logger = logging.getLogger(__name__)

# Of the image files: VOC's usual shorter side, enlarged to 600 by the mapper.
SHORT_SIDE = 375
FEW, MANY = 5, 500  # ground-truth boxes per image


def loader_speed(cfg: CfgNode, workers: int, images: int) -> float:
    """Return the images per second that the training loader gives, after its first batch."""
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
    """Return the seconds to read, decode, resize and mirror each image of a set."""
    mapper = MirroringMapper(cfg, is_train=True)
    seconds = []
    for i, record in enumerate(DatasetCatalog.get(name)):
        start = time.perf_counter()
        mapper({**record, "mirrored": i % 2 == 1})
        seconds.append(time.perf_counter() - start)
    return seconds


def many_objects(spec: Spec, work: Work, repeats: int) -> dict[str, list[float]]:
    """Measure seconds of training iterations with few and with many ground-truth boxes, in turn."""
    logger.info("iterations with %d and %d boxes", FEW, MANY)
    few = replace(work, training=True, objects=FEW)
    contender = Contender(spec, few, calibrated_weights(spec, few))

    def sample(arguments: tuple[Any, ...]) -> Sample:
        contender.arguments = arguments
        return contender.sample()

    runs = {
        f"{n} boxes": partial(sample, contender.arguments_for(replace(few, objects=n)))
        for n in (FEW, MANY)
    }
    return {name: x["total"] for name, x in by_section(in_turn(runs, repeats)).items()}


def cost_of_many(seconds: dict[str, list[float]]) -> Ratio:
    """Return the time of an iteration with many boxes / that of one with few."""
    few, many = seconds.values()
    return ratio(many, few)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the sub-command ``data``."""
    spec = specs_from(args)[0]
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
    seconds = many_objects(spec, work_from(args), args.repeats)
    print(f"\ntraining loader: {headline()}\n")
    print(tabulate(speeds, headers=("workers", "images per second"), floatfmt=".1f"))
    print(
        f"\nmapper: {1000 * mapping.median:.1f} ms per image "
        f"(quartiles {1000 * mapping.lower:.1f}-{1000 * mapping.upper:.1f})\n"
    )
    rows = [(name, 1000 * spread(s).median) for name, s in seconds.items()]
    print(tabulate(rows, headers=("training iteration with", "median ms"), floatfmt=".1f"))
    print(f"\n{MANY} boxes / {FEW} boxes: {cost_of_many(seconds)}")
    if args.output is not None:
        labels = ("workers", "images per second")
        line_chart({"loader": speeds}, "training loader", labels, args.output / "data.png")
    results = {"loader": speeds, "mapper": vars(mapping), "seconds": seconds}
    return write_results(args.output, {"what": "data", **results})

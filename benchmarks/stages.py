"""``stages``: iterations of each stage beside joint ones; a proposal dump beside its networks."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Instances
from tabulate import tabulate

from benchmarks.contenders import Contender, Sample, calibrated_weights
from benchmarks.measuring import Ratio, by_section, in_turn, medians, ratio, spread, tune
from benchmarks.output import bar_chart, headline, write_results
from benchmarks.work import generated_set, random_boxes, specs_from, work_from
from frcnn_plugin.errors import UserError
from frcnn_plugin.evaluation.proposals.evaluator import ProposalCollector
from frcnn_plugin.four_step import STAGES
from frcnn_plugin.modeling import PaperRCNN

logger = logging.getLogger(__name__)

# Name -> phase, what trains.
KINDS = {"joint": ("joint", ("backbone", "proposal_generator", "roi_heads"))} | {
    stage.title + ("" if "backbone" in stage.trains else ", conv frozen"): (
        stage.phase,
        stage.trains,
    )
    for stage in STAGES
}

_DUMP_FIRST = 8  # images before the proposal dump is timed


class Stages:
    """One model that is trained as in every stage, and jointly."""

    def __init__(self, contender: Contender) -> None:
        """Take over a contender for training; a UserError if its model has no phases."""
        model: Any = contender.model
        if not isinstance(model, PaperRCNN):
            raise UserError(
                "stages needs MODEL.META_ARCHITECTURE PaperRCNN, which can train its parts one by "
                f"one; it is {contender.cfg.MODEL.META_ARCHITECTURE}"
            )
        self.contender, self.model = contender, model
        # Others are frozen for good, such as conv1 and conv2.
        self._trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        self._give_proposals()

    def _give_proposals(self) -> None:
        """Give each image as many random boxes as it has in the detector's stages.

        Only those stages read them.
        """
        count = self.contender.cfg.FOUR_STEP.POST_NMS_TOPK
        generator = torch.Generator().manual_seed(self.contender.work.seed)
        for item in self.contender.arguments[0]:
            height, width = item["image"].shape[-2:]
            boxes = random_boxes(count, height, width, 0.05, generator)
            given = Instances(
                (height, width), proposal_boxes=boxes, objectness_logits=torch.zeros(count)
            )
            item["proposals"] = given.to(self.contender.device)

    def sample(self, kind: str) -> Sample:
        """Measure one iteration, of a kind that :data:`KINDS` names."""
        phase, trains = KINDS[kind]
        self.model.set_phase(phase)
        prefixes = tuple(f"{name}." for name in trains)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self._trainable and name.startswith(prefixes))
        return self.contender.sample()


class _TimedCollector(ProposalCollector):
    """Notes when each image was done."""

    done: list[float]

    def reset(self) -> None:
        super().reset()
        self.done = []

    def process(self, inputs: Any, outputs: Any) -> None:
        super().process(inputs, outputs)
        self.done.append(time.perf_counter())


def dump_speed(
    contender: Contender, folder: Path, images: int, repeats: int
) -> dict[str, list[float]]:
    """Measure seconds per image of a proposal dump, and of the two networks that it runs alone.

    Loading images and writing the file belong to the dump. The networks alone get the same images
    ready. Both are timed after the first images: once processes for loading have started, each page
    of memory is copied when it is next written to, which takes seconds, but only once per data set.
    "start" is how much longer the first images took in all.
    """
    cfg, model = contender.cfg, contender.model
    assert isinstance(model, PaperRCNN)
    model.set_phase("rpn")
    rpn: Any = model.proposal_generator
    rpn.pre_nms_topk = {**rpn.pre_nms_topk, False: cfg.FOUR_STEP.PRE_NMS_TOPK}
    rpn.post_nms_topk = {**rpn.post_nms_topk, False: cfg.FOUR_STEP.POST_NMS_TOPK}
    first = min(_DUMP_FIRST, images // 2)
    seconds: dict[str, list[float]] = {"proposal dump": [], "networks": [], "start": []}

    def dump(name: str, dicts: list[Any], mapper: DatasetMapper) -> None:
        collector = _TimedCollector(name, folder / "proposals.pkl")
        begin = time.perf_counter()
        loader = build_detection_test_loader(
            dicts, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
        )
        inference_on_dataset(model, loader, collector)
        timed_from, end = collector.done[first - 1], time.perf_counter()
        each = (end - timed_from) / (images - first)
        seconds["proposal dump"].append(each)
        seconds["start"].append(timed_from - begin - first * each)

    @torch.no_grad()
    def networks(batches: list[Any]) -> None:
        start = time.perf_counter()
        for batch in batches:
            _, features = model.features(batch)
            rpn.rpn_head([features[f] for f in rpn.in_features])
        contender.synchronise()
        seconds["networks"].append((time.perf_counter() - start) / len(batches))

    short_side = min(contender.work.height, contender.work.width)
    with generated_set(folder, images, short_side) as name, contender.autocast():
        dicts = DatasetCatalog.get(name)
        mapper = DatasetMapper(cfg, is_train=False)
        ready = [[mapper(d)] for d in dicts]
        networks(ready[:2])
        seconds["networks"].clear()  # that was a warm-up
        for _ in range(repeats):
            dump(name, dicts, mapper)
            networks(ready[first:])
    return seconds


def dump_ratio(dump: dict[str, list[float]]) -> Ratio:
    """Return the speed of a dump / that of its networks alone."""
    return ratio(dump["networks"], dump["proposal dump"])


def measure_stages(args: argparse.Namespace) -> dict[str, Any]:
    """Measure iterations of all kinds in turn, and the dump.

    Returns:
        kind -> "seconds" of all rounds, "sections": medians; "dump", see :func:`dump_speed`.
    """
    spec, work = specs_from(args)[0], replace(work_from(args), training=True)
    if args.images < 2:
        raise UserError(f"--images is {args.images}: the proposal dump needs 2 or more")
    tune(spec)  # nobody else's model runs in this process
    weights = calibrated_weights(spec, work)
    stages = Stages(Contender(spec, work, weights))
    runs = {kind: partial(stages.sample, kind) for kind in KINDS}
    samples = by_section(in_turn(runs, args.repeats))
    del stages, runs  # and their memory
    logger.info("proposal dump of %d images", args.images)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        inference = Contender(spec, replace(work, training=False), weights)
        dump = dump_speed(inference, Path(folder), args.images, max(1, min(3, args.repeats)))
    return {
        "seconds": {kind: sections["total"] for kind, sections in samples.items()},
        "sections": {kind: medians(sections) for kind, sections in samples.items()},
        "dump": dump,
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the sub-command ``stages``."""
    results = measure_stages(args)
    rows = [
        (kind, *spread(seconds).in_ms(), str(ratio(seconds, results["seconds"]["joint"])))
        for kind, seconds in results["seconds"].items()
    ]
    print(f"\niterations of the stages, {args.batch} image(s): {headline()}\n")
    headers = ("stage", "median ms", "quartiles ms", "/ joint [95%]")
    print(tabulate(rows, headers=headers, floatfmt=".1f"))
    dump = results["dump"]
    speed = dump_ratio(dump)
    ms = {name: f"{1000 * spread(seconds).median:.0f}" for name, seconds in dump.items()}
    print(
        f"\nproposal dump {ms['proposal dump']} ms per image, backbone and RPN head alone "
        f"{ms['networks']} ms: {speed} of their speed; once, at the start, {ms['start']} ms more"
    )
    if args.output is not None:
        bars = list(results["sections"].items())
        bar_chart(bars, "an iteration of each stage", args.output / "stages.png")
    return write_results(args.output, {"what": "stages", **results, "dump_speed": speed.value})

"""``stages``: iterations of the four stages beside a joint one; the speed of proposal dumps."""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, Instances
from tabulate import tabulate

from benchmarks.compare import SECTIONS, specs, work
from benchmarks.contenders import Contender, calibrated_weights
from benchmarks.environment import headline
from benchmarks.generated import generated_set
from benchmarks.plots import bar_chart
from benchmarks.report import write_json
from benchmarks.samples import ratio, spread
from benchmarks.sessions import tune
from benchmarks.specs import Sample
from frcnn_plugin.errors import UserError
from frcnn_plugin.evaluation.proposals.evaluator import ProposalCollector
from frcnn_plugin.four_step import STAGES
from frcnn_plugin.modeling import PaperRCNN

logger = logging.getLogger("frcnn_plugin.tools.benchmark")

# Name, phase, what trains.
KINDS = (
    ("joint", "joint", ("backbone", "proposal_generator", "roi_heads")),
    *(
        (s.title + ("" if "backbone" in s.trains else ", conv frozen"), s.phase, s.trains)
        for s in STAGES
    ),
)

_FIRST = 8  # images before the proposal dump is timed


class Stages:
    """One model that is trained as in every stage, and jointly."""

    def __init__(self, contender: Contender) -> None:
        """Take over a contender for training.

        Args:
            contender: one iteration of it is measured at a time.

        Raises:
            UserError: the model has no phases.
        """
        model: Any = contender.model
        if not isinstance(model, PaperRCNN):
            raise UserError(
                "stages needs MODEL.META_ARCHITECTURE PaperRCNN, which can train its parts one by "
                f"one; it is {contender.cfg.MODEL.META_ARCHITECTURE}"
            )
        self.contender, self.model = contender, model
        # Frozen for good, such as conv1 and conv2.
        self._trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        self._give_proposals()

    def _give_proposals(self) -> None:
        """As many random boxes per image as the detector stages have; they read nothing else."""
        count = self.contender.cfg.FOUR_STEP.POST_NMS_TOPK
        generator = torch.Generator().manual_seed(self.contender.work.seed)
        for item in self.contender.arguments[0]:
            height, width = item["image"].shape[-2:]
            sides = torch.rand((count, 2), generator=generator) * 0.5 + 0.05
            corner = torch.rand((count, 2), generator=generator) * (1 - sides)
            boxes = torch.cat((corner, corner + sides), 1) * torch.tensor([width, height] * 2)
            item["proposals"] = Instances((height, width))
            item["proposals"].proposal_boxes = Boxes(boxes)
            item["proposals"].objectness_logits = torch.zeros(count)

    def sample(self, name: str, phase: str, trains: tuple[str, ...]) -> Sample:
        """Measure one iteration.

        Args:
            name: one of :data:`KINDS`.
            phase: of the model.
            trains: sub-modules that train.
        """
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
    """Seconds per image of writing proposals, and of the two networks they come from alone.

    Loading images and writing the file belong to the former. The networks alone get the same images
    ready. Both are timed behind the first images: after processes for loading have started, each
    page of memory is copied when it is written to, a matter of seconds once in a data set.

    Args:
        contender: for inference; its model is in phase "rpn" afterwards.
        folder: for the data set and the file.
        images: how many, at least 2.
        repeats: rounds.

    Returns:
        seconds of all rounds: "proposal dump" and "networks" per image; "start", how much longer
        the first images took in all.
    """
    cfg, model = contender.cfg, contender.model
    assert isinstance(model, PaperRCNN)
    model.set_phase("rpn")
    rpn: Any = model.proposal_generator
    rpn.pre_nms_topk = {**rpn.pre_nms_topk, False: cfg.FOUR_STEP.PRE_NMS_TOPK}
    rpn.post_nms_topk = {**rpn.post_nms_topk, False: cfg.FOUR_STEP.POST_NMS_TOPK}
    height, width = contender.work.height, contender.work.width
    with generated_set(folder, images, min(height, width)) as name:
        dicts = DatasetCatalog.get(name)
        mapper = DatasetMapper(cfg, is_train=False)
        ready = [[mapper(d)] for d in dicts]

        first = min(_FIRST, images // 2)
        seconds: dict[str, list[float]] = {"proposal dump": [], "networks": [], "start": []}

        def dump() -> None:
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

        with contender.autocast():
            networks(ready[:2])
            seconds["networks"].clear()  # that was a warm-up
            for _ in range(repeats):
                dump()
                networks(ready[first:])
    return seconds


def measure_stages(args: argparse.Namespace) -> dict[str, Any]:
    """Measure seconds of all kinds of iterations, interleaved, and of the dump."""
    (spec, *others), task = specs(args), work(args)
    if others:
        raise UserError("stages compares the stages of one model: leave out --versus")
    if args.images < 2:
        raise UserError(f"--images is {args.images}: the proposal dump needs 2 or more")
    tune(spec)  # nobody else's model runs in this process
    training = replace(task, training=True)
    weights = calibrated_weights(spec, training)
    samples: dict[str, list[Sample]] = {name: [] for name, _, _ in KINDS}
    stages = Stages(Contender(spec, training, weights))
    for i in range(1 + args.repeats):
        logger.info("round %d of %d", i + 1, 1 + args.repeats)
        for name, phase, trains in KINDS:
            sample = stages.sample(name, phase, trains)
            if i:  # the first is a warm-up
                samples[name].append(sample)
    del stages
    logger.info("proposal dump of %d images", args.images)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        inference = Contender(spec, replace(task, training=False), weights)
        dump = dump_speed(inference, Path(folder), args.images, max(1, min(3, args.repeats)))
    steps = {name: [x["total"] for x in own] for name, own in samples.items()}
    sections = {
        name: {key: spread([x[key] for x in own]).median for key in SECTIONS if key in own[0]}
        for name, own in samples.items()
    }
    return {"steps": steps, "sections": sections, "dump": dump}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The sub-command ``stages``."""
    results = measure_stages(args)
    steps, dump = results["steps"], results["dump"]
    rows = []
    for name, seconds in steps.items():
        s = spread(seconds)
        quartiles = f"{1000 * s.lower:.0f}-{1000 * s.upper:.0f}"
        rows.append((name, 1000 * s.median, quartiles, str(ratio(seconds, steps["joint"]))))
    print(f"\nstages, {args.batch} image(s): {headline()}\n")
    print(
        tabulate(
            rows, headers=("stage", "median ms", "quartiles ms", "/ joint [95%]"), floatfmt=".1f"
        )
    )
    speed = ratio(dump["networks"], dump["proposal dump"])
    ms = {name: f"{1000 * spread(seconds).median:.0f}" for name, seconds in dump.items()}
    print(
        f"\nproposal dump {ms['proposal dump']} ms per image, backbone and RPN head alone "
        f"{ms['networks']} ms: {speed} of their speed; once, at the start, {ms['start']} ms more"
    )
    if args.output is not None:
        bars = list(results["sections"].items())
        bar_chart(bars, "iterations of each stage", args.output / "stages.png")
    results = {"what": "stages", **results, "dump_speed": speed.value}
    write_json(args.output, results)
    return results

"""``family``: what the systems around Faster R-CNN cost beside it, in time and memory.

Each is its own config, with 20 classes, one image and full numbers of proposals and detections; the
plain detector is that of approximate joint training, in the same run.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

from tabulate import tabulate

from benchmarks.compare import measure_both, memory_of
from benchmarks.measuring import ratio
from benchmarks.output import headline, write_results
from benchmarks.work import Spec, specs_from, work_from
from frcnn_plugin import get_config_file


@dataclass(frozen=True)
class Member:
    """A system, and its targets: ratios to the plain detector, where one is set."""

    config: str  # its file in ``configs/``
    infer: float | None = None  # of inference times
    train: float | None = None  # of training iterations
    memory: float | None = None  # of peak memory in inference
    opts: tuple[str, ...] = ()  # ``KEY VALUE`` overrides


# What a system's config has for its training sets, and the four stages, is not measured here.
_ONE_STEP = ("FOUR_STEP.ENABLED", "False", "MODEL.LOAD_PROPOSALS", "False")
_PLAIN = "faster_rcnn_vgg16_voc_joint.yaml"

MEMBERS = {
    "Soft-NMS": Member(
        _PLAIN,
        infer=1.05,
        opts=(  # as in configs/released/vgg16_coco_end2end_softnms.yaml
            *("MODEL.ROI_HEADS.NMS_METHOD_TEST", "linear"),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1e-4", "TEST.DETECTIONS_PER_IMAGE", "400"),
        ),
    ),
    "OHEM": Member(
        _PLAIN,
        train=1.25,
        opts=("MODEL.ROI_HEADS.SAMPLING", "hard"),
    ),
    "non-approximate": Member("faster_rcnn_vgg16_voc_nonapproximate.yaml", train=1.20),
    "Cascade": Member("extensions/cascade_rcnn_vgg16_voc0712.yaml", infer=1.35),
    "R-FCN": Member("extensions/rfcn_vgg16_voc0712.yaml", infer=0.95),
    "HyperNet-SP": Member("extensions/hypernet_vgg16_voc.yaml", infer=1.6, memory=1.5),
}


def _specs(args: argparse.Namespace) -> list[Spec]:
    (plain,) = specs_from(args)
    specs = [replace(plain, name="plain")]
    for name, member in MEMBERS.items():
        if not args.only or name in args.only:
            opts = (*_ONE_STEP, *member.opts, *plain.opts)
            specs.append(Spec(name, "config", get_config_file(member.config), opts))
    return specs


def rows(results: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Return system, what, target, ratio to the plain detector, whether the target is reached."""
    found = []
    for what in ("infer", "train"):
        models = results[what]["models"]
        plain = models["plain"]
        for name, model in models.items():
            if name == "plain":
                continue
            member = MEMBERS[name]
            time = ratio(model["seconds"], plain["seconds"])
            limit = member.infer if what == "infer" else member.train
            found.append((name, f"{what}, time", limit, time.value, str(time)))
            if "peak" in model:
                memory = memory_of(model) / memory_of(plain)
                limit = member.memory if what == "infer" else None
                text = f"{memory:.3f} ({memory_of(model):.0f} MiB)"
                found.append((name, f"{what}, peak memory", limit, memory, text))
    return [
        (
            name,
            what,
            "" if limit is None else f"<= {limit:g}",
            text,
            "" if limit is None else ("yes" if value <= limit else "no"),
        )
        for name, what, limit, value, text in found
    ]


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the sub-command ``family``: about 10 minutes on two cores."""
    alone = not args.together
    options = {"repeats": args.repeats, "separate": alone, "memory": alone}
    results = measure_both(_specs(args), work_from(args), **options)
    found = rows(results)
    print(f"\nthe family beside the plain detector: {headline()}\n")
    headers = ("system", "", "target", "ratio [95%]", "reached")
    print(tabulate(found, headers=headers, disable_numparse=True))
    return write_results(args.output, {"what": "family", **results, "rows": found})

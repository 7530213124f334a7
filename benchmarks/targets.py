"""``targets``: every run that a target is set for, and whether the target is reached.

"The best peer" is the faster (smaller) of stock Detectron2 parts and torchvision's FasterRCNN, in
float32, in the same run.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tabulate import tabulate

from benchmarks.compare import draw, outside_layers, table
from benchmarks.data import cost_of_many, many_objects
from benchmarks.measuring import Ratio, measure, ratio, spread
from benchmarks.output import headline, write_results
from benchmarks.stages import KINDS, dump_ratio, measure_stages
from benchmarks.syncs import totals
from benchmarks.work import PEERS, specs_from, work_from

logger = logging.getLogger(__name__)

Results = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        text: what is measured.
        limit: the target.
        at_least: the measured value must not be below the limit; else not above.
        value: takes it from the results of all runs, with its interval as text.
    """

    text: str
    limit: float
    value: Callable[[Results], tuple[float, str]]
    at_least: bool = False

    def reached(self, value: float) -> bool:
        """Return whether ``value`` reaches the target."""
        return value >= self.limit if self.at_least else value <= self.limit


def _speed(run: str, model: str) -> Callable[[Results], tuple[float, str]]:
    def value(results: Results) -> tuple[float, str]:
        models = results[run]["models"]
        best = min(PEERS, key=lambda peer: spread(models[peer]["seconds"]).median)
        found = ratio(models[model]["seconds"], models[best]["seconds"])
        return found.value, f"{found} of {best}"

    return value


def _memory(run: str) -> Callable[[Results], tuple[float, str]]:
    def value(results: Results) -> tuple[float, str]:
        models = results[run]["models"]
        key = "cuda_mib" if "cuda_mib" in models["ours"]["peak"] else "process_mib"
        best = min(PEERS, key=lambda peer: models[peer]["peak"][key])
        ours, theirs = models["ours"]["peak"][key], models[best]["peak"][key]
        return ours / theirs, f"{ours / theirs:.3f} ({ours:.0f} MiB, {best} {theirs:.0f})"

    return value


def _syncs(run: str) -> Callable[[Results], tuple[float, str]]:
    def value(results: Results) -> tuple[float, str]:
        models = results[run]["models"]
        counts = {name: totals(m["syncs"])[0] for name, m in models.items()}
        peers = ", ".join(f"{peer} {counts[peer]}" for peer in PEERS)
        return counts["ours"], f"{counts['ours']} ({peers})"

    return value


def _ratio(find: Callable[[Results], Ratio]) -> Callable[[Results], tuple[float, str]]:
    def value(results: Results) -> tuple[float, str]:
        found = find(results)
        return found.value, str(found)

    return value


def _stage(number: int) -> Callable[[Results], tuple[float, str]]:
    def find(results: Results) -> Ratio:
        seconds = results["stages"]["seconds"]
        return ratio(seconds[list(KINDS)[number]], seconds["joint"])

    return _ratio(find)


def _outside(results: Results) -> tuple[float, str]:
    percent = outside_layers(results["infer"]["models"]["ours"])
    return percent, f"{percent:.1f} %"


_dump = _ratio(lambda results: dump_ratio(results["stages"]["dump"]))
_many = _ratio(lambda results: cost_of_many(results["objects"]))

TARGETS = (
    Target("inference, fp32 / best peer", 0.57, _speed("infer", "ours")),
    Target("inference, bf16 / best peer", 0.32, _speed("infer", "ours bf16")),
    Target("joint iteration, fp32 / best peer", 0.68, _speed("train", "ours")),
    Target("joint iteration, bf16 / best peer", 0.37, _speed("train", "ours bf16")),
    Target("synchronising operators, inference", 6, _syncs("infer")),
    Target("synchronising operators, training iteration", 12, _syncs("train")),
    Target("RPN stage (1) / joint iteration", 0.80, _stage(1)),
    Target("RPN stage (3) / joint iteration", 0.45, _stage(3)),
    Target("detector stage (4) / joint iteration", 0.45, _stage(4)),
    Target("inference outside conv and fc, %", 4.0, _outside),
    Target("peak memory, inference / best peer", 0.95, _memory("infer")),
    Target("peak memory, training / best peer", 1.0, _memory("train")),
    Target("proposal dump / speed of its networks", 0.95, _dump, at_least=True),
    Target("iteration with 500 boxes / with 5", 1.05, _many),
)


def run(args: argparse.Namespace) -> Results:
    """Run the sub-command ``targets``: about 10 minutes on two cores."""
    args.versus, args.bf16, args.versus_bf16 = list(PEERS), False, False
    ours, *peers = specs_from(args)
    specs = [ours, replace(ours, name="ours bf16", bf16=True), *peers]
    work = work_from(args)
    results: Results = {}
    for name in ("infer", "train"):
        logger.info("%s", name)
        results[name] = measure(
            specs,
            replace(work, training=name == "train"),
            repeats=args.repeats,
            separate=True,
            memory=True,
            syncs=True,
        )
        print(f"\n{name}: {headline()}\n\n{table(results[name])}", flush=True)
    results["stages"] = measure_stages(args)
    results["objects"] = many_objects(ours, work, args.repeats)
    rows = []
    for target in TARGETS:
        value, text = target.value(results)
        sign = ">=" if target.at_least else "<="
        reached = "yes" if target.reached(value) else "no"
        rows.append((target.text, f"{sign} {target.limit:g}", text, reached))
    print(f"\ntargets: {headline()}\n")
    headers = ("", "target", "measured [95%]", "reached")
    print(tabulate(rows, headers=headers, disable_numparse=True))
    if args.output is not None:
        for name in ("infer", "train"):
            draw(results[name], name, args.output / f"{name}.png")
    return write_results(args.output, {"what": "targets", **results, "targets": rows})

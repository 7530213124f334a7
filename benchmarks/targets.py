"""``targets``: every run that a target is set for, and whether the target is reached.

"The best peer" is the faster (smaller) of stock Detectron2 parts and torchvision's FasterRCNN, in
float32, in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tabulate import tabulate

from benchmarks.compare import draw, measure_both, memory_of, outside_layers
from benchmarks.data import cost_of_many, many_objects
from benchmarks.measuring import Ratio, ratio, spread
from benchmarks.output import headline, write_results
from benchmarks.stages import KINDS, dump_ratio, measure_stages
from benchmarks.syncs import totals
from benchmarks.work import PEERS, specs_from, work_from

Results = dict[str, Any]
Value = tuple[float, str]  # measured, and with its interval as text


@dataclass(frozen=True)
class Target:
    """One line of the table: at most, or at least, the limit is to be measured."""

    text: str
    limit: float
    value: Callable[[Results], Value]  # takes it from the results of all runs
    at_least: bool = False

    def reached(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def _speed(run: str, model: str, results: Results) -> Value:
    models = results[run]["models"]
    best = min(PEERS, key=lambda peer: spread(models[peer]["seconds"]).median)
    found = ratio(models[model]["seconds"], models[best]["seconds"])
    return found.value, f"{found} of {best}"


def _memory(run: str, results: Results) -> Value:
    peaks = {name: memory_of(model) for name, model in results[run]["models"].items()}
    best = min(PEERS, key=lambda peer: peaks[peer])
    found, mib = peaks["ours"] / peaks[best], f"{peaks['ours']:.0f} MiB, {best} {peaks[best]:.0f}"
    return found, f"{found:.3f} ({mib})"


def _syncs(run: str, results: Results) -> Value:
    counts = {name: totals(m["syncs"])[0] for name, m in results[run]["models"].items()}
    peers = ", ".join(f"{peer} {counts[peer]}" for peer in PEERS)
    return counts["ours"], f"{counts['ours']} ({peers})"


def _stage(number: int, results: Results) -> Value:
    seconds = results["stages"]["seconds"]
    return _shown(ratio(seconds[list(KINDS)[number]], seconds["joint"]))


def _outside(results: Results) -> Value:
    percent = outside_layers(results["infer"]["models"]["ours"])
    return percent, f"{percent:.1f} %"


def _dump(results: Results) -> Value:
    return _shown(dump_ratio(results["stages"]["dump"]))


def _many(results: Results) -> Value:
    return _shown(cost_of_many(results["objects"]))


def _shown(found: Ratio) -> Value:
    return found.value, str(found)


TARGETS = (
    Target("inference, fp32 / best peer", 0.57, partial(_speed, "infer", "ours")),
    Target("inference, bf16 / best peer", 0.32, partial(_speed, "infer", "ours bf16")),
    Target("joint iteration, fp32 / best peer", 0.68, partial(_speed, "train", "ours")),
    Target("joint iteration, bf16 / best peer", 0.37, partial(_speed, "train", "ours bf16")),
    Target("synchronising operators, inference", 6, partial(_syncs, "infer")),
    Target("synchronising operators, training iteration", 12, partial(_syncs, "train")),
    Target("RPN stage (1) / joint iteration", 0.80, partial(_stage, 1)),
    Target("RPN stage (3) / joint iteration", 0.45, partial(_stage, 3)),
    Target("detector stage (4) / joint iteration", 0.45, partial(_stage, 4)),
    Target("inference outside conv and fc, %", 4.0, _outside),
    Target("peak memory, inference / best peer", 0.95, partial(_memory, "infer")),
    Target("peak memory, training / best peer", 1.0, partial(_memory, "train")),
    Target("proposal dump / speed of its networks", 0.95, _dump, at_least=True),
    Target("iteration with 500 boxes / with 5", 1.05, _many),
)


def run(args: argparse.Namespace) -> Results:
    """Run the sub-command ``targets``: about 10 minutes on two cores."""
    args.versus, args.bf16, args.versus_bf16 = list(PEERS), False, False
    ours, *peers = specs_from(args)
    specs = [ours, replace(ours, name="ours bf16", bf16=True), *peers]
    work = work_from(args)
    options = {"repeats": args.repeats, "separate": True, "memory": True, "syncs": True}
    results = measure_both(specs, work, **options)
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

"""Curves: how time grows with the size of a problem."""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tabulate import tabulate
from torch import multiprocessing

from benchmarks.compare import measure, specs, work
from benchmarks.contenders import Contender, calibrated_weights
from benchmarks.environment import headline
from benchmarks.plots import line_chart
from benchmarks.report import write_json
from benchmarks.samples import spread
from benchmarks.sessions import tune
from benchmarks.specs import Spec, Work
from benchmarks.weights import RandomWeights

logger = logging.getLogger("frcnn_plugin.tools.benchmark")

# Points of each curve.
POINTS: dict[str, tuple[int, ...]] = {
    "image": (300, 450, 600, 900),  # shorter side, pixels
    "proposals": (50, 100, 300, 1000, 2000),
    "gts": (5, 20, 100, 500),
    "batch": (1, 2, 4),
    "processes": (1, 2, 4, 8, 16),  # up to the number of cores
}
_AXES = {
    "image": "shorter side of the image, pixels",
    "proposals": "proposals kept",
    "gts": "ground-truth boxes per image",
    "batch": "images per batch",
    "processes": "processes, one thread each",
}


def _at(kind: str, point: int, wanted: Sequence[Spec], task: Work) -> tuple[list[Spec], Work]:
    """Models and work at one point of a curve."""
    if kind == "proposals":
        which = "TRAIN" if task.training else "TEST"
        opts = (f"MODEL.RPN.POST_NMS_TOPK_{which}", str(point))
        return [replace(spec, opts=(*spec.opts, *opts)) for spec in wanted], task
    if kind == "image":
        # torchvision's model resizes by itself, to the config's size.
        width = round(point * task.width / task.height)
        sizes = ("INPUT.MIN_SIZE_TEST", str(point), "INPUT.MAX_SIZE_TEST", str(max(point, width)))
        wanted = [replace(spec, opts=(*spec.opts, *sizes)) for spec in wanted]
        return list(wanted), replace(task, height=point, width=width)
    if kind == "gts":
        return list(wanted), replace(task, objects=point)
    return list(wanted), replace(task, batch=point)


def _child(
    spec: Spec, task: Work, weights: RandomWeights, repeats: int, barrier: Any, results: Any
) -> None:
    torch.set_num_threads(1)
    tune(spec)
    contender = Contender(spec, task, weights)
    contender.run()
    barrier.wait()
    start = time.perf_counter()
    for _ in range(repeats):
        contender.run()
    contender.synchronise()
    results.put(time.perf_counter() - start)


def throughput(spec: Spec, task: Work, weights: RandomWeights, processes: int, n: int) -> float:
    """Images per second of several processes at once, one thread each, ``n`` runs each."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.SimpleQueue()
    children = [
        context.Process(target=_child, args=(spec, task, weights, n, barrier, results), daemon=True)
        for _ in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    if any(child.exitcode for child in children):
        raise RuntimeError(f"{spec.name}: one of {processes} processes failed")
    slowest = max(results.get() for _ in children)
    return processes * n * task.batch / slowest


def run(args: argparse.Namespace) -> dict[str, Any]:
    """``--scale`` of the sub-commands ``infer`` and ``train``."""
    kind, wanted, task = args.scale, specs(args), work(args)
    points = tuple(args.points) or POINTS[kind]
    if kind == "processes":
        points = tuple(args.points) or tuple(p for p in points if p <= (os.cpu_count() or 1))
        unit = "images per second"
        weights = calibrated_weights(wanted[0], task)
    else:
        unit = "median ms per image" if kind == "batch" else "median ms"
    curves: dict[str, list[tuple[float, float]]] = {spec.name: [] for spec in wanted}
    details = []
    for point in points:
        logger.info("%s: %d", _AXES[kind], point)
        if kind == "processes":
            for spec in wanted:
                value = throughput(spec, task, weights, point, args.repeats)
                curves[spec.name].append((point, value))
            continue
        results = measure(
            *_at(kind, point, wanted, task), repeats=args.repeats, separate=args.separate
        )
        details.append({"point": point, **results})
        for name, model in results["models"].items():
            images = point if kind == "batch" else 1
            curves[name].append((point, 1000 * spread(model["seconds"]).median / images))
            if kind == "proposals" and (kept := model["outcome"]["proposals"]) < point:
                logger.warning("%s keeps %d proposals of %d: no more survive", name, kept, point)
    rows = [
        {_AXES[kind]: point, **{name: values[i][1] for name, values in curves.items()}}
        for i, point in enumerate(points)
    ]
    what = "training step" if task.training else "inference"
    print(f"\n{what}, {unit}: {headline()}\n")
    print(tabulate(rows, headers="keys", floatfmt=".2f" if kind == "processes" else ".1f"))
    if args.output is not None:
        path = args.output / f"{args.command}_{kind}.png"
        line_chart(curves, what, (_AXES[kind], unit), path)
    out = {"what": args.command, "scale": kind, "unit": unit, "curves": curves, "points": details}
    write_json(args.output, out)
    return out

"""``infer`` and ``train``: ours beside the others, on one size of the problem or along a curve."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.measuring import measure, medians, ratio, spread
from benchmarks.output import bar_chart, headline, line_chart, write_results
from benchmarks.syncs import totals
from benchmarks.work import Spec, Work, specs_from, work_from

logger = logging.getLogger(__name__)

# Curve -> its axis and its points.
CURVES: dict[str, tuple[str, tuple[int, ...]]] = {
    "image": ("shorter side of the image, pixels", (300, 450, 600, 900)),
    "proposals": ("proposals kept", (50, 100, 300, 1000, 2000)),
    "gts": ("ground-truth boxes per image", (5, 20, 100, 500)),
    "batch": ("images per batch", (1, 2, 4)),
}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the sub-command ``infer`` or ``train``."""
    if args.scale:
        return _run_curve(args)
    results = measure(
        specs_from(args),
        work_from(args),
        repeats=args.repeats,
        separate=args.separate,
        memory=args.memory,
        syncs=args.syncs,
        others=args.busy,
    )
    what = _what(args)
    height, width = args.image
    title = f"{what}, {args.batch} image(s) of {height}x{width}"
    print(f"\n{title}: {headline()}\n\n{table(results)}")
    for name, model in results["models"].items():
        if "syncs" in model:
            print(f"\n{name}: operators that would make the CPU wait for a GPU, per {what}")
            print(tabulate(model["syncs"], headers=["count", "operator", "line"]))
    if args.output is not None:
        draw(results, title, args.output / f"{args.command}.png")
    return write_results(args.output, {"what": args.command, **results})


def _what(args: argparse.Namespace) -> str:
    return "training iteration" if args.command == "train" else "inference"


def table(results: dict[str, Any]) -> str:
    """Lay out what :func:`benchmarks.measuring.measure` found, a line per model."""
    models = results["models"]
    ours = next(iter(models.values()))
    rows = []
    for name, model in models.items():
        median, quartiles = spread(model["seconds"]).in_ms()
        row: dict[str, Any] = {
            "model": name,
            "median ms": median,
            "quartiles ms": quartiles,
            "ours / this [95%]": (
                "" if model is ours else str(ratio(ours["seconds"], model["seconds"]))
            ),
        }
        if "busy" in model:
            row["busy ms"], row["busy quartiles"] = spread(model["busy"]).in_ms()
            row["busy / alone [95%]"] = str(ratio(model["busy"], model["seconds"]))
        row |= {key: 1000 * value for key, value in medians(model["sections"]).items()}
        if not results["work"]["training"]:
            row["outside conv, fc %"] = outside_layers(model)
        row |= model["outcome"]
        for key, value in model.get("peak", {}).items():
            row[f"peak {key.replace('_mib', ' MiB')}"] = round(value)
        if "syncs" in model:
            row["waits"], row["copies in"] = totals(model["syncs"])
        rows.append(row)
    return tabulate(rows, headers="keys", floatfmt=".1f")


def measure_both(specs: Sequence[Spec], work: Work, **options: Any) -> dict[str, Any]:
    """Measure inference and training, "infer" and "train"; print a table of each."""
    results = {}
    for what in ("infer", "train"):
        logger.info("%s", what)
        results[what] = measure(specs, replace(work, training=what == "train"), **options)
        print(f"\n{what}: {headline()}\n\n{table(results[what])}", flush=True)
    return results


def memory_of(model: dict[str, Any]) -> float:
    """Return the peak memory of the GPU, or of the process without one; MiB."""
    return float(model["peak"].get("cuda_mib", model["peak"]["process_mib"]))


def outside_layers(model: dict[str, Any]) -> float:
    """Return the percentage of inference outside the backbone and other conv and fc layers."""
    sections = model["sections"]
    shares = [1 - a / b for a, b in zip(sections["layers"], sections["total"], strict=True)]
    return 100 * spread(shares).median


def draw(results: dict[str, Any], title: str, path: Path) -> None:
    """Draw a bar per model."""
    rows = [(name, medians(model["sections"])) for name, model in results["models"].items()]
    bar_chart(rows, title, path)


# ---- curves: how time grows with the size of a problem --------------------------------------


def _at(kind: str, point: int, specs: Sequence[Spec], work: Work) -> tuple[Sequence[Spec], Work]:
    """Return models and work at one point of a curve."""
    opts: tuple[str, ...] = ()
    if kind == "proposals":
        opts = (f"MODEL.RPN.POST_NMS_TOPK_{'TRAIN' if work.training else 'TEST'}", str(point))
    elif kind == "image":
        # torchvision's model resizes by itself, to the config's size.
        width = round(point * work.width / work.height)
        opts = ("INPUT.MIN_SIZE_TEST", str(point), "INPUT.MAX_SIZE_TEST", str(max(point, width)))
        work = replace(work, height=point, width=width)
    elif kind == "gts":
        work = replace(work, objects=point)
    else:
        work = replace(work, batch=point)
    return [replace(spec, opts=(*spec.opts, *opts)) for spec in specs], work


def _run_curve(args: argparse.Namespace) -> dict[str, Any]:
    kind, specs, work = args.scale, specs_from(args), work_from(args)
    axis, points = CURVES[kind]
    points = tuple(args.points) or points
    unit = "median ms per image" if kind == "batch" else "median ms"
    curves: dict[str, list[tuple[float, float]]] = {spec.name: [] for spec in specs}
    details = []
    for point in points:
        logger.info("%s: %d", axis, point)
        results = measure(
            *_at(kind, point, specs, work), repeats=args.repeats, separate=args.separate
        )
        details.append({"point": point, **results})
        for name, model in results["models"].items():
            images = point if kind == "batch" else 1
            curves[name].append((point, 1000 * spread(model["seconds"]).median / images))
            if kind == "proposals" and (kept := model["outcome"]["proposals"]) < point:
                logger.warning("%s keeps %d proposals of %d: no more survive", name, kept, point)
    rows = [
        {axis: point, **{name: values[i][1] for name, values in curves.items()}}
        for i, point in enumerate(points)
    ]
    what = _what(args)
    print(f"\n{what}, {unit}: {headline()}\n")
    print(tabulate(rows, headers="keys", floatfmt=".1f"))
    if args.output is not None:
        path = args.output / f"{args.command}_{kind}.png"
        line_chart(curves, what, (axis, unit), path)
    results = {"scale": kind, "unit": unit, "curves": curves, "points": details}
    return write_results(args.output, {"what": args.command, **results})

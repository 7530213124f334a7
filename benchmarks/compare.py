"""``infer`` and ``train``: ours beside the others."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks.agreement import found_again
from benchmarks.contenders import calibrated_weights
from benchmarks.environment import headline
from benchmarks.plots import bar_chart
from benchmarks.report import write_json
from benchmarks.samples import ratio, spread
from benchmarks.sessions import ChildSession, LocalSession, Session, interleave
from benchmarks.specs import Spec, Work
from benchmarks.syncs import sync_rows, totals
from frcnn_plugin.errors import UserError

logger = logging.getLogger("frcnn_plugin.tools.benchmark")

SECTIONS = ("conv", "proposal", "region-wise", "backward", "optimizer", "other")
PEERS = ("detectron2", "torchvision")


def specs(args: argparse.Namespace) -> list[Spec]:
    """Ours first, then those of --versus.

    Raises:
        UserError: --versus names no peer and no file.
    """
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    device = ("MODEL.DEVICE", args.device) if args.device else ()
    opts = ("MODEL.DEVICE", usual, *args.opts, *device)
    name = "ours bf16" if args.bf16 else "ours"
    result = [Spec(name, "config", args.config_file, opts, args.bf16)]
    other_opts = tuple(word for pair in args.versus_opts for word in pair)
    for versus in args.versus:
        name = f"{Path(versus).stem} bf16" if args.versus_bf16 else Path(versus).stem
        if versus in PEERS:
            spec = Spec(name, versus, args.config_file, (*opts, *other_opts), args.versus_bf16)
        elif Path(versus).is_file():
            spec = Spec(name, "config", versus, (*opts, *other_opts), args.versus_bf16)
        else:
            raise UserError(
                f"--versus {versus}: use {', '.join(PEERS)}, or the path of a config file"
            )
        result.append(spec)
    if len({spec.name for spec in result}) < len(result):
        raise UserError(f"--versus {' '.join(args.versus)}: each may be named once")
    return result


def work(args: argparse.Namespace) -> Work:
    """What each model has to do."""
    height, width = args.image
    training = args.command == "train"
    return Work(training, height, width, args.batch, args.objects, args.seed)


def measure(
    wanted: Sequence[Spec],
    task: Work,
    *,
    repeats: int,
    separate: bool,
    memory: bool = False,
    syncs: bool = False,
    warmup: int = 1,
) -> dict[str, Any]:
    """Build all, run them in turn.

    Args:
        wanted: the models, ours first.
        task: what they do.
        repeats: measured runs of each.
        separate: each model in a process of its own.
        memory: measure the peak of each, in a process of its own.
        syncs: count operators that wait for a GPU.
        warmup: runs of each before the measured ones.

    Returns:
        for the JSON file: "order" of the runs, and under "models" per name its seconds, sections,
        outcome, memory and synchronising operators.
    """
    for spec in wanted:
        spec.cfg(task.training)  # a mistake shows before minutes of work
    weights = calibrated_weights(wanted[0], task)
    sessions: list[Session] = []
    models: dict[str, dict[str, Any]] = {}
    try:
        for spec in wanted:
            logger.info("building %s", spec.name)
            sessions.append((ChildSession if separate else LocalSession)(spec, task, weights))
        for session in sessions:
            models[session.name] = {"outcome": session.call("outcome")}
        if not task.training:
            ours, *found = (session.call("detections") for session in sessions)
            for session, theirs in zip(sessions[1:], found, strict=True):
                models[session.name]["outcome"]["ours found, %"] = found_again(ours, theirs)
        logger.info("%d rounds of %d models", warmup + repeats, len(sessions))
        samples = interleave(sessions, repeats, warmup)
        for session in sessions if separate and memory else ():
            models[session.name]["peak"] = session.call("peak")
        for session in sessions if syncs else ():
            logger.info("counting synchronising operators of %s", session.name)
            models[session.name]["syncs"] = sync_rows(session.call("syncs"))
    finally:
        for session in sessions:
            session.close()
    for spec in wanted if memory and not separate else ():
        logger.info("measuring the memory of %s", spec.name)
        child = ChildSession(spec, task, weights)
        try:
            for _ in range(2):
                child.call("sample")
            models[spec.name]["peak"] = child.call("peak")
        finally:
            child.close()
    for name, model in models.items():
        own = [sample for n, sample in samples if n == name]
        model["seconds"] = [sample["total"] for sample in own]
        model["sections"] = {key: [sample[key] for sample in own] for key in own[0]}
    return {"work": asdict(task), "order": [name for name, _ in samples], "models": models}


def medians(model: dict[str, Any]) -> dict[str, float]:
    """Median seconds by section, without "total" and "layers"."""
    sections = model["sections"]
    return {key: spread(sections[key]).median for key in SECTIONS if key in sections}


def table(results: dict[str, Any]) -> str:
    """Models line by line."""
    models = results["models"]
    ours = next(iter(models.values()))
    rows = []
    for name, model in models.items():
        s = spread(model["seconds"])
        row: dict[str, Any] = {
            "model": name,
            "median ms": 1000 * s.median,
            "quartiles ms": f"{1000 * s.lower:.0f}-{1000 * s.upper:.0f}",
            "ours / this [95%]": (
                "" if model is ours else str(ratio(ours["seconds"], model["seconds"]))
            ),
        }
        row |= {key: 1000 * value for key, value in medians(model).items()}
        if not results["work"]["training"]:
            row["outside conv, fc %"] = outside_layers(model)
        row |= model["outcome"]
        for key, value in model.get("peak", {}).items():
            row[f"peak {key.replace('_mib', ' MiB')}"] = round(value)
        if "syncs" in model:
            row["waits"], row["copies in"] = totals(model["syncs"])
        rows.append(row)
    return tabulate(rows, headers="keys", floatfmt=".1f")


def outside_layers(model: dict[str, Any]) -> float:
    """Percent of inference outside the backbone and the other convolutions and linear layers."""
    sections = model["sections"]
    shares = [1 - a / b for a, b in zip(sections["layers"], sections["total"], strict=True)]
    return 100 * spread(shares).median


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The sub-commands ``infer`` and ``train``."""
    results = measure(
        specs(args),
        work(args),
        repeats=args.repeats,
        separate=args.separate,
        memory=args.memory,
        syncs=args.syncs,
    )
    what = "training step" if args.command == "train" else "inference"
    height, width = args.image
    title = f"{what}, {args.batch} image(s) of {height}x{width}"
    print(f"\n{title}: {headline()}\n\n{table(results)}")
    for name, model in results["models"].items():
        if "syncs" in model:
            print(f"\n{name}: operators that would wait for a GPU, per {what}")
            print(tabulate(model["syncs"], headers=["count", "operator", "line"]))
    if args.output is not None:
        rows = [(name, medians(model)) for name, model in results["models"].items()]
        bar_chart(rows, title, args.output / f"{args.command}.png")
    results = {"what": args.command, **results}
    write_json(args.output, results)
    return results

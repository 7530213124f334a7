#!/usr/bin/env python
"""Measure speed and memory, beside stock Detectron2 parts, torchvision or another config.

    python -m benchmarks infer --versus detectron2 --versus torchvision --memory --syncs
    python -m benchmarks train --versus detectron2 --bf16 --output output/benchmark
    python -m benchmarks infer --versus detectron2 --scale image
    python -m benchmarks infer --versus detectron2 --versus torchvision --separate --busy 2
    python -m benchmarks stages
    python -m benchmarks data --workers 0,2
    python -m benchmarks targets
    python -m benchmarks family
    python -m benchmarks learn --config-file my.yaml --output output/learn
    python -m benchmarks runtimes
    python -m benchmarks gpu --minutes 8 --output output/gpu

Weights are random unless MODEL.WEIGHTS names a file, but such that proposals and detections have
their full number; images are random too. ``infer`` and ``train`` run the models in turn, in one
process, or, with --separate, each in a process of its own that sleeps while the others run. ``KEY
VALUE`` pairs at the end override the config, also for the peers that are built from it. Times
depend on the machine, which should have nothing else to do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.logger import setup_logger

from benchmarks import compare, data, family, gpu, learn, runtimes, stages, targets
from benchmarks.output import prepare_folder
from benchmarks.work import PEERS
from frcnn_plugin import get_config_file
from frcnn_plugin.errors import UserError

# Sub-command -> what does it, its help, and how many runs are measured.
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], str, int]] = {
    "infer": (compare.run, "inference", 7),
    "train": (compare.run, "joint training iterations: forward, backward, optimizer", 5),
    "stages": (stages.run, "the stages of four-step training; proposal dumps", 5),
    "data": (data.run, "the training loader; iterations with many ground-truth boxes", 5),
    "targets": (targets.run, "everything that a target is set for, with the targets", 5),
    "family": (family.run, "the systems around Faster R-CNN beside the plain one", 5),
    "learn": (learn.run, "AP after training on your data, beside both peers", 0),
    "runtimes": (runtimes.run, "inference on a CPU beside ONNX Runtime and OpenVINO", 7),
    "gpu": (gpu.run, "all that is to be known on a GPU, in a few minutes", 0),
}
# Sub-commands that share no options with the others -> what adds theirs.
_WITH_OWN_OPTIONS = {"learn": learn.add_arguments, "gpu": gpu.add_arguments}


def image_size(text: str) -> tuple[int, int]:
    """Read "600x1000" as (height, width)."""
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and min(int(height), int(width)) >= 64):
        raise argparse.ArgumentTypeError(f"'{text}' is no HEIGHTxWIDTH of 64 pixels or more")
    return int(height), int(width)


def numbers(text: str) -> tuple[int, ...]:
    """Read "0,1,2" as a tuple."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"'{text}' is no list of whole numbers, such as 0,1,2"
        ) from None


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, text, repeats) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in _WITH_OWN_OPTIONS:
            _WITH_OWN_OPTIONS[name](command)
            continue
        add_common(command, repeats)
        if name in ("infer", "train"):
            add_comparison(command)
        if name in ("stages", "data", "targets"):
            images = 8 if name == "data" else 24
            command.add_argument(
                "--images", type=int, default=images, help=f"generated images; default: {images}"
            )
        if name == "data":
            command.add_argument(
                "--workers", type=numbers, default=(0, 1, 2), help="such as 0,2; default: 0,1,2"
            )
        if name == "family":
            command.add_argument(
                "--only", action="append", choices=list(family.MEMBERS), help="may be repeated"
            )
            command.add_argument(
                "--together", action="store_true", help="all in one process, without memory"
            )
        command.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides")
    return parser.parse_args(argv)


def add_common(command: argparse.ArgumentParser, repeats: int) -> None:
    command.add_argument(
        "--config-file", default=get_config_file(gpu.CONFIG), help="default: %(default)s"
    )
    command.add_argument(
        "--image", type=image_size, default=(600, 1000), metavar="HxW", help="default: 600x1000"
    )
    for option, default, text in (
        ("--batch", 1, "images at once"),
        ("--objects", 5, "ground-truth boxes per image"),
        ("--repeats", repeats, "measured runs of each model"),
        ("--threads", 0, "of each process; 0: as many as torch chooses"),
        ("--seed", 0, "of weights, images and sampling"),
    ):
        command.add_argument(option, type=int, default=default, help=f"{text}; default: {default}")
    command.add_argument("--device", default="", help="cpu or cuda; default: the config's")
    command.add_argument("--output", type=Path, help="folder for benchmark.json and charts")
    command.set_defaults(versus=[], versus_opts=[], bf16=False, versus_bf16=False)
    command.set_defaults(scale=None, points=(), busy=0)
    if not command.prog.endswith("targets"):
        command.add_argument("--bf16", action="store_true", help="run ours in bfloat16")


def add_comparison(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--versus",
        action="append",
        default=[],
        metavar="WHAT",
        help=f"{', '.join(PEERS)}, or a config file; may be repeated",
    )
    command.add_argument(
        "--versus-opts",
        action="append",
        nargs=2,
        default=[],
        metavar=("KEY", "VALUE"),
        help="override for those of --versus only; may be repeated",
    )
    for option, text in (
        ("--versus-bf16", "run those of --versus in bfloat16, too"),
        ("--separate", "give each model a process of its own"),
        ("--memory", "measure the peak memory of each, in a process of its own"),
        ("--syncs", "count operators that make the CPU wait for a GPU; needs no GPU"),
    ):
        command.add_argument(option, action="store_true", help=text)
    command.add_argument(
        "--busy",
        type=int,
        default=0,
        metavar="N",
        help="run each beside N busy processes, too, and print how much slower that is",
    )
    command.add_argument("--scale", choices=list(compare.CURVES), help="measure a curve instead")
    command.add_argument(
        "--points", type=numbers, default=(), help="of the curve, such as 300,600,900"
    )


def check(args: argparse.Namespace) -> None:
    """Stop if an option makes no sense."""
    for name in ("batch", "repeats", "objects", *(["images"] if "images" in args else [])):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.threads < 0:
        raise UserError(f"--threads must be at least 0, not {args.threads}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {args.device}: there is no CUDA here; leave it out")
    if args.busy < 0:
        raise UserError(f"--busy must be at least 0, not {args.busy}")
    if args.busy and args.scale:
        raise UserError("--busy measures no curve: leave out --scale or --busy")
    if args.points and not args.scale:
        raise UserError("--points belongs to --scale: name the curve")
    if any(p < 1 for p in args.points):
        raise UserError(f"--points must be at least 1, not {min(args.points)}")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    for name in ("benchmarks", "frcnn_plugin"):
        setup_logger(name=name)
    try:
        prepare_folder(args.output)
        if args.command not in _WITH_OWN_OPTIONS:
            check(args)
            if args.threads:
                torch.set_num_threads(args.threads)
        return COMMANDS[args.command][0](args)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from here" if args.command == "learn" else ""
        print(f"interrupted{goes_on}", file=sys.stderr)
        sys.exit(130)  # as a shell reports the signal


if __name__ == "__main__":
    main()

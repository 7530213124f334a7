"""Find what is wrong before it costs a day: software, data sets, weights, schedule.

    frcnn doctor
    frcnn doctor --config-file frcnn://faster_rcnn_vgg16_voc.yaml MODEL.WEIGHTS vgg16.pth
    frcnn doctor --config-file my.yaml --all --json findings.json

Without a config the doctor looks at the environment and at the data sets at hand. With one it makes
the checks that `frcnn train` makes before it starts; give it the same options and overrides.

Exit status: 0 if there are no errors, 1 if there are; with --strict, warnings count as errors.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..atomic_files import write_text
from ..engine.setup import setup_cfg
from ..errors import UserError
from ..preflight import PlannedRun, count, preflight, preflight_without_config
from ..preflight.finding import Subject, plural
from ..preflight.planned_run import muted
from . import add_config_file, add_overrides, add_processes, check_file, check_numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_file(parser, "config to check")
    parser.add_argument("--eval-only", action="store_true", help="check for an evaluation")
    parser.add_argument("--resume", action="store_true", help="check for continuing a run")
    parser.add_argument("--overwrite", action="store_true", help="check for starting a run anew")
    add_processes(parser)
    parser.add_argument(
        "--all", action="store_true", help="load every data set and decode every image"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the findings to this file"
    )
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")
    add_overrides(parser)


def find(args: argparse.Namespace) -> Iterator[Any]:
    """Yield findings as they are made."""
    if not args.config_file and not args.opts:
        yield from preflight_without_config()
        return
    problem = None
    with muted("frcnn_plugin") as messages:
        try:
            check_numbers(args)
            run = PlannedRun(
                setup_cfg(args.config_file, args.opts),
                eval_only=args.eval_only,
                resume=args.resume,
                overwrite=args.overwrite,
                num_processes=args.num_gpus,
                config_file=args.config_file,
                opts=args.opts,
                every_image=args.all,
                alone=True,
            )
        except UserError as e:
            problem = e
    config = Subject("config")
    yield from map(config.warning, messages)
    if problem is not None:
        yield config.error(str(problem))
        return
    yield from preflight(run)


def run(args: argparse.Namespace) -> int:
    """Print one line per finding; return the exit status."""
    if args.json:
        check_file("--json", args.json)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    findings = []
    for finding in find(args):
        findings.append(finding)
        print(finding.line(colour=colour), flush=True)
    counts = count(findings)
    bad = counts["error"] + (counts["warning"] if args.strict else 0)
    print(
        f"{counts['ok']} fine, {plural(counts['warning'], 'warning')}, "
        f"{plural(counts['error'], 'error')}"
    )
    if args.json:
        content = {"exit_status": int(bad > 0), "findings": [asdict(f) for f in findings]}
        write_text(args.json, json.dumps(content, indent=2) + "\n")
    return int(bad > 0)

"""Say what is wrong before it costs a day: software, data sets, weights, schedule, disk, memory.

    python tools/doctor.py
    python tools/doctor.py --config-file configs/faster_rcnn_vgg16_voc.yaml MODEL.WEIGHTS vgg16.pth
    python tools/doctor.py --all --json report.json --config-file ...

Without a config it looks at the environment and at the data sets at hand. With one it makes the
checks that train_net.py makes before it starts; give it the same options and overrides.

Exit status: 0 if there are no errors, 1 if there are; with --strict, warnings count as errors.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Nothing of the package is imported here: whether it can be is the first thing to find out.


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="config to check")
    parser.add_argument("--eval-only", action="store_true", help="check for an evaluation")
    parser.add_argument("--resume", action="store_true", help="check for going on with a run")
    parser.add_argument("--overwrite", action="store_true", help="check for starting a run anew")
    parser.add_argument(
        "--num-gpus", type=int, default=1, help="processes on this machine; default: %(default)s"
    )
    parser.add_argument(
        "--all", action="store_true", help="load every data set and decode every image"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings there, too")
    parser.add_argument("--strict", action="store_true", help="warnings count as errors")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    return parser.parse_args(argv)


def find(args: argparse.Namespace) -> Iterator[Any]:
    """What there is to say, as it is found."""
    from ..engine.setup import setup_cfg
    from ..errors import UserError
    from ..preflight import PlannedRun, preflight, preflight_without_config
    from ..preflight.finding import error, warning
    from ..preflight.planned_run import warnings_of

    if not args.config_file and not args.opts:
        yield from preflight_without_config()
        return
    try:
        with warnings_of("frcnn_plugin") as messages:
            cfg = setup_cfg(args.config_file, args.opts)
        run = PlannedRun(
            cfg,
            eval_only=args.eval_only,
            resume=args.resume,
            overwrite=args.overwrite,
            num_processes=args.num_gpus,
            config_file=args.config_file,
            every_image=args.all,
            alone=True,
        )
    except UserError as e:
        yield error("config", str(e))
        return
    yield from (warning("config", message) for message in messages)
    yield from preflight(run)


def write_json(path: Path, findings: Sequence[Any], status: int) -> None:
    """Write the findings, whole or not at all."""
    from ..atomic_files import write_text

    content = {"exit_status": status, "findings": [asdict(f) for f in findings]}
    write_text(path, json.dumps(content, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line per finding; returns the exit status."""
    args = parse_args(argv)
    try:
        from ..preflight import count
        from ..preflight.finding import plural
    except ImportError as e:  # its text says what is missing, and the command that mends it
        print(f"FAIL  environment  Python {platform.python_version()}: {e}")
        return 1
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
        try:
            write_json(args.json, findings, int(bad > 0))
        except OSError as e:
            print(f"error: cannot write --json {args.json} ({e.strerror})", file=sys.stderr)
            return 1
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())

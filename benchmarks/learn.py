"""``learn``: what detectors learn from a data set in the same number of iterations.

The contenders train on the same images, with the same budget, and start with the same weights of
VGG16: the plugin in one joint stage and in the paper's four, stock Detectron2 parts, and
torchvision's detector. Further rows change one rule of the joint one to what stock Detectron2 does.
Every run is a ``frcnn train`` in a process of its own and a folder of its own; finished runs are
kept, so that the same command, typed again, goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from detectron2.config import CfgNode
from tabulate import tabulate

from benchmarks.output import headline, line_chart, write_results
from benchmarks.peers import STOCK_RULES, as_peer, starting_weights
from benchmarks.work import PEERS
from frcnn_plugin.atomic_files import replacing
from frcnn_plugin.cli import differing_keys, run_with_parent
from frcnn_plugin.cli.__main__ import main as frcnn
from frcnn_plugin.config_files import flat_keys
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.errors import UserError
from frcnn_plugin.preflight.finding import plural
from frcnn_plugin.report.recorder import RunRecord

METRICS = ("AP50", "AP75", "AP")
CONTENDERS = ("joint", "four-step", *PEERS)

_EXACT = {
    "MODEL.RPN.DECODE_GROWTH": 0.0,
    "MODEL.ROI_BOX_HEAD.DECODE_GROWTH": 0.0,
    "MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE": False,
}
_NO_DROPOUT = {"MODEL.ROI_BOX_HEAD.DROPOUT": 0.0}


def _stock(*keys: str) -> dict[str, Any]:
    return {key: STOCK_RULES[key] for key in keys}


# Row -> what it has as stock parts do; the rest is as in "joint".
RULES: dict[str, dict[str, Any]] = {
    "RoIAlign": _stock("MODEL.ROI_BOX_HEAD.POOLER_TYPE"),
    "L1 in the head": _stock("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA"),
    "L1 in the RPN": _stock("MODEL.RPN.SMOOTH_L1_BETA"),
    "anchors across the border": _stock("MODEL.RPN.BOUNDARY_THRESH"),
    "flips at random": _stock("INPUT.RANDOM_FLIP", "DATALOADER.MIRRORED_COPIES"),
    "one learning rate": _stock("SOLVER.BIAS_LR_FACTOR", "SOLVER.CAFFE_MOMENTUM"),
    "NMS at 0.5": _stock("MODEL.ROI_HEADS.NMS_THRESH_TEST"),
    "exact decoding": _EXACT,
    "no dropout": _NO_DROPOUT,
    "all of them": {**STOCK_RULES, **_EXACT, **_NO_DROPOUT},
}


class Point(NamedTuple):
    """An evaluation during a run: iterations done; AP50, AP75, AP and those per class, percent."""

    iteration: int
    values: dict[str, float]


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Offer the options of ``learn``."""
    command.add_argument("--config-file", required=True, help="joint training on your data")
    command.add_argument("--output", type=Path, required=True, help="folder of runs and results")
    command.add_argument(
        "--row",
        action="append",
        choices=[*CONTENDERS, *RULES],
        help=f"may be repeated; default: {', '.join(CONTENDERS)}",
    )
    command.add_argument(
        "--try",
        dest="tried",
        action="append",
        default=[],
        nargs=2,
        metavar=("NAME", "'KEY VALUE ...'"),
        help="a row of your own: joint with other values; may be repeated",
    )
    command.add_argument("--seeds", default="1,2,3", help="default: %(default)s")
    command.add_argument(
        "--evaluations", type=int, default=4, help="on the way of a run; default: %(default)s"
    )
    command.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides, of all rows")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run what is not there yet, and show everything in the folder that was asked for."""
    try:
        seeds = [int(word) for word in args.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds is {args.seeds!r}: give whole numbers, such as 1,2,3") from None
    if args.evaluations < 1:
        raise UserError(f"--evaluations must be at least 1, not {args.evaluations}")
    names = args.row or ([] if args.tried else list(CONTENDERS))
    names += [name for name, _ in args.tried]
    folders = [folder_name(name) for name in names]
    for name, folder in zip(names, folders, strict=True):
        known = name in (*CONTENDERS, *RULES) and name in dict(args.tried)
        if not folder or known or (folders.count(folder) > 1 and name in dict(args.tried)):
            raise UserError(f"--try {name!r}: give each row a name of its own")
    runs = _Runs(args, names)
    found: dict[str, dict[int, list[Point]]] = {name: {} for name in names}
    for seed in seeds:  # seed by seed: an interrupted comparison has all rows
        for name in names:
            found[name][seed] = runs.points(name, seed)
    text = table(found)
    print(f"\n{runs.title}\n{headline()}\n\n{text}")
    for metric in ("AP50", "AP"):
        labels = ("iterations", f"{metric}, %, mean of {plural(len(seeds), 'seed')}")
        path = args.output / f"learn_{metric.lower()}.png"
        line_chart(curves(found, metric), runs.title, labels, path)
        print(path)
    return write_results(args.output, {"what": "learn", "rows": found, "table": text})


def table(found: dict[str, dict[int, list[Point]]]) -> str:
    """Return the results after the last iteration: mean and deviation over seeds, percent."""
    first = next(iter(next(iter(found.values())).values()))[-1].values
    columns = [*METRICS, *(key for key in first if key.startswith("AP50/"))]
    lines = []
    for name, of in found.items():
        last = [points[-1].values for points in of.values()]
        lines.append([name, len(of), *(_mean([x[key] for x in last]) for key in columns)])
    headers = ["", "seeds", *(key.replace("AP50/", "AP50 ") for key in columns)]
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def curves(
    found: dict[str, dict[int, list[Point]]], metric: str
) -> dict[str, list[tuple[float, float]]]:
    """Return per row the mean over seeds at the iterations that all seeds were evaluated at."""
    result = {}
    for name, of in found.items():
        at = [{p.iteration: p.values[metric] for p in points} for points in of.values()]
        shared = sorted(set.intersection(*(set(x) for x in at)))
        result[name] = [(float(i), statistics.fmean(x[i] for x in at)) for i in shared]
    return result


def _mean(values: Sequence[float]) -> str:
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def folder_name(name: str) -> str:
    """Return the name of a row's folder."""
    return re.sub(r"[\s/\\]", "_", name).strip(".")


def read_points(folder: Path, last: int) -> list[Point]:
    """Return the evaluations of a finished run, from Detectron2's ``metrics.json``.

    Args:
        folder: of the run.
        last: number of its iterations. Detectron2 counts from 0, but the last evaluation from 1.
    """
    points: dict[int, Point] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        row = json.loads(line)
        for prefix, after in (("bbox/", 1), ("stage2/bbox/", 0)):  # the latter when stage 3 begins
            values = {k.removeprefix(prefix): row[k] for k in row if k.startswith(f"{prefix}AP")}
            if values:  # a resumed run repeats some
                iteration = min(row["iteration"] + after, last)
                points[iteration] = Point(iteration, values)
    return [points[i] for i in sorted(points)]


class _Runs:
    """The runs, each in a folder of its own."""

    def __init__(self, args: argparse.Namespace, names: Sequence[str]) -> None:
        self._folder, self._tried = args.output, dict(args.tried)
        self._config_file, self._opts = args.config_file, args.opts
        cfg = self._cfg = setup_cfg(args.config_file, args.opts)
        if cfg.FOUR_STEP.ENABLED or not cfg.DATASETS.TEST:
            raise UserError(
                f"{args.config_file}: give a config of joint training with a set in DATASETS.TEST; "
                "the row four-step is made from it"
            )
        last = self._last = cfg.SOLVER.MAX_ITER
        if "four-step" in names and last < 4:
            raise UserError(f"SOLVER.MAX_ITER is {last}: the row four-step needs at least 4")
        self._period = -(-last // args.evaluations)
        self.title = (
            f"{cfg.DATASETS.TRAIN[0]}: {plural(last, 'iteration')} of "
            f"{plural(cfg.SOLVER.IMS_PER_BATCH, 'image')}, "
            f"shorter side {cfg.INPUT.MIN_SIZE_TRAIN[0]} px"
        )
        self._opts_of = {name: self._overrides(name) for name in names}  # mistakes, before all runs

    def points(self, name: str, seed: int) -> list[Point]:
        """Return the evaluations of a run, which is made or finished first if need be.

        Raises:
            UserError: it failed, or its folder holds a run with other values.
        """
        folder = self._folder / folder_name(name) / f"seed-{seed}"
        opts = [*self._opts_of[name], "SEED", str(seed), "OUTPUT_DIR", str(folder)]
        record = RunRecord.load(folder)
        if record is None or not record.complete:
            self._train(name, seed, folder, opts)
        else:
            cfg = setup_cfg(self._config_file, opts)
            if keys := differing_keys(record.config, cfg.dump()):
                raise UserError(
                    f"{folder} holds a run with other values of {', '.join(keys[:3])}: give "
                    "the same config and overrides, or another --output"
                )
        points = read_points(folder, self._last)
        if not points or points[-1].iteration != self._last:
            raise UserError(f"{folder}/metrics.json lacks the last evaluation: delete {folder}")
        return points

    def _overrides(self, name: str) -> list[str]:
        """Return what a row changes, as ``KEY VALUE`` words."""
        cfg = self._cfg.clone()
        cfg.defrost()
        cfg.TEST.EVAL_PERIOD = self._period
        if name in PEERS:
            cfg = as_peer(cfg, name)
            cfg.MODEL.WEIGHTS = self._weights(name) if cfg.MODEL.WEIGHTS else ""
        elif name == "four-step":
            _four_steps(cfg)
        elif name in RULES:
            cfg.merge_from_list([word for pair in RULES[name].items() for word in pair])
        elif name != "joint":
            cfg = self._other_values(name, cfg.TEST.EVAL_PERIOD)
        before, after = _flat(self._cfg), _flat(cfg)
        changed = {key: value for key, value in after.items() if before[key] != value}
        return [*self._opts, *(w for key, value in changed.items() for w in (key, _typed(value)))]

    def _other_values(self, name: str, period: int) -> CfgNode:
        try:
            words = shlex.split(self._tried[name])
            opts = [*self._opts, "TEST.EVAL_PERIOD", str(period), *words]
            cfg = setup_cfg(self._config_file, opts)
        except (UserError, ValueError) as error:
            raise UserError(f"--try {name!r} {self._tried[name]!r}: {error}") from error
        if cfg.SOLVER.MAX_ITER != self._last or cfg.FOUR_STEP.ENABLED or not cfg.DATASETS.TEST:
            raise UserError(
                f"--try {name!r}: rows train jointly, with the same SOLVER.MAX_ITER, and are tested"
            )
        return cfg

    def _weights(self, name: str) -> str:
        what = f"{self._cfg.MODEL.WEIGHTS} {self._cfg.MODEL.WEIGHTS_MAY_LACK}"
        path = self._folder / f"start_{name}_{zlib.crc32(what.encode()):08x}.pth"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                torch.save({"model": starting_weights(self._cfg, name)}, temporary)
        return str(path)

    def _train(self, name: str, seed: int, folder: Path, opts: list[str]) -> None:
        resume = ["--resume"] if (folder / "last_checkpoint").is_file() else ["--overwrite"]
        line = ["train", *resume, "--config-file", self._config_file, *opts]
        folder.mkdir(parents=True, exist_ok=True)
        console = folder / "console.txt"
        print(f"{name}, seed {seed}: {console}", flush=True)
        start = time.monotonic()
        with console.open("a") as out:
            command = [sys.executable, "-m", "benchmarks.learn", *line]
            status = run_with_parent(command, out)
        if status:
            lines = console.read_text(errors="replace").strip().splitlines()
            last = lines[-1] if lines else ""
            raise UserError(
                f"{name}, seed {seed} ended with status {status}: {last} (more in {console}). The "
                "same command goes on from here"
            )
        values = read_points(folder, self._last)[-1].values
        shown = ", ".join(f"{key} {values[key]:.1f}" for key in METRICS)
        print(f"{name}, seed {seed}: {shown} after {time.monotonic() - start:.0f} s", flush=True)


def _four_steps(cfg: CfgNode) -> None:
    """Spread the iterations of joint training over four stages, which see as many images each."""
    quarter, rest = divmod(cfg.SOLVER.MAX_ITER, 4)
    node = cfg.FOUR_STEP
    node.ENABLED = True
    node.ITERS = [quarter, quarter, quarter, quarter + rest]
    node.DROPS = [[step // 4 for step in cfg.SOLVER.STEPS]] * 4
    node.IMS_PER_BATCH = [cfg.SOLVER.IMS_PER_BATCH] * 4


def _flat(cfg: CfgNode) -> dict[str, Any]:
    return flat_keys(yaml.safe_load(cfg.dump()))


def _typed(value: Any) -> str:
    return value if isinstance(value, str) and value else repr(value)


if __name__ == "__main__":  # frcnn, with the peers registered
    sys.exit(frcnn())

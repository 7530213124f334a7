r"""Run the rows of one of the paper's tables, and print ours beside the paper's mAP.

    frcnn ablations 9 --show
    frcnn ablations 9
    frcnn ablations 8 --rows 1,3,6 --output output/mine DATASETS.TRAIN "('my_train',)" \
        DATASETS.TEST "('my_test',)" MODEL.ROI_HEADS.NUM_CLASSES 3

Tables: 2, 3, 4, 8, 9, 10 and 12. Pairs of KEY VALUE override the config of every row, so that a
table can be run on any data set; what a row only tests differently stays as it is. Each run has its
own folder in --output, and several rows and tables share one where the paper's do. After an
interruption the same command continues: rows that are done are read from there. The table is also
written there, as table9.md and table9.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from tabulate import tabulate

from ..atomic_files import safe_file_name, write_json, write_text
from ..config import get_config_file
from ..engine import setup_cfg
from ..errors import UserError
from ..evaluation.record import EVALUATION_FILE, EvaluationRecord
from ..preflight.planned_run import muted
from ..report.recorder import RunRecord
from . import (
    add_processes,
    check_numbers,
    differing_keys,
    make_folder,
    run_with_parent,
    split_overrides,
)
from .ablation_tables import TABLES, Row, Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", metavar="N,N", help="only these rows, counted from 1")
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/ablations"),
        metavar="DIR",
        help="folder of the runs; default: %(default)s",
    )
    add_processes(parser)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="TABLE",
        help="the table, and KEY VALUE overrides of the configs",
    )


# Options may stand between the words.
parse = argparse.ArgumentParser.parse_intermixed_args


def run(args: argparse.Namespace) -> int:
    """Run what is not done, print and write the table; return 1 if rows are missing."""
    check_numbers(args)
    (name, *others), opts = split_overrides(args.words)
    if others or name not in TABLES:
        raise UserError(
            f"there is no table {' '.join([name, *others])!r}: give one of {', '.join(TABLES)}; "
            "frcnn proposals sizes prints Table 1"
        )
    table = TABLES[name]
    chosen = _chosen(table, args.rows)
    runs = _Runs(args.output, opts, args.num_gpus)
    if not args.show:
        runs.check_different(chosen)
        make_folder(args.output)
    outcomes = {}
    for row in chosen:
        outcome = runs.outcome(row)
        if outcome is None and not args.show:
            outcome = runs.make(row)
        outcomes[row] = outcome or Outcome(note="not run")
        if not args.show:
            print(f"{', '.join(row.cells)}: {outcomes[row].shown}", flush=True)
    text = format_table(table, outcomes)
    print(text)
    if not args.show:
        write_text(args.output / f"table{name}.md", text + "\n")
        rows = [
            {"cells": row.cells, "paper": row.paper, "ours": found.value, "note": found.note}
            for row, found in outcomes.items()
        ]
        content = {"title": table.title, "columns": table.columns, "rows": rows}
        write_json(args.output / f"table{name}.json", content)
    return int(not args.show and any(found.missing for found in outcomes.values()))


@dataclass(frozen=True)
class Outcome:
    """What came out of a row: AP50 in percent, or a note."""

    value: float | None = None
    note: str = ""
    missing: bool = False

    @property
    def shown(self) -> str:
        return self.note if self.value is None else f"{self.value:.1f}"


def format_table(table: Table, outcomes: dict[Row, Outcome]) -> str:
    """Return the table in Markdown; notes stand below it, and rows that were not run are empty."""
    lines, notes = [], []
    for row, found in outcomes.items():
        ours = "" if found.value is None else found.shown
        if found.note not in ("", "not run"):
            notes.append(f"{', '.join(row.cells)}: {found.note}")
        lines.append([*row.cells, f"{row.paper:.1f}", ours])
    headers = [*table.columns, "paper", "ours"]
    body = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    return "\n\n".join([table.title, body, *notes])


def _chosen(table: Table, numbers: str | None) -> list[Row]:
    if numbers is None:
        return list(table.rows)
    try:
        chosen = [int(word) for word in numbers.split(",")]
    except ValueError:
        chosen = [0]
    if not all(1 <= number <= len(table.rows) for number in chosen):
        raise UserError(
            f"--rows is {numbers!r}: give numbers from 1 to {len(table.rows)}, such as 1,2"
        )
    return [table.rows[number - 1] for number in chosen]


class _Runs:
    """The runs of the rows, in one folder, with the same overrides."""

    def __init__(self, folder: Path, opts: Sequence[str], num_processes: int) -> None:
        self._folder, self._opts, self._num_processes = folder, list(opts), num_processes

    def check_different(self, rows: Sequence[Row]) -> None:
        """Stop if overrides make rows equal that the paper compares."""
        seen: dict[str, Row] = {}
        for row in rows:
            cfg = self._config(row).clone()
            cfg.defrost()
            cfg.OUTPUT_DIR = ""
            if (other := seen.setdefault(cfg.dump() + row.rpn, row)) is not row:
                keys = ", ".join(self._opts[::2])
                raise UserError(
                    f"the rows '{', '.join(other.cells)}' and '{', '.join(row.cells)}' are the "
                    f"same run with the overrides {keys}: leave out the one in which they differ, "
                    "or choose one row with --rows"
                )

    def outcome(self, row: Row) -> Outcome | None:
        """Return what is there of a row; None if it is not finished.

        Raises:
            UserError: it was run with other values.
        """
        cfg = self._config(row)
        folder = Path(cfg.OUTPUT_DIR)
        if not cfg.DATASETS.TEST:
            raise UserError("DATASETS.TEST is empty: name a set, as tables are of test results")
        name = cfg.DATASETS.TEST[0]
        results = folder / "inference" / safe_file_name(name)
        if not (results / EVALUATION_FILE).is_file() and not (results / "results").is_dir():
            return None
        if row.test:
            config = folder / "config.yaml"
            before = config.read_text(encoding="utf-8") if config.is_file() else ""
        else:
            record = RunRecord.load(folder)
            if record is None or not record.complete:
                return None
            before = record.config
        if differing := differing_keys(before, cfg.dump()):
            raise UserError(
                f"{folder} holds this row with other values of {', '.join(differing[:3])}: give "
                "the same overrides, or another --output"
            )
        if (results / EVALUATION_FILE).is_file():
            return Outcome(EvaluationRecord.load(results / EVALUATION_FILE).results["AP50"])
        return Outcome(note=f"{name} has no annotations: submit {results / 'results'}")

    def make(self, row: Row) -> Outcome:
        """Run a row, and before it what it tests.

        Raises:
            UserError: a command failed.
        """
        needed = [Row((), 0.0, config) for config in (row.config, row.rpn) if config and row.test]
        for trained in needed or [row]:
            if missing := self._missing_files(trained):
                return Outcome(note=missing, missing=True)
        for trained in needed or [row]:
            if self.outcome(trained) is None:
                keys = ["OUTPUT_DIR", self._place(trained)]
                resume = ["--resume"] if Path(self._place(trained)).is_dir() else []
                self._frcnn("train", *resume, config=trained.config, keys=keys)
        if row.test:
            self._test(row)
        return self.outcome(row) or Outcome(note="no result, see its log", missing=True)

    def _test(self, row: Row) -> None:
        cfg = self._config(row)
        for name in cfg.DATASETS.TEST:
            (Path(cfg.OUTPUT_DIR, "inference", safe_file_name(name)) / EVALUATION_FILE).unlink(
                missing_ok=True
            )
        for name, file in zip(cfg.DATASETS.TEST, self._proposals(row), strict=False):
            partial = Path(f"{file}.partial")
            if Path(file).is_file() and not partial.exists():
                continue
            weights = f"{self._place(Row((), 0.0, row.rpn))}/stage1_final.pth"
            words = ("proposals", "dump", "--dataset", name, "--output", file)
            self._frcnn(*words, config=row.rpn, keys=[*row.keys, "MODEL.WEIGHTS", weights])
        self._frcnn("train", "--eval-only", config=row.config, keys=self._test_keys(row))

    def _config(self, row: Row) -> CfgNode:
        keys = self._test_keys(row) if row.test else ["OUTPUT_DIR", self._place(row)]
        with muted("frcnn_plugin"):  # the runs say it
            return setup_cfg(get_config_file(row.config), [*self._opts, *keys])

    def _test_keys(self, row: Row) -> list[str]:
        """Return the overrides of a test, after the user's."""
        detector = self._place(Row((), 0.0, row.config))
        keys = [*row.keys, "MODEL.WEIGHTS", f"{detector}/model_final.pth"]
        if row.rpn:
            number = row.keys[row.keys.index("MODEL.RPN.POST_NMS_TOPK_TEST") + 1]
            keys += ["DATASETS.PROPOSAL_FILES_TEST", repr(tuple(self._proposals(row)))]
            keys += ["DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST", number]
        return [*keys, "OUTPUT_DIR", self._place(row)]

    def _proposals(self, row: Row) -> list[str]:
        """Return the files of proposals of a test, one per test set; none without an RPN."""
        if not row.rpn:
            return []
        names = self._config(Row((), 0.0, row.config)).DATASETS.TEST
        return [f"{self._place(row)}/{safe_file_name(name)}.pkl" for name in names]

    def _place(self, row: Row) -> str:
        return str(self._folder / row.name)

    def _missing_files(self, row: Row) -> str:
        """Say how to make the first file of proposals that a row needs and that is missing."""
        cfg = self._config(row)
        data = cfg.DATASETS
        names = [*data.TRAIN, *data.TEST]
        files = [*data.PROPOSAL_FILES_TRAIN, *data.PROPOSAL_FILES_TEST]
        for name, file in zip(names, files, strict=False) if cfg.MODEL.LOAD_PROPOSALS else ():
            if not Path(file).is_file():
                return (
                    f"needs {file}; make it with frcnn proposals convert --dataset {name} "
                    f"--input FILE --output {file} (FILE: a .mat of selective search, or an .npz)"
                )
        return ""

    def _frcnn(self, *words: str, config: str, keys: Sequence[str]) -> None:
        """Run a command in a process of its own: no row sees what another has left in memory."""
        options = ("--config-file", get_config_file(config), "--num-gpus", str(self._num_processes))
        line = [*words, *options, *self._opts, *keys]
        print(f"frcnn {shlex.join(line)}", flush=True)
        status = run_with_parent([sys.executable, "-m", "frcnn_plugin", *line])
        if status:
            how = f"status {status}; its message is above" if status > 0 else f"signal {-status}"
            raise UserError(
                f"frcnn {words[0]} ended with {how}. The same frcnn ablations goes on from here"
            )

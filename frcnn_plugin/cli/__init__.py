"""The commands of `frcnn`. Here is what several of them have in common."""

import argparse
import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import yaml

from ..config import plugin_cfg
from ..config_files import flat_keys
from ..errors import UserError

_LARGEST = 2**31 - 1


def add_config_file(parser: argparse.ArgumentParser, what: str, *, required: bool = False) -> None:
    parser.add_argument(
        "--config-file",
        default="",
        required=required,
        metavar="FILE",
        help=f"{what}: a YAML, or frcnn://NAME, one that comes with the plugin",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="processes on this machine; default: %(default)s",
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the words at the end of the command line."""
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")


def parse_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Read the words of a command; options may also stand after the overrides."""
    args = parser.parse_args(words)
    pairs = getattr(args, "opts", None) or []
    for i in range(2, len(pairs), 2):
        if pairs[i].startswith("--") or pairs[i] == "-h":
            front = [*words[: len(words) - len(pairs)], *pairs[i:]]
            args = parse_words(parser, front)
            args.opts = [*pairs[:i], *args.opts]
            break
    return args


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split other words from the ``KEY VALUE`` pairs after them."""
    cfg = plugin_cfg()
    for i, word in enumerate(words):
        section, dot, _ = word.partition(".")
        # A misspelt section is said to be one; otherwise it would be a file that is missing.
        close = dot and word.isupper() and get_close_matches(section, cfg, cutoff=0.7)
        if (section in cfg or close) and not os.path.exists(word):
            return list(words[:i]), list(words[i:])
    return list(words), []


def check_file(option: str, path: Path, *, makes_folders: bool = False) -> None:
    """Stop before the work if a file cannot be written; nothing is left where it would be.

    The `option` is what the user calls it; `makes_folders`: the command makes missing ones.
    """
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: name a file in it")
    if os.path.exists(path) and not path.is_file():
        raise UserError(f"{option} {path} is a device or pipe: give the name of a file")
    there = (folder for folder in path.absolute().parents if os.path.lexists(folder))
    nearest = next(there) if makes_folders else path.absolute().parent
    try:
        with TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(
            f"{option} {path} cannot be written ({error.strerror}): give another name"
        ) from error


def make_folder(folder: Path) -> None:
    """Make the folder of --output."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made: {error.strerror}") from error


def check_numbers(args: argparse.Namespace) -> None:
    """Stop at values that options of these names cannot have."""
    for name in ("batch_size", "limit", "num_gpus", "num_machines", "topk"):
        value = getattr(args, name, None)
        if value is not None and not 1 <= value <= _LARGEST:
            most = "1 or more" if value < 1 else f"at most {_LARGEST}"
            raise UserError(f"--{name.replace('_', '-')} is {value}: it must be {most}")
    seed = getattr(args, "seed", None)
    if seed is not None and not 0 <= seed <= _LARGEST:
        raise UserError(f"--seed is {seed}: it must be from 0 to {_LARGEST}")
    score = getattr(args, "score", None)
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"--score is {score:g}: it must be from 0 to 1")


def run_with_parent(command: Sequence[str], output: IO[str] | None = None) -> int:
    """Run a command in a process that, on Linux, ends when this one does; return its status.

    What it writes goes to ``output``, if given.
    """
    # Else it would go on in the folder in which the repeated command wants to work. The function is
    # found here, as in the new process other threads' locks may be held.
    prctl, terminate = getattr(ctypes.CDLL(None), "prctl", None), int(signal.SIGTERM)
    follow = None if prctl is None else lambda: prctl(1, terminate)  # PR_SET_PDEATHSIG
    with subprocess.Popen(command, preexec_fn=follow, stdout=output, stderr=output) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # The terminal has told the run, too, which now writes a checkpoint.
            process.wait()
            raise


def differing_keys(before: str, now: str) -> list[str]:
    """Return the keys in which a config differs from an earlier one, or from one that is missing.

    A key that an earlier version of this package did not know had what is its default now.
    """
    texts = (plugin_cfg().dump(), before, now)
    defaults, old, new = (flat_keys(yaml.safe_load(text) or {}) for text in texts)
    return sorted(key for key in new if old.get(key, defaults[key]) != new[key])

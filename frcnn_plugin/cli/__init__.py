"""The commands of `frcnn`. Here is what several of them have in common."""

import argparse
import os
from collections.abc import Sequence
from difflib import get_close_matches

from ..config import plugin_cfg
from ..errors import UserError


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


def check_numbers(args: argparse.Namespace) -> None:
    """Stop at values that options of these names cannot have."""
    for name in ("batch_size", "limit", "num_gpus", "num_machines", "topk"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}: it must be 1 or more")
    score = getattr(args, "score", None)
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"--score is {score:g}: it must be from 0 to 1")

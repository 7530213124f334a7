"""List and download the published weight files that have a name.

    frcnn weights download --list
    frcnn weights download vgg16_caffe_imagenet

A named file is downloaded into the cache ($FVCORE_CACHE or ~/.torch/iopath_cache), and its path is
printed. MODEL.WEIGHTS frcnn://vgg16_caffe_imagenet does the same when a run starts. For a machine
without network, download the file elsewhere and copy it to the path that --list shows.
`frcnn weights check` compares what is in the cache with what was published.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from ..checkpoint.catalog import known_files as catalog
from ..checkpoint.catalog.download import cached_path, local_path, megabytes
from ..checkpoint.catalog.known_files import find


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to download")
    parser.add_argument("--list", action="store_true", help="print the table of names")


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    args = parser.parse_args(words)
    if not (args.names or args.list):
        parser.error("give a NAME, or --list")
    return args


def table() -> str:
    """Return all names, what they are and whether they are here."""
    rows, paths = [], []
    for known in catalog.CATALOG:
        path = cached_path(known)
        here = path.is_file()
        size = path.stat().st_size if here else known.size
        rows.append(
            (
                known.name,
                known.description,
                megabytes(size) if size else "?",
                known.licence,
                known.checked_by,
                "yes" if here else "no",
            )
        )
        paths.append(f"  {known.name}: {path}")
    headers = ("name", "what", "size", "licence", "checked by", "cached")
    return "\n".join([tabulate(rows, headers), "", "Where the files are, or belong:", *paths])


def run(args: argparse.Namespace) -> None:
    setup_logger(name="frcnn_plugin")
    if args.list:
        print(table())
    for known in [find(name) for name in args.names]:  # a typing error ends it before a download
        print(local_path(known))

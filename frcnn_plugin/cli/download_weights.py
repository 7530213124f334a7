"""List, download and check the published weight files that have a name.

    python tools/download_weights.py --list
    python tools/download_weights.py vgg16_caffe_imagenet
    python tools/download_weights.py --check

A named file is downloaded into the cache ($FVCORE_CACHE or ~/.torch/iopath_cache) and its path is
printed; MODEL.WEIGHTS frcnn://vgg16_caffe_imagenet does the same when a run starts. For a machine
without network: download elsewhere, then copy the file to the path that --list gives.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from ..checkpoint.catalog import known_files as catalog
from ..checkpoint.catalog.download import cached_path, check_cached, local_path, megabytes
from ..checkpoint.catalog.known_files import find
from ..errors import UserError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to download")
    parser.add_argument("--list", action="store_true", help="print the table of names")
    parser.add_argument(
        "--check", action="store_true", help="read the cached files (or NAME ...) and compare them"
    )
    args = parser.parse_args(argv)
    if not (args.names or args.list or args.check):
        parser.error("give a NAME, --list or --check")
    return args


def table() -> str:
    """All names, what they are and whether they are here."""
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


def check(names: Sequence[str]) -> None:
    """Compare cached files with what is published; all cached ones if no name is given.

    Raises:
        UserError: one is missing or wrong; names all.
    """
    problems = []
    for known in map(find, names) if names else catalog.CATALOG:
        path = cached_path(known)
        if not path.is_file():
            if names:
                problems.append(f"{known.name} is not at {path}")
            continue
        try:
            digest = check_cached(known)
        except UserError as error:
            problems.append(str(error))
        else:
            print(f"{known.name}: SHA-256 {digest}, checked by: {known.checked_by}")
    if problems:
        raise UserError("; ".join(problems))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    setup_logger(name="frcnn_plugin")
    try:
        if args.list:
            print(table())
        wanted = [find(name) for name in args.names]  # a typing error ends it before a download
        if args.check:
            check(args.names)
        else:
            for known in wanted:
                print(local_path(known))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

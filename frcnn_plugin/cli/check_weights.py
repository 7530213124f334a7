"""Verify weight files: published ones in the cache, and files of your own.

    frcnn weights check
    frcnn weights check vgg16_caffe_imagenet
    frcnn weights check output/model_final.pth detector.caffemodel
    frcnn weights check vgg16_caffe.pth --layout caffe-pth

Without arguments, every published file in the cache is checked. A published file is given by its
name in `frcnn weights download --list`; its SHA-256 is compared. Any other file (or frcnn:// and a
name) is read as a training would read it: the command prints what it was recognised as and the
mapping of its layers, and fails if a value is not finite. Nothing is written.
"""

from __future__ import annotations

import argparse

from ..checkpoint.catalog import known_files as catalog
from ..checkpoint.catalog.download import cached_path, check_cached
from ..checkpoint.catalog.known_files import KnownFile
from ..checkpoint.from_torchvision import LAYOUTS
from ..errors import UserError
from .convert_weights import read_finite, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="file, or published name")
    parser.add_argument(
        "--layout",
        default="",
        choices=sorted(LAYOUTS),
        help="what a file in torchvision's names is, if its SHA-256 is unknown",
    )


def check_published(known: KnownFile) -> None:
    path = cached_path(known)
    if not path.is_file():
        raise UserError(f"{known.name} is not at {path}")
    digest = check_cached(known)
    print(f"{known.name}: SHA-256 {digest}, checked by: {known.checked_by}")


def check_file(path: str, layout: str) -> None:
    path, weights = read_finite(path, layout)
    show(weights, path)
    print("every value is finite; nothing was written")


def run(args: argparse.Namespace) -> None:
    """Check all; raise a UserError that names every missing or wrong one."""
    published = {known.name: known for known in catalog.CATALOG}
    cached = [name for name, known in published.items() if cached_path(known).is_file()]
    problems = []
    for file in args.files or cached:
        try:
            if file in published:
                check_published(published[file])
            else:
                check_file(file, args.layout)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))

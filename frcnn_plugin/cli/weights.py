"""The commands of `frcnn weights`: convert, download and check files of weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from ..checkpoint import Conversion, convert_to_caffe, read_weights, save_weights, write_caffemodel
from ..checkpoint.caffe.conversion import RPN_CONVS
from ..checkpoint.catalog import known_files as catalog
from ..checkpoint.catalog.download import cached_path, check_cached, local_path, megabytes
from ..checkpoint.catalog.known_files import KnownFile, find
from ..checkpoint.conversion import LAYOUTS, OF_PREDICTOR, fold_statistics
from ..checkpoint.read import local_file
from ..data.datasets.class_names import name_problem
from ..errors import UserError
from . import check_file


class Convert:
    """Convert weights of other programs to a checkpoint of this plugin, and back to Caffe.

        frcnn weights convert VGG_ILSVRC_16_layers.caffemodel vgg16.pth
        frcnn weights convert VGG16_faster_rcnn_final.caffemodel detector.pth
        frcnn weights convert vgg16-397923af.pth vgg16_torchvision.pth
        frcnn weights convert vgg16_caffe.pth vgg16.pth --layout caffe-pth
        frcnn weights convert output/model_final.pth detector.caffemodel

    The command says what it recognised and prints which layer became which. The checkpoint that it
    writes carries the preprocessing that the weights need, the class names, and the SHA-256 of the
    original file. `frcnn train` takes Caffe's files and the known ones in torchvision's names as
    they are (MODEL.WEIGHTS); for other trainers, and for other files, convert them first.

    With --fold, box target statistics become part of the layers that predict boxes. A detector from
    Caffe and a checkpoint from the middle of four-step training have such statistics; only
    this plugin's heads know them.

        frcnn weights convert output/model_0039999.pth for_detectron2.pth --fold
    """

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("input", help=".caffemodel, .pth, or frcnn://name (docs/weights.md)")
        parser.add_argument("output", type=Path, help=".pth or .caffemodel; decides the direction")
        _add_layout(parser)
        parser.add_argument(
            "--classes", nargs="+", help="class names of a detector, without background"
        )
        parser.add_argument(
            "--rpn-conv",
            default=RPN_CONVS[0],
            help="to Caffe: name of the RPN's 3x3 convolution in the prototxt (default: "
            f"%(default)s; py-faster-rcnn's alternating ZF: {RPN_CONVS[1]})",
        )
        parser.add_argument(
            "--fold",
            action="store_true",
            help="put target statistics into the weights, for heads other than this plugin's",
        )
        parser.add_argument("--overwrite", action="store_true", help="replace an existing output")

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        output = args.output
        if output.suffix not in (".pth", ".caffemodel"):
            raise UserError(f"the output {output} must end in .pth or .caffemodel")
        if output.exists() and not args.overwrite:
            raise UserError(f"{output} exists: add --overwrite, or choose another name")
        if not output.resolve().parent.is_dir():
            raise UserError(f"there is no folder {output.resolve().parent}")
        check_file("the output", output)
        path, weights = _read_finite(args.input, args.layout)
        if args.classes:
            _name_classes(weights, args.classes)
        if output.suffix == ".caffemodel":
            layers, rows = convert_to_caffe(
                weights.state_dict, weights.metadata, rpn_conv=args.rpn_conv
            )
            _show_mapping(rows)
            write_caffemodel(output, layers)
        else:
            if args.fold:
                fold_statistics(weights)
            _show(weights, path)
            save_weights(output, weights)
        print(f"wrote {output}")


class Download:
    """List and download the published weight files that have a name.

        frcnn weights download --list
        frcnn weights download vgg16_caffe_imagenet

    A named file is downloaded into the cache ($FVCORE_CACHE or ~/.torch/iopath_cache), and its path
    is printed. MODEL.WEIGHTS frcnn://vgg16_caffe_imagenet does the same when a run starts. For a
    machine without network, download the file elsewhere and copy it to the path that --list shows.
    `frcnn weights check` compares what is in the cache with what was published.
    """

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("names", nargs="*", metavar="NAME", help="what to download")
        parser.add_argument("--list", action="store_true", help="print the table of names")

    @staticmethod
    def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
        args = parser.parse_args(words)
        if not (args.names or args.list):
            parser.error("give a NAME, or --list")
        return args

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        setup_logger(name="frcnn_plugin")
        if args.list:
            _list()
        known_files = [find(name) for name in args.names]  # a typing error ends it before the work
        for known in known_files:
            print(local_path(known))


class Check:
    """Verify weight files: published ones in the cache, and files of your own.

        frcnn weights check
        frcnn weights check vgg16_caffe_imagenet
        frcnn weights check output/model_final.pth detector.caffemodel
        frcnn weights check vgg16_caffe.pth --layout caffe-pth

    Without arguments, every published file in the cache is checked. A published file is given by
    its name in `frcnn weights download --list`; its checksum is compared. Any other file (or
    frcnn:// and a name) is read as training would read it: the command prints what it was
    recognised as and the mapping of its layers, and fails if a value is not finite. Nothing is
    written.
    """

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", nargs="*", metavar="FILE", help="file, or published name")
        _add_layout(parser)

    @staticmethod
    def run(args: argparse.Namespace) -> None:
        """Check all; raise a UserError that names every missing or wrong one."""
        published = {known.name: known for known in catalog.CATALOG}
        cached = [name for name, known in published.items() if cached_path(known).is_file()]
        if not (args.files or cached):
            folder = cached_path(catalog.CATALOG[0]).parent
            print(f"none of the published files is in {folder}; frcnn weights download gets them")
        problems = []
        for file in args.files or cached:
            try:
                if file in published:
                    _check_published(published[file])
                else:
                    path, weights = _read_finite(file, args.layout)
                    _show(weights, path)
                    print("every value is finite; nothing was written")
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("; ".join(problems))


def _add_layout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layout",
        default="",
        choices=sorted(LAYOUTS),
        help="what a file in torchvision's names is, if its SHA-256 is unknown",
    )


def _read_finite(name: str, layout: str) -> tuple[str, Conversion]:
    """Read a file, or ``frcnn://`` and a name; return its path and weights, which are finite."""
    path = local_file(name)
    weights = read_weights(path, layout=layout)
    bad = weights.not_finite()
    if bad:
        raise UserError(f"{path} has values that are not finite in {', '.join(bad[:5])}")
    return path, weights


def _name_classes(weights: Conversion, names: list[str]) -> None:
    scores = [
        tensor
        for name, tensor in weights.state_dict.items()
        if OF_PREDICTOR.sub("", name) == "cls_score.bias"
    ]
    wanted = len(scores[0]) - 1 if scores else 0
    if len(names) != wanted:
        raise UserError(f"--classes has {len(names)} names, but the weights are for {wanted}")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--classes has {name!r} twice: give each class its own name")
        if problem := name_problem(name):
            raise UserError(f"--classes: the name {name!r} {problem}")
    weights.metadata = replace(weights.metadata, classes=tuple(names))


def _show(weights: Conversion, path: str) -> None:
    metadata = weights.metadata
    facts = [("file", path), ("recognised as", weights.network)]
    if metadata.source:
        facts += [("layout", f"{metadata.source['layout']}")]
        facts += [("SHA-256", f"{metadata.source['sha256']}")]
    if metadata.preprocessing:
        p = metadata.preprocessing
        facts.append(("images", f"{p.format}, mean {list(p.mean)}, std {list(p.std)}"))
    if metadata.classes:
        facts.append(("classes", f"{len(metadata.classes)}: {', '.join(metadata.classes)}"))
    print(tabulate(facts, tablefmt="plain"))
    print()
    _show_mapping(weights.rows)
    if weights.unused:
        print(f"left out: {', '.join(weights.unused)}")


def _show_mapping(rows: Sequence[tuple[str, str, str]]) -> None:
    print(tabulate(rows, headers=["source", "target", "shape"], disable_numparse=True))


def _list() -> None:
    """Print all names, what they are and whether they are here."""
    rows = []
    for known in catalog.CATALOG:
        path = cached_path(known)
        here = path.is_file()
        size = path.stat().st_size if here else known.size
        size_text = megabytes(size) if size else "?"
        facts = (known.description, size_text, known.licence, known.checked_by)
        rows.append((known.name, *facts, "yes" if here else "no"))
    print(tabulate(rows, ("name", "what", "size", "licence", "checked by", "cached")))
    print("\nWhere the files are, or belong:")
    for known in catalog.CATALOG:
        print(f"  {known.name}: {cached_path(known)}")


def _check_published(known: KnownFile) -> None:
    path = cached_path(known)
    if not path.is_file():
        raise UserError(f"{known.name} is not at {path}")
    digest = check_cached(known)
    print(f"{known.name}: SHA-256 {digest}, checked by: {known.checked_by}")

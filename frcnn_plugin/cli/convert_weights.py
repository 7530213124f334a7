"""Convert weights of other programs to a checkpoint of this plugin, and back to Caffe.

    frcnn weights convert VGG_ILSVRC_16_layers.caffemodel vgg16.pth
    frcnn weights convert VGG16_faster_rcnn_final.caffemodel detector.pth
    frcnn weights convert vgg16-397923af.pth vgg16_torchvision.pth
    frcnn weights convert vgg16_caffe.pth vgg16.pth --layout caffe-pth
    frcnn weights convert output/model_final.pth detector.caffemodel

The command says what it recognised and prints which layer became which. The checkpoint that it
writes carries the preprocessing that the weights need, the class names, and the SHA-256 of the
original file. Nothing has to be converted before a training: MODEL.WEIGHTS takes all these files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from ..checkpoint import Conversion, convert_to_caffe, read_weights, save_weights, write_caffemodel
from ..checkpoint.conversion import BBOX_REG_WEIGHTS, CAFFE_RPN_CONV
from ..checkpoint.from_torchvision import LAYOUTS
from ..errors import UserError

FULLY_CONNECTED = ("fc6", "fc7", "cls_score", "bbox_pred")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", help=".caffemodel, .pth, or frcnn://name (docs/weights.md)")
    parser.add_argument("output", type=Path, help=".pth or .caffemodel; decides the direction")
    parser.add_argument(
        "--layout",
        default="",
        choices=sorted(LAYOUTS),
        help="what a file in torchvision's names is, if its SHA-256 is unknown",
    )
    parser.add_argument(
        "--classes", nargs="+", help="class names of a detector, without background"
    )
    parser.add_argument(
        "--rpn-conv",
        default=CAFFE_RPN_CONV[0],
        help="to Caffe: name of the RPN's 3x3 convolution in the prototxt (default: %(default)s; "
        f"py-faster-rcnn's alternating ZF: {CAFFE_RPN_CONV[1]})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")


def check_output(output: Path, overwrite: bool) -> None:
    if output.suffix not in (".pth", ".caffemodel"):
        raise UserError(f"the output {output} must end in .pth or .caffemodel")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists: add --overwrite, or choose another name")
    if not output.resolve().parent.is_dir():
        raise UserError(f"there is no folder {output.resolve().parent}")


def read_finite(name: str, layout: str) -> tuple[str, Conversion]:
    """Read a file, or ``frcnn://`` and a name; return its path and weights, which are finite."""
    path = PathManager.get_local_path(name) if "://" in name else name
    weights = read_weights(path, layout=layout)
    bad = weights.not_finite()
    if bad:
        raise UserError(f"{path} has values that are not finite in {', '.join(bad[:5])}")
    return path, weights


def with_classes(weights: Conversion, names: Sequence[str]) -> None:
    scores = weights.state_dict.get("roi_heads.box_predictor.cls_score.bias")
    if scores is None or len(scores) != len(names) + 1:
        wanted = 0 if scores is None else len(scores) - 1
        raise UserError(f"--classes has {len(names)} names, but the weights are for {wanted}")
    weights.metadata = replace(weights.metadata, classes=tuple(names))


def show(weights: Conversion, path: str) -> None:
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
    print_mapping(weights.rows)
    if weights.unused:
        print(f"left out: {', '.join(weights.unused)}")


def print_mapping(rows: Sequence[tuple[str, str, str]]) -> None:
    print(tabulate(rows, headers=["source", "target", "shape"], disable_numparse=True))


def to_caffe(weights: Conversion, output: Path, rpn_conv: str) -> None:
    config = CfgNode.load_cfg(weights.metadata.config or "{}")
    try:
        scale = config["MODEL"]["ROI_BOX_HEAD"]["BBOX_REG_WEIGHTS"]
    except KeyError:
        scale = BBOX_REG_WEIGHTS
    layers, rows = convert_to_caffe(
        weights.state_dict, weights.metadata, rpn_conv=rpn_conv, bbox_reg_weights=scale
    )
    print_mapping(rows)
    types = {n: "InnerProduct" if n in FULLY_CONNECTED else "Convolution" for n in layers}
    write_caffemodel(output, layers, name="frcnn_plugin", types=types)


def run(args: argparse.Namespace) -> None:
    check_output(args.output, args.overwrite)
    path, weights = read_finite(args.input, args.layout)
    if args.classes:
        with_classes(weights, args.classes)
    if args.output.suffix == ".caffemodel":
        to_caffe(weights, args.output, args.rpn_conv)
    else:
        show(weights, path)
        save_weights(args.output, weights)
    print(f"wrote {args.output}")

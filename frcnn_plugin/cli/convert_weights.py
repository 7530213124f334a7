"""Convert weights of other programs to a checkpoint of this plugin, and back to Caffe.

    python tools/convert_weights.py VGG_ILSVRC_16_layers.caffemodel vgg16.pth
    python tools/convert_weights.py VGG16_faster_rcnn_final.caffemodel detector.pth
    python tools/convert_weights.py vgg16-397923af.pth vgg16_torchvision.pth
    python tools/convert_weights.py output/model_final.pth detector.caffemodel
    python tools/convert_weights.py vgg16_caffe.pth --layout caffe-pth --check

Says what it recognised and prints the mapping. The checkpoint carries the preprocessing that the
weights need, class names, and the SHA-256 of the file they are from. Converting first is not
necessary: MODEL.WEIGHTS takes all these files as they are.
"""

from __future__ import annotations

import argparse
import sys
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


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", help=".caffemodel, .pth, or frcnn://name (docs/weights.md)")
    parser.add_argument("output", nargs="?", help=".pth or .caffemodel; decides the direction")
    parser.add_argument("--check", action="store_true", help="verify the input, write nothing")
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
    return parser.parse_args(argv)


def check_output(args: argparse.Namespace) -> None:
    if args.check and args.output:
        raise UserError("--check writes nothing: leave out the output")
    if not args.check and not args.output:
        raise UserError("name an output, .pth or .caffemodel, or add --check")
    if args.output:
        output = Path(args.output)
        if output.suffix not in (".pth", ".caffemodel"):
            raise UserError(f"the output {output} must end in .pth or .caffemodel")
        if output.exists() and not args.overwrite:
            raise UserError(f"{output} exists: add --overwrite, or choose another name")
        if not output.resolve().parent.is_dir():
            raise UserError(f"there is no folder {output.resolve().parent}")


def local_path(name: str) -> str:
    return PathManager.get_local_path(name) if "://" in name else name


def check_values(weights: Conversion, path: str) -> None:
    bad = weights.not_finite()
    if bad:
        raise UserError(f"{path} has values that are not finite in {', '.join(bad[:5])}")


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


def to_caffe(weights: Conversion, output: str, rpn_conv: str) -> None:
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
    check_output(args)
    path = local_path(args.input)
    weights = read_weights(path, layout=args.layout)
    check_values(weights, path)
    if args.classes:
        with_classes(weights, args.classes)
    if args.output and args.output.endswith(".caffemodel"):
        to_caffe(weights, args.output, args.rpn_conv)
    else:
        show(weights, path)
        if args.output:
            save_weights(args.output, weights)
    print(f"wrote {args.output}" if args.output else "every value is finite; nothing was written")


def main(argv: Sequence[str] | None = None) -> None:
    try:
        run(parse_args(argv))
    except UserError as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main()

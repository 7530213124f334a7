"""Write a detector to one file that runs without this package and Detectron2.

    frcnn export output/model_final.pth --format onnx --check
    frcnn export model_final.pth --format torchscript --check photos/ TEST.DETECTIONS_PER_IMAGE 20

``KEY VALUE`` pairs at the end override the config. A JSON file beside the output, of its name and
.json, has class names, preprocessing, thresholds and the names of inputs and outputs.

--check compares the file with the detector before it is written, in the images that follow
(default: generated ones) and in two small ones with hardly any proposals. It is not written if
boxes differ by more than 0.1 pixels, or scores by more than 0.001. See docs/export.md.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from ..atomic_files import replacing, write_json
from ..checkpoint.read import existing
from ..errors import UserError
from ..predict import FasterRCNNPredictor, export
from ..predict.config import predictor_cfg
from ..predict.inputs import find_images
from ..preflight import stop_on_bad_values
from ..preflight.planned_run import muted
from . import add_config_file, check_file, split_overrides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_file(parser, "config, instead of the checkpoint's own")
    parser.add_argument("--format", required=True, choices=export.FORMATS)
    parser.add_argument("--output", type=Path, help="file; default: beside the model")
    parser.add_argument("--check", nargs="*", metavar="IMAGE", help="compare with the detector")
    parser.add_argument(
        "--opset", type=int, choices=export.OPSETS, help=f"of ONNX; default: {export.OPSET}"
    )
    parser.add_argument("words", nargs="+", metavar="MODEL.pth", help="then KEY VALUE ...")


parse = argparse.ArgumentParser.parse_intermixed_args


def check(args: argparse.Namespace, model: str, output: Path, images: list[Path]) -> None:
    """Stop before the work on what would stop it."""
    if "://" not in model:
        existing(model)  # else the output beside it would be the first to be missed
    if args.opset and args.format != "onnx":
        raise UserError(f"--opset {args.opset} goes with --format onnx")
    for module in ("onnx", "onnxruntime")[: 2 if args.check is not None else 1]:
        if args.format == "onnx" and find_spec(module) is None:
            raise UserError(f"{module} is missing: pip install {module}, or 'frcnn-plugin[export]'")
    for path in (output, Path(f"{output}.json")):
        if path.resolve() in [other.resolve() for other in (Path(model), *images)]:
            raise UserError(f"--output {output} would replace {path}, which is read")
        check_file("--output", path)


def run(args: argparse.Namespace) -> None:
    """Export, compare and write."""
    models, opts = split_overrides(args.words)
    images, more = split_overrides(args.check or [])
    opts += more
    if len(models) != 1:
        raise UserError(f"give one MODEL.pth, not {len(models)}: {' '.join(models)}")
    model, form, opset = models[0], args.format, args.opset or export.OPSET
    beside = Path(model if "://" not in model else Path(model).name)
    output = args.output or beside.with_suffix(export.FORMATS[form])
    paths = find_images(images)
    check(args, model, output, paths)
    with muted("frcnn_plugin"):  # the predictor says it
        cfg, _ = predictor_cfg(model, args.config_file, opts, device="cpu")
    stop_on_bad_values(cfg)
    export.check_exports(cfg, form)
    predictor = FasterRCNNPredictor(model, args.config_file, opts, device="cpu")
    predictor.check_detects()
    content = export.export(predictor.cfg, predictor.model, form, opset)
    if args.check is not None:
        for line in export.compare(predictor, content, form, paths):
            print(line)
    with replacing(output) as temporary:
        temporary.write_bytes(content)
    write_json(f"{output}.json", export.description(predictor, form, opset))
    print(f"wrote {output} ({len(content) / 2**20:.1f} MB) and {output}.json")

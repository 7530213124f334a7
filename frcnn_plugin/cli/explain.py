"""Write one page on what the method does with one image, from its pixels to detections.

    frcnn explain photo.jpg --weights output/model_final.pth --boxes photo.xml
    frcnn explain photo.jpg --config-file frcnn://faster_rcnn_zf_voc.yaml
    frcnn explain --demo --output page.html

The page is one HTML file with the real numbers of the image: sizes, anchors, labels, losses,
proposals, pooled cells, scores, times. Weights may be a detector's, ImageNet's convolutions, or
none: then they are random, and the page says so. --boxes gives the objects: an XML of VOC, or a
text file with a line "x1,y1,x2,y2,class" for each, in pixels from the image's upper left corner.
--demo needs nothing: it draws an image of shapes and trains a small network on it until it knows
it by heart. ``KEY VALUE`` pairs at the end override the config.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage

from ..atomic_files import write_text
from ..checkpoint.checkpointer import AtomicCheckpointer, class_names
from ..checkpoint.read import local_file
from ..config import plugin_cfg
from ..config_files import flat_keys
from ..data.datasets.checks import class_names as names_of_data_set
from ..data.datasets.geometry import fit_box
from ..data.datasets.voc_xml import read_annotation
from ..data.loading.image_reader import read_bgr
from ..data.loading.mappers import build_mapper
from ..data.synthetic import write_synthetic_voc
from ..engine import PaperTrainer, setup_cfg
from ..errors import UserError
from ..explain import LANGUAGES, Subject, render
from ..four_step.stages import build_stages
from ..predict.config import predictor_cfg
from ..preflight import stop_on_bad_values
from ..preflight.planned_run import muted
from ..process import tune_process
from ..visualization.inspection import InspectedImage, has_rpn_weights, with_training_proposals
from ..visualization.measure import check_model, forward_pass, time_parts, training_step
from ..visualization.pictures import Pictures
from . import add_config_file, check_file, split_overrides

_DEFAULT = "frcnn://faster_rcnn_vgg16_voc.yaml"
_DEMO = "frcnn://demo/vgg16_shapes_joint.yaml"
_DEMO_SEED = 3  # of an image with objects of each class
_DEMO_ITERATIONS = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_file(parser, f"config; default: the weights' own, without weights {_DEFAULT}")
    parser.add_argument("--weights", default="", metavar="FILE", help="default: random ones")
    parser.add_argument("--boxes", type=Path, metavar="FILE", help="the objects: XML, or text")
    parser.add_argument("--demo", action="store_true", help="an image and a network of its own")
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="default: %(default)s")
    parser.add_argument(
        "--output", type=Path, default=Path("explain.html"), help="page; default: %(default)s"
    )
    parser.add_argument("image", nargs="*", help="a photograph; then KEY VALUE ...")


# Options may stand after the image.
parse = argparse.ArgumentParser.parse_intermixed_args


def check(args: argparse.Namespace) -> None:
    """Stop before the work on what would come to nothing; take the overrides off the image."""
    images, args.opts = split_overrides(args.image)
    if args.demo and (images or args.weights or args.boxes or args.config_file):
        raise UserError("--demo makes its own image, objects and weights: leave out the others")
    if not args.demo and len(images) != 1:
        raise UserError(f"name one image (there are {len(images)}), or let --demo draw one")
    args.image = images[0] if images else None
    read = {Path(path).resolve() for path in (args.image, args.boxes, args.weights) if path}
    if args.output.resolve() in read:
        raise UserError(f"--output {args.output} is read, too: give another name")
    check_file("--output", args.output)
    if args.output.suffix.lower() not in (".html", ".htm"):  # a slip would replace a photograph
        better = args.output.with_suffix(".html")
        raise UserError(f"--output {args.output} is to be an HTML page: name it {better}")


def read_boxes(
    path: Path, size: tuple[int, int], names: Sequence[str], image_name: str = ""
) -> list[dict[str, Any]]:
    """Read objects as annotations in Detectron2's format.

    Args:
        path: an XML of VOC (pixels counted from 1, corners inclusive), or lines of
            "x1,y1,x2,y2,class" (continuous, from 0).
        size: width and height of the image.
        names: of the classes.
        image_name: of the image's file, without extension; another one in an XML is reported.

    Raises:
        UserError: it cannot be read, is for another image, or has another class.
    """
    given, image = f"--boxes {path}", f"the image has {size[0]} x {size[1]} pixels"
    found: list[tuple[str, Any, str, bool]] = []  # where, box, class, difficult
    if path.suffix.lower() == ".xml":
        content = read_annotation(path)
        if all(content.size) and content.size != size:
            said = " x ".join(map(str, content.size))
            raise UserError(f"{given} is for {said} pixels, but {image}: give this image's boxes")
        # Not an error, as not every tool keeps it up to date.
        if image_name and Path(content.filename).stem not in ("", image_name):
            print(f"warning: {given} names the image {content.filename}", file=sys.stderr)
        found = [(f"object {o.number}", o.box, o.name, o.difficult) for o in content.objects]
    else:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{given} cannot be read ({reason})") from error
        for number, line in enumerate(lines, start=1):
            words, where = [word.strip() for word in line.split(",", 4)], f"line {number}"
            try:
                if line.strip():
                    found.append((where, tuple(map(float, words[:4])), words[4], False))
            except (ValueError, IndexError) as error:
                what = f"{line.strip()!r} is not x1,y1,x2,y2,class"
                raise UserError(f"{given}, {where}: {what}") from error
    annotations = []
    for where, box, name, difficult in found:
        fitted, problem = fit_box(box, size)
        if fitted is None or problem:
            raise UserError(f"{given}, {where}: {problem} ({image}): give this image's boxes")
        if name not in names:
            known = f"{', '.join(names)}: name a config whose data set has it (--config-file)"
            raise UserError(f"{given}, {where}: {name!r} is none of the config's classes, {known}")
        annotations.append({
            "bbox": list(fitted), "bbox_mode": BoxMode.XYXY_ABS, "category_id": names.index(name),
            "difficult": int(difficult), "iscrowd": int(difficult),
        })  # fmt: skip
    return annotations


def configure(args: argparse.Namespace) -> tuple[CfgNode, Sequence[str], str]:
    """Return the config, its class names, and what the weights are."""
    config_file, path = args.config_file, local_file(args.weights) if args.weights else ""
    probe = plugin_cfg()
    probe.MODEL.WEIGHTS = path
    if has_rpn_weights(probe):
        kind, (cfg, names) = "detector", predictor_cfg(path, config_file, args.opts)
    else:
        kind = "demo" if args.demo else "backbone" if path else "random"
        config_file = config_file or (_DEMO if args.demo else _DEFAULT)
        cfg = setup_cfg(config_file, [*args.opts, "MODEL.WEIGHTS", path])
        names, number = class_names(cfg) or (), cfg.MODEL.ROI_HEADS.NUM_CLASSES
        if not names and args.boxes:
            names = _names_in_files(cfg)
        if len(names) != number:
            names = tuple(f"class {k + 1}" for k in range(number))
    stop_on_bad_values(cfg)
    phase = "fast_rcnn" if cfg.MODEL.LOAD_PROPOSALS else cfg.MODEL.PAPER_RCNN.PHASE
    cfg = with_training_proposals(cfg)
    cfg.MODEL.PAPER_RCNN.PHASE, cfg.MODEL.WEIGHTS_MAY_LACK = phase, ["roi_heads.box_head"]
    # The picture is neither flipped nor cropped, and trains at the size at which it is tested.
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED = "none", False
    cfg.INPUT.MIN_SIZE_TRAIN = (cfg.INPUT.MIN_SIZE_TEST,)
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST
    return cfg, names, kind


def _names_in_files(cfg: CfgNode) -> tuple[str, ...]:
    """Return the class names that only the files of the first training set have, if any."""
    with suppress(UserError):  # files that are not there: boxes may name "class 1"
        return tuple(n for first in cfg.DATASETS.TRAIN[:1] for n in names_of_data_set(first))
    return ()


def build(cfg: CfgNode, kind: str) -> Any:
    """Build the model with the weights that there are."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(cfg).eval()
    check_model(model)
    if cfg.MODEL.WEIGHTS:
        checkpointer = AtomicCheckpointer(model, cfg=cfg, evaluating=kind == "detector")
        with muted("fvcore"):  # what a backbone's file lacks, the page says
            checkpointer.load(cfg.MODEL.WEIGHTS)
    return model


def teach(model: Any, cfg: CfgNode, item: dict[str, Any], iterations: int) -> None:
    """Train on one image."""
    optimizer = PaperTrainer.build_optimizer(cfg, model)
    model.train()
    with torch.random.fork_rng(), EventStorage():
        torch.manual_seed(0)
        for _ in range(iterations):
            optimizer.zero_grad()
            sum(model([item]).values()).backward()
            optimizer.step()
    model.eval()


def run(args: argparse.Namespace) -> Path:
    """Write the page; return it."""
    check(args)
    tune_process()
    cfg, names, kind = configure(args)
    if args.demo:
        folder = args.output.with_name(args.output.stem + "_demo")
        write_synthetic_voc(folder, 1, 0, seed=_DEMO_SEED)
        args.image, args.boxes = folder / "JPEGImages/000001.jpg", folder / "Annotations/000001.xml"
        print(f"image and objects: {args.image}, {args.boxes}")
    height, width = read_bgr(args.image).shape[:2]
    record: dict[str, Any] = {"file_name": str(args.image), "image_id": Path(args.image).stem}
    if args.boxes:
        record["annotations"] = read_boxes(args.boxes, (width, height), names, record["image_id"])
    model = build(cfg, kind)
    image = InspectedImage(record, build_mapper(cfg, is_train=True))
    if args.demo:
        teach(model, cfg, image.item, _DEMO_ITERATIONS)
    seen, pictures = forward_pass(model, image), Pictures(cfg, names)
    subject = Subject(
        model, pictures, record, seen, training_step(model, seen) if args.boxes else None,
        *pictures.objects_of(image), names, flat_keys(yaml.safe_load(cfg.dump())),
        build_stages(cfg) if cfg.FOUR_STEP.ENABLED else (),
        (kind, {"weights": Path(args.weights).name, "iterations": _DEMO_ITERATIONS}),
        time_parts(model, image.item),
    )  # fmt: skip
    write_text(args.output, render(subject, args.language))
    print(args.output)
    return Path(args.output)

r"""Draw what the method does with an image, step by step, as PNG files.

    frcnn visualize --mode matches --config-file frcnn://faster_rcnn_vgg16_voc.yaml
    frcnn visualize --mode anchors --config-file ... --input photo.jpg --output pictures
    frcnn visualize --mode detections --config-file ... --image 000456 000542 \
        MODEL.WEIGHTS output/model_final.pth

Modes:
  data        the objects of an image, as the data set has them
  anchors     the anchors of one cell, and which of them lie inside the image
  matches     positive, negative and ignored anchors, and why
  sampled     the mini-batch of anchors; with weights, that of RoIs too
  losses      these mini-batches by their losses (needs weights)
  layers      some channels of conv1 to conv5 (needs weights)
  funnel      from anchors to proposals, step by step (needs weights)
  proposals   the best proposals, their scores and their recall (needs weights)
  roi-cells   the feature cells and bins that RoI pooling reads for a box
  detections  right, wrong and missed ones (needs weights)

Everything is drawn in pixels of the original image and computed by the code that trains. Images are
the first with objects of a data set (--dataset, else the config's), those named with --image, or
files and folders given with --input. ``KEY VALUE`` pairs at the end override the config.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from ..atomic_files import safe_file_name
from ..checkpoint.checkpointer import class_names
from ..data import check_datasets
from ..data.datasets.arguments import objects_that_count
from ..data.loading.bad_images import skips_bad_images
from ..data.loading.image_reader import read_record
from ..engine import setup_cfg
from ..errors import UserError
from ..evaluation.ground_truth import load_dicts
from ..predict.inputs import find_images, output_names
from ..preflight import stop_on_bad_values
from ..visualization.pictures import MODES, Options, Pictures, is_of_training
from . import (
    add_config_file,
    add_overrides,
    check_numbers,
    make_folder,
    parse_words,
    split_overrides,
)

FIRST = 4  # images of a data set that are drawn by default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mode", required=True, choices=MODES, metavar="MODE", help="one of those above"
    )
    add_config_file(parser, "config of the network", required=True)
    parser.add_argument(
        "--dataset",
        help="registered name; default: the first of DATASETS.TEST for layers, funnel, proposals "
        "and detections, of DATASETS.TRAIN for the other modes",
    )
    parser.add_argument(
        "--image", nargs="+", action="extend", metavar="ID", help="ids of images of the data set"
    )
    parser.add_argument(
        "--input", nargs="+", action="extend", metavar="PATH", help="image files and folders"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help=f"images at most; of a data set: {FIRST}"
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="draw the images of the data set at random, and this seed's mini-batch (sampled)",
    )
    parser.add_argument("--output", type=Path, default=Path("output/pictures"), metavar="DIR")
    parser.add_argument(
        "--topk",
        type=int,
        help="boxes per image: proposals (20), RoIs of roi-cells (3), detections",
    )
    parser.add_argument("--score", type=float, help="lowest score: detections (0.5), proposals (0)")
    parser.add_argument(
        "--box", nargs=4, type=float, metavar=("X1", "Y1", "X2", "Y2"),
        help="RoI of roi-cells in pixels of the image; default: its objects",
    )  # fmt: skip
    parser.add_argument(
        "--cell", nargs=2, type=int, metavar=("ROW", "COLUMN"),
        help="cell of the feature map for anchors; default: the middle one",
    )  # fmt: skip
    add_overrides(parser)


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Read the words; give back the overrides that an option of several words has swallowed."""
    args = parse_words(parser, words)
    for name in ("image", "input"):
        taken, overrides = split_overrides(getattr(args, name) or [])
        args.opts = [*overrides, *args.opts]
        setattr(args, name, taken)
    return args


# Option -> the modes that it has a meaning for.
_MODES_OF = {
    "topk": ("proposals", "roi-cells", "detections"),
    "score": ("proposals", "detections"),
    "box": ("roi-cells",),
    "cell": ("anchors",),
}


def check(args: argparse.Namespace) -> None:
    check_numbers(args)
    for option, modes in _MODES_OF.items():
        if getattr(args, option) is not None and args.mode not in modes:
            raise UserError(f"--{option} has no meaning for --mode {args.mode}, but for {modes[0]}")
    if args.input and (args.image or args.dataset):
        other = "--image" if args.image else "--dataset"
        raise UserError(f"--input and {other} exclude each other: files, or images of a data set")
    if args.box and not np.isfinite(args.box).all():
        raise UserError(f"--box {' '.join(map(str, args.box))}: give numbers of pixels")


def dataset_name(cfg: CfgNode, args: argparse.Namespace) -> str:
    which = "TRAIN" if is_of_training(args.mode) else "TEST"
    names = [args.dataset] if args.dataset else cfg.DATASETS[which]
    if not names:
        raise UserError(f"DATASETS.{which} is empty: name a data set with --dataset")
    return str(names[0])


def records_of_dataset(args: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Return the images asked for, in the order asked for."""
    # Evaluation sets difficult objects apart, which Detectron2's own VOC names do not mark.
    training = is_of_training(args.mode) and args.mode != "data"
    records = DatasetCatalog.get(name) if training else load_dicts(name)
    if args.image:
        by_id = {str(record["image_id"]): record for record in records}
        for image_id in args.image:
            if image_id not in by_id:
                hint = f"{next(iter(by_id), 'none')} is one that is"
                if close := get_close_matches(image_id, by_id, n=3, cutoff=0.6):
                    hint = f"did you mean {', '.join(close)}?"
                raise UserError(
                    f"--image {image_id}: not among the {len(by_id)} images of {name}; {hint}"
                )
        return [by_id[image_id] for image_id in args.image][: args.limit]
    order = np.arange(len(records))
    if args.seed is not None:
        order = np.random.default_rng(args.seed).permutation(order)
    # An image without objects shows little, and training leaves it out: those come last.
    chosen = sorted(order, key=lambda index: not objects_that_count(records[index]))
    return [records[index] for index in chosen[: args.limit or FIRST]]


def run(args: argparse.Namespace) -> list[Path]:
    """Draw all that was asked for; return the files."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    check(args)
    cfg = setup_cfg(args.config_file, args.opts)
    stop_on_bad_values(cfg, trains=is_of_training(args.mode))
    if args.input:
        files = find_images(args.input)[: args.limit]
        ids = zip(files, output_names(files), strict=True)
        records = [{"file_name": str(file), "image_id": image_id} for file, image_id in ids]
        names = class_names(cfg) or ()
    else:
        dataset = dataset_name(cfg, args)
        # The data set must have the network's classes where the network's heads are used.
        uses_head = args.mode in ("detections", "losses") or (
            args.mode == "sampled" and cfg.MODEL.WEIGHTS
        )
        number = cfg.MODEL.ROI_HEADS.NUM_CLASSES if uses_head else None
        check_datasets([dataset], number, skip_bad_images=skips_bad_images(cfg))
        records = records_of_dataset(args, dataset)
        names = MetadataCatalog.get(dataset).get("thing_classes", ())
    options = Options(args.topk, args.score, args.seed or 0, args.box, args.cell)
    pictures = Pictures(cfg, names, options)
    written: list[Path] = []
    for record in tqdm(records, desc=args.mode, unit="image", disable=len(records) < 3):
        try:
            read_record(record)
        except UserError as error:
            if not skips_bad_images(cfg):
                raise
            tqdm.write(f"image left out: {error}")
            continue
        drawn = pictures.draw(args.mode, record)
        if not drawn:
            tqdm.write(f"{record['image_id']}: no objects, nothing to draw (--box gives a RoI)")
        for suffix, canvas in drawn:
            make_folder(args.output)  # if there is something to put into it
            name = safe_file_name(f"{args.mode}_{record['image_id']}{suffix}")
            written.append(canvas.save(args.output / f"{name}.png"))
    for path in written:
        print(path)
    return written

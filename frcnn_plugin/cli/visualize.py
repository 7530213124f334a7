r"""Draw what the method does with an image, step by step, as PNG files.

    frcnn visualize --mode matches --config-file configs/faster_rcnn_vgg16_voc.yaml
    frcnn visualize --mode anchors --config-file ... --input photo.jpg --output pictures
    frcnn visualize --mode detections --config-file ... --image 000456 000542 \
        MODEL.WEIGHTS output/model_final.pth

Modes:
  data        the objects of an image, as the data set has them
  anchors     the anchors of one cell, and which of them lie inside the image
  matches     positive, negative and ignored anchors, and why
  sampled     the mini-batch of anchors; with weights, that of RoIs too
  proposals   the best proposals, their scores and their recall (needs weights)
  roi-cells   the feature cells and bins that RoI pooling reads for a box
  detections  right, wrong and missed ones (needs weights)

Everything is drawn in pixels of the original image and computed by the code that trains. Images are
the first of a data set (--dataset, else the config's), those named with --image, or files and
folders given with --input. ``KEY VALUE`` pairs at the end override the config.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from ..checkpoint.checkpointer import class_names
from ..data import check_datasets
from ..engine import setup_cfg
from ..errors import UserError
from ..evaluation.ground_truth import load_dicts
from ..predict.image_files import find_images
from ..visualization.pictures import MODES, NEEDS_TRUTH, Options, Pictures, is_of_training
from . import add_config_file, add_overrides, check_numbers, split_overrides

FIRST = 4  # images drawn where nothing says how many


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mode", required=True, help=f"one of {', '.join(MODES)}")
    add_config_file(parser, "config of the network", required=True)
    parser.add_argument(
        "--dataset",
        help="registered name; default: the first of DATASETS.TEST for proposals and detections, "
        "of DATASETS.TRAIN for the other modes",
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
    args = parser.parse_args(words)
    for name in ("image", "input"):
        taken, overrides = split_overrides(getattr(args, name) or [])
        args.opts = [*overrides, *args.opts]
        setattr(args, name, taken)
    return args


def check(args: argparse.Namespace) -> None:
    if args.mode not in MODES:
        close = get_close_matches(args.mode, MODES, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"--mode {args.mode} does not exist; {hint}Modes: {', '.join(MODES)}")
    check_numbers(args)
    if args.input and (args.image or args.dataset):
        other = "--image" if args.image else "--dataset"
        raise UserError(f"--input and {other} exclude each other: files, or images of a data set")
    if args.input and NEEDS_TRUTH[args.mode]:
        raise UserError(
            f"mode {args.mode} needs ground truth, which files given with --input do not have: "
            "use --dataset and --image"
        )


def dataset_name(cfg: CfgNode, args: argparse.Namespace) -> str:
    which = "TRAIN" if is_of_training(args.mode) else "TEST"
    names = cfg.DATASETS[which]
    if args.dataset:
        return str(args.dataset)
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
                near = get_close_matches(image_id, by_id, n=3) or list(by_id)[:3]
                raise UserError(
                    f"--image {image_id}: not among the {len(by_id)} images of {name}, such as "
                    f"{', '.join(near)}"
                )
        return [by_id[image_id] for image_id in args.image][: args.limit]
    limit = args.limit or FIRST
    if args.seed is not None:
        order = np.random.default_rng(args.seed).permutation(len(records))
        return [records[index] for index in order[:limit]]
    return list(records[:limit])


def free_name(folder: Path, stem: str, taken: set[Path]) -> Path:
    """Return a name that is not taken yet: images in several folders may share theirs."""
    stem = re.sub(r"[^\w.-]+", "_", stem)
    path, number = folder / f"{stem}.png", 2
    while path in taken:
        path, number = folder / f"{stem}-{number}.png", number + 1
    taken.add(path)
    return path


def run(args: argparse.Namespace) -> list[Path]:
    """Draw all that was asked for; return the files."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    check(args)
    cfg = setup_cfg(args.config_file, args.opts)
    name = None
    if args.input:
        files = find_images(args.input)[: args.limit]
        records = [{"file_name": str(file), "image_id": file.stem} for file in files]
    else:
        name = dataset_name(cfg, args)
        # Classes of the data set have to be those of the network where the network is asked.
        uses_head = args.mode == "detections" or (args.mode == "sampled" and cfg.MODEL.WEIGHTS)
        check_datasets([name], cfg.MODEL.ROI_HEADS.NUM_CLASSES if uses_head else None)
        records = records_of_dataset(args, name)
    options = Options(args.topk, args.score, args.seed or 0, args.box, args.cell)
    names = MetadataCatalog.get(name).get("thing_classes") if name else class_names(cfg)
    pictures = Pictures(cfg, list(names or []), options)
    written: list[Path] = []
    taken: set[Path] = set()
    for record in tqdm(records, desc=args.mode, unit="image", disable=len(records) < 3):
        drawn = pictures.draw(args.mode, record)
        if not drawn:
            tqdm.write(f"{record['image_id']}: no objects, nothing to draw (--box gives a RoI)")
        for suffix, canvas in drawn:
            path = free_name(args.output, f"{args.mode}_{record['image_id']}{suffix}", taken)
            written.append(canvas.save(path))
    for path in written:
        print(path)
    return written

"""Run a detector on images: pictures with boxes, JSON, features.

    frcnn predict --weights output/model_final.pth photos/ more/*.jpg --output found
    frcnn predict --weights model_final.pth photo.jpg --json found.json --no-pictures
    frcnn predict --weights model_final.pth photos/ --features found.npz
    frcnn predict --weights model_final.pth photos/ --boxes boxes.json --features own.npz

The weights are enough: config, preprocessing and class names are in the checkpoint. Files without
them need --config-file. ``KEY VALUE`` pairs after the images override the config. A file that
cannot be read is named and left out, and the exit status is then 1. docs/predict.md describes the
files that are written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from detectron2.structures import Instances
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from ..data.loading.image_reader import read_bgr
from ..errors import UserError
from ..modeling.roi_heads.roi_features import check_has_features
from ..predict import FasterRCNNPredictor
from ..predict.config import predictor_cfg
from ..predict.inputs import BoxList, find_images, load_boxes, output_names
from ..predict.outputs import DetectionWriter
from ..preflight import stop_on_bad_values
from ..preflight.planned_run import muted
from ..preflight.rules import device
from ..process import tune_process
from . import add_config_file, check_file, check_numbers, make_folder, split_overrides

# Detections between this score and --score are counted; the command says how many were left out.
COUNTED_FROM = 0.05


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, help="checkpoint of a trained detector")
    add_config_file(parser, "config, instead of the checkpoint's own")
    parser.add_argument("--output", type=Path, help="folder for pictures with detections, and JSON")
    parser.add_argument("--json", type=Path, help="file for detections in COCO's format")
    parser.add_argument("--features", type=Path, help=".npz file for fc7 and all class scores")
    parser.add_argument("--boxes", help="JSON of boxes by image: their features, no detection")
    parser.add_argument("--no-pictures", action="store_true", help="with --output: detections.json")
    parser.add_argument("--score", type=float, default=0.5, help="lowest; default: %(default)s")
    parser.add_argument("--topk", type=int, help="detections per image; default: the config's")
    parser.add_argument("--batch-size", type=int, default=1, help="images; default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; default: the config's")
    parser.add_argument("inputs", nargs="*", help="images, folders, patterns; then KEY VALUE ...")


# Options may stand between the images.
parse = argparse.ArgumentParser.parse_intermixed_args


def check_places(args: argparse.Namespace, paths: Sequence[Path], pictures: Sequence[str]) -> None:
    """Stop if something cannot be written, or would take the place of an image that is read."""
    read = {path.resolve() for path in paths}
    for path in [args.output / f"{name}.jpg" for name in pictures] if args.output else ():
        if path.resolve() in read:
            raise UserError(
                f"{path} is read, and would be written: give another folder as --output"
            )
    for option, path in (("--json", args.json), ("--features", args.features)):
        if path and path.resolve() in read:
            raise UserError(f"{option} {path} is one of the images: give another name")
        if path:
            check_file(option, path)
    if args.json and args.json == args.features:
        raise UserError(f"--json {args.json} and --features are one file: give two names")


def check(args: argparse.Namespace, images: Sequence[str]) -> None:
    """Stop before the work on what would stop it or come to nothing."""
    if not images:
        raise UserError("give images, folders or patterns")
    if args.boxes and (args.output or args.json or not args.features):
        raise UserError(
            "--boxes detects nothing: it goes with --features FILE.npz, without --output and --json"
        )
    if not (args.output or args.json or args.features):
        raise UserError("say what to write: --output FOLDER, --json FILE, --features FILE.npz")
    if args.features and args.features.suffix != ".npz":
        raise UserError(f"--features {args.features} must end in .npz")
    check_numbers(args)
    if args.device is not None and (problem := device(args.device)):
        raise UserError(f"--device is {args.device!r}: {problem}")
    for path in (args.json, args.features):
        if path and not path.resolve().parent.is_dir():
            raise UserError(f"there is no folder {path.resolve().parent}")
    if args.output and args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file: give a folder")


def read_images(
    paths: Sequence[Path], unreadable: list[Path]
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Yield index and (H, W, 3) uint8 BGR image of the readable files; append the others."""
    for i, path in enumerate(tqdm(paths, unit="image")):
        try:
            image = read_bgr(path)
        except UserError as error:
            tqdm.write(f"left out: {error}", file=sys.stderr)
            unreadable.append(path)
        else:
            yield i, image


def extract(
    predictor: FasterRCNNPredictor, image: npt.NDArray[np.uint8], boxes: BoxList, where: str
) -> Instances:
    """Compute the features of boxes; an error says where these are from."""
    try:
        return predictor.extract(image, boxes)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def detect(
    predictor: FasterRCNNPredictor,
    batch: Sequence[tuple[int, npt.NDArray[np.uint8]]],
    paths: Sequence[Path],
    unreadable: list[Path],
    features: Path | None,
) -> Iterator[tuple[int, npt.NDArray[np.uint8], Instances]]:
    """Yield what :func:`read_images` does, with detections; leave out what cannot be resized."""
    try:
        of_batch = predictor.predict([image for _, image in batch], features=bool(features))
    except UserError as error:
        if len(batch) > 1:
            for one in batch:
                yield from detect(predictor, [one], paths, unreadable, features)
            return
        path = paths[batch[0][0]]
        reason = str(error).removeprefix("image 0: ")
        tqdm.write(f"left out: {path}: {reason}", file=sys.stderr)
        unreadable.append(path)
        return
    for (i, image), found in zip(batch, of_batch, strict=True):
        yield i, image, found


def run(args: argparse.Namespace) -> int:
    """Detect, or compute features, and write; return the exit status."""
    setup_logger(name="frcnn_plugin")
    tune_process()
    images, opts = split_overrides(args.inputs)
    check(args, images)
    paths = find_images(images)
    boxes = load_boxes(args.boxes, paths) if args.boxes else []
    pictures = output_names(paths)
    check_places(args, paths, pictures)
    if args.topk:
        opts += ["TEST.DETECTIONS_PER_IMAGE", str(args.topk)]
    if opts or args.config_file:
        with muted("frcnn_plugin"):  # the predictor says it
            cfg, _ = predictor_cfg(args.weights, args.config_file, opts)
        stop_on_bad_values(cfg)
    predictor = FasterRCNNPredictor(
        args.weights,
        args.config_file,
        opts,
        device=args.device,
        score_threshold=min(COUNTED_FROM, args.score),
    )
    if not args.boxes:
        predictor.check_detects()
        if args.features:
            check_has_features(predictor.model.roi_heads)
    if args.output:
        make_folder(args.output)
    unreadable: list[Path] = []
    with DetectionWriter(
        predictor.class_names,
        score=args.score,
        pictures=None if args.no_pictures else args.output,
        json=args.json or (args.output / "detections.json" if args.output else None),
        features=args.features,
        info={"weights": args.weights, "score": str(args.score)},
    ) as writer:
        readable = read_images(paths, unreadable)
        while batch := list(islice(readable, args.batch_size)):
            if args.boxes:
                for i, image in batch:
                    where = f"{args.boxes}: {paths[i]}"
                    writer.add_boxes(str(paths[i]), extract(predictor, image, boxes[i], where))
            else:
                for i, image, found in detect(predictor, batch, paths, unreadable, args.features):
                    writer.add(str(paths[i]), image, found, picture=pictures[i])
    if args.boxes:
        print(f"features of {writer.kept} boxes in {writer.images} images")
    else:
        left_out = (
            f"; {writer.below} more with scores from {COUNTED_FROM:g} to {args.score:g} are below "
            "--score and left out"
        )
        found = f"{writer.kept} detections in {writer.images} images"
        print(found + (left_out if args.score > COUNTED_FROM else ""))
    for path in (args.output, args.json, args.features):
        if path:
            print(f"wrote {path}")
    if unreadable:
        print(
            f"error: {len(unreadable)} of {len(paths)} files could not be used: "
            f"{', '.join(map(str, unreadable))}",
            file=sys.stderr,
        )
    return 1 if unreadable else 0

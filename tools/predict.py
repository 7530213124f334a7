#!/usr/bin/env python
"""Run a detector on pictures or a video: pictures with boxes, JSON, features.

    python tools/predict.py --weights output/model_final.pth photos/ more/*.jpg --output found
    python tools/predict.py --weights model_final.pth photo.jpg --json found.json --no-pictures
    python tools/predict.py --weights model_final.pth photos/ --features found.npz
    python tools/predict.py --weights model_final.pth photos/ --boxes boxes.json --features own.npz
    python tools/predict.py --weights model_final.pth --video street.mp4 --output found

The weights are enough: config, preprocessing and class names are in the checkpoint. Files without
them need --config-file. ``KEY VALUE`` pairs behind the pictures override the config. A file that
cannot be read is named and left out, and the exit status is then 1. docs/predict.md describes the
files that are written.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from detectron2.config import get_cfg
from detectron2.structures import Instances
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from frcnn_plugin import add_frcnn_config
from frcnn_plugin.data.given_boxes import BoxList, load_boxes
from frcnn_plugin.data.image_files import find_images, output_names, read_bgr
from frcnn_plugin.data.video import VideoFile, VideoFrames
from frcnn_plugin.engine import FasterRCNNPredictor
from frcnn_plugin.errors import UserError
from frcnn_plugin.evaluation.annotate import draw_detections, save_picture
from frcnn_plugin.evaluation.coco_results import CocoResults
from frcnn_plugin.evaluation.feature_file import FeatureFile

# Detections between this score and --score are counted, and said to have been left out.
COUNTED_FROM = 0.05


@dataclass
class Item:
    """One image of the run."""

    name: str
    """What the files that are written call it: the file, or "street.mp4#12"."""
    picture: str
    """Name of its picture, without extension; "" for a frame."""
    index: int
    image: npt.NDArray[np.uint8]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", required=True, help="checkpoint of a trained detector")
    parser.add_argument("--config-file", default="", help="config, instead of the checkpoint's own")
    parser.add_argument("--video", help="video file, or number of a webcam (0), instead of images")
    parser.add_argument("--frames", type=int, help="frames of the video at most; default: all")
    parser.add_argument("--output", type=Path, help="folder for pictures (of a video: an .mp4)")
    parser.add_argument("--json", type=Path, help="file for detections in COCO's format")
    parser.add_argument("--features", type=Path, help=".npz file for fc7 and all class scores")
    parser.add_argument("--boxes", help="JSON of boxes by image: their features, no detection")
    parser.add_argument("--no-pictures", action="store_true", help="with --output: detections.json")
    parser.add_argument("--score", type=float, default=0.5, help="lowest; default: %(default)s")
    parser.add_argument("--topk", type=int, help="detections per image; default: the config's")
    parser.add_argument("--batch-size", type=int, default=1, help="images; default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; default: the config's")
    parser.add_argument("inputs", nargs="*", help="pictures, folders, patterns; then KEY VALUE ...")
    return parser.parse_intermixed_args(argv)


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Pictures, and the ``KEY VALUE`` pairs behind them."""
    cfg = get_cfg()
    add_frcnn_config(cfg)
    for i, word in enumerate(words):
        if word.partition(".")[0] in cfg and not os.path.exists(word):
            return list(words[:i]), list(words[i:])
    return list(words), []


def check(args: argparse.Namespace, images: Sequence[str]) -> None:
    """Stop before the work on what would stop it or come to nothing."""
    if bool(images) == bool(args.video):
        raise UserError("give pictures, folders or patterns, or else --video")
    if args.boxes and args.video:
        raise UserError("--boxes gives boxes of pictures: --video cannot have any")
    if args.boxes and (args.output or args.json or not args.features):
        raise UserError(
            "--boxes detects nothing: it goes with --features FILE.npz, without --output and --json"
        )
    if not (args.output or args.json or args.features):
        raise UserError("say what to write: --output FOLDER, --json FILE, --features FILE.npz")
    if args.features and args.features.suffix != ".npz":
        raise UserError(f"--features {args.features} must end in .npz")
    for name, least in (("batch_size", 1), ("topk", 1), ("frames", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}: it must be {least} or more")
    for path in (args.json, args.features):
        if path and not path.resolve().parent.is_dir():
            raise UserError(f"there is no folder {path.resolve().parent}")
    if args.output and args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file: give a folder")


def read_items(paths: Sequence[Path], unreadable: list[str]) -> Iterator[Item]:
    """The pictures that can be read; the others' names go into ``unreadable``."""
    pictures = output_names(paths)
    for i, path in enumerate(tqdm(paths, unit="image")):
        try:
            image = read_bgr(path)
        except UserError as error:
            tqdm.write(f"left out: {error}", file=sys.stderr)
            unreadable.append(str(path))
            continue
        yield Item(str(path), pictures[i], i, image)


def read_frames(video: VideoFrames, source: str) -> Iterator[Item]:
    for i, frame in enumerate(tqdm(video, total=video.number, unit="frame")):
        yield Item(f"{os.path.basename(source)}#{i}", "", i, frame)


def batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while batch := list(islice(items, size)):
        yield batch


class Writer:
    """Sends each image's detections to the files that were asked for, and counts them."""

    def __init__(self, args: argparse.Namespace, predictor: FasterRCNNPredictor) -> None:
        self._args, self._names = args, predictor.class_names
        self._stack = ExitStack()
        self._video: VideoFile | None = None
        self._features: FeatureFile | None = None
        self._json = CocoResults(self._names, weights=str(args.weights), score=str(args.score))
        self._json_path = args.json
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
            self._json_path = args.json or args.output / "detections.json"
        if args.features:
            self._features = self._stack.enter_context(FeatureFile(args.features, self._names))
        self.images = self.kept = self.below = 0

    def open_video(self, video: VideoFrames) -> None:
        if self._args.output and not self._args.no_pictures:
            path = self._args.output / f"{video.name}.mp4"
            self._video = self._stack.enter_context(VideoFile(path, video.rate))

    @property
    def wants_features(self) -> bool:
        return self._features is not None

    def add(self, item: Item, found: Instances) -> None:
        kept = found[found.scores >= self._args.score]
        self.images, self.kept = self.images + 1, self.kept + len(kept)
        self.below += len(found) - len(kept)
        self._json.add(item.name, kept)
        if self._features:
            self._features.add(item.name, kept)
        if self._args.output and not self._args.no_pictures:
            picture = draw_detections(item.image, kept, self._names)
            if self._video:
                self._video.add(picture)
            else:
                save_picture(self._args.output / f"{item.picture}.jpg", picture)

    def add_boxes(self, item: Item, instances: Instances) -> None:
        assert self._features
        self.images, self.kept = self.images + 1, self.kept + len(instances)
        self._features.add(item.name, instances)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)  # type: ignore[arg-type]
        if error[0] is None and self._json_path and not self._args.boxes:
            self._json.write(self._json_path)

    def summary(self) -> str:
        if self._args.boxes:
            return f"features of {self.kept} boxes in {self.images} images"
        low = min(COUNTED_FROM, self._args.score)
        return (
            f"{self.kept} detections in {self.images} images; {self.below} more with scores from "
            f"{low:g} to {self._args.score:g} were below --score"
        )


def detect(predictor: FasterRCNNPredictor, batch: list[Item], writer: Writer) -> None:
    images = [item.image for item in batch]
    results = predictor.predict(images, features=writer.wants_features)
    for item, found in zip(batch, results, strict=True):
        writer.add(item, found)


def extract(
    predictor: FasterRCNNPredictor,
    batch: list[Item],
    boxes: Sequence[BoxList],
    source: str,
    writer: Writer,
) -> None:
    for item in batch:
        try:
            result = predictor.extract(item.image, boxes[item.index])
        except UserError as error:
            raise UserError(f"{source}: {item.name}: {error}") from error
        writer.add_boxes(item, result)


def run(args: argparse.Namespace) -> int:
    """Returns the exit status."""
    images, opts = split_overrides(args.inputs)
    check(args, images)
    paths = find_images(images)
    boxes = load_boxes(args.boxes, paths) if args.boxes else []
    video = VideoFrames(args.video, args.frames) if args.video else None
    if args.topk:
        opts += ["TEST.DETECTIONS_PER_IMAGE", str(args.topk)]
    predictor = FasterRCNNPredictor(
        args.weights,
        args.config_file,
        opts,
        device=args.device,
        score_threshold=min(COUNTED_FROM, args.score),
    )
    if not args.boxes:
        predictor.check_detects()
    unreadable: list[str] = []
    with Writer(args, predictor) as writer:
        if video:
            writer.open_video(video)
            items = read_frames(video, args.video)
        else:
            items = read_items(paths, unreadable)
        try:
            for batch in batches(items, args.batch_size):
                if args.boxes:
                    extract(predictor, batch, boxes, args.boxes, writer)
                else:
                    detect(predictor, batch, writer)
        except KeyboardInterrupt:
            if not video:
                raise
            print("stopped: what was seen so far is written", file=sys.stderr)
    print(writer.summary())
    for path in (args.output, args.json, args.features):
        if path:
            print(f"wrote {path}")
    if unreadable:
        print(
            f"error: {len(unreadable)} of {len(paths)} files could not be read: "
            f"{', '.join(unreadable)}",
            file=sys.stderr,
        )
    return 1 if unreadable else 0


def main(argv: Sequence[str] | None = None) -> None:
    setup_logger(name="frcnn_plugin")
    try:
        status = run(parse_args(argv))
    except UserError as error:
        sys.exit(f"error: {error}")
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()

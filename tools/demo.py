#!/usr/bin/env python
"""Train and test a small detector on generated images, in minutes, on the CPU.

    python tools/demo.py            # what `make demo` runs
    python tools/demo.py --quick    # a few iterations: does everything run?

Writes a VOC-format data set of circles, squares and triangles, trains a narrow VGG16 on it from
scratch in the paper's four stages with `frcnn train`, prints recall and average precision of
each stage, and draws detections beside the ground truth.
"""

from __future__ import annotations

import frcnn_command  # first, as it keeps other libraries' warnings off the console

frcnn_command.wait_briefly()
# isort: split
import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.structures import BoxMode
from tqdm import tqdm

from frcnn_plugin import get_config_file
from frcnn_plugin.cli.__main__ import parse
from frcnn_plugin.data.loading.image_reader import read_bgr
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.errors import UserError
from frcnn_plugin.four_step import STAGES
from frcnn_plugin.report import write_report
from frcnn_plugin.visualization import contact_sheet, draw_comparison, save_picture

CONFIG = "demo/vgg16_shapes.yaml"
# AP50 (area under the curve) on images it was not trained on: what the runs of docs/benchmarks.md
# exceeded by at least three points, and below which nothing was learned. In so short a training the
# seed and rounding, which differs between processors, make a difference of a few points.
USUAL, LEARNED = 92.0, 50.0
IMAGES = (500, 100)  # to train on, to test on
QUICK_IMAGES = (20, 10)
QUICK = ["FOUR_STEP.ITERS", "[5,5,5,5]", "FOUR_STEP.DROPS", "[[3],[3],[3],[3]]"]


# What is printed of each stage.
RECALL = {
    "proposals/R@0.5@300": "recall of 300 proposals at IoU .5",
    "proposals/AR@300": "average recall of 300 proposals",
}
AP50 = {
    "bbox/AP50-area": "AP50 (area under the curve)",
    "bbox/AP50-11point": "AP50 (11-point, VOC 2007)",
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder to write")
    parser.add_argument("--quick", action="store_true", help="a few iterations, no promise")
    parser.add_argument("--pictures", type=int, default=12, help="pictures to draw")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides of the config")
    return parser.parse_args(argv)


def draw_test_images(cfg: CfgNode, folder: Path, number: int, min_score: float = 0.5) -> Path:
    """Draw the first test images; return the path of a sheet with all of them."""
    dataset = cfg.DATASETS.TEST[0]
    names = MetadataCatalog.get(dataset).thing_classes
    predictor = DefaultPredictor(cfg)
    pictures = []
    for record in tqdm(DatasetCatalog.get(dataset)[:number], desc="drawing", unit="image"):
        image = read_bgr(record["file_name"])
        instances = predictor(image)["instances"].to("cpu")
        instances = instances[instances.scores >= min_score]
        objects = record["annotations"]
        assert all(o["bbox_mode"] == BoxMode.XYXY_ABS for o in objects)
        canvas = draw_comparison(
            image,
            [o["bbox"] for o in objects],
            [o["category_id"] for o in objects],
            instances.pred_boxes.tensor.numpy(),
            instances.pred_classes.tolist(),
            instances.scores.tolist(),
            names,
            [bool(o["difficult"]) for o in objects],
        )
        pictures.append(canvas.pixels())
        save_picture(folder / f"{record['image_id']}.png", pictures[-1])
    return save_picture(folder / "all.png", contact_sheet(pictures, columns=3))


def last_values(metrics: Path) -> dict[str, float]:
    """The newest value of everything in a ``metrics.json``."""
    values: dict[str, float] = {}
    for line in metrics.read_text().splitlines():
        values.update(json.loads(line))
    return values


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    args = parse_args(argv)
    start = time.perf_counter()
    datasets = args.output / ("datasets_quick" if args.quick else "datasets")
    # The config names the data by a relative root, which is looked for here.
    os.environ["DETECTRON2_DATASETS"] = str(datasets)
    print(f"writing the data set to {datasets} ...", flush=True)
    write_synthetic_voc(datasets / "demo_shapes", *(QUICK_IMAGES if args.quick else IMAGES))

    run = args.output / "run"
    shutil.rmtree(run, ignore_errors=True)  # the last demo's
    config = get_config_file(CONFIG)
    opts = ["OUTPUT_DIR", str(run), *(QUICK if args.quick else []), *args.opts]
    train, train_args = parse(["train", "--config-file", config, *opts])
    results = train.run(train_args)["bbox"]
    metrics = last_values(run / "metrics.json")

    # The options as `train` has made them: with the device that there is.
    cfg = setup_cfg(config, [*train_args.opts, "MODEL.WEIGHTS", str(run / "model_final.pth")])
    sheet = draw_test_images(cfg, args.output / "pictures", args.pictures)

    print("\nafter stage")
    for stage in STAGES:
        for key, name in (AP50 if stage.proposals_of else RECALL).items():
            of_all = results.get(key.removeprefix("bbox/"))  # the last stage's have no prefix
            value = metrics.get(f"stage{stage.number}/{key}", of_all)
            print(f"  {stage.title:<12}{name:<42}{value:.1f}")
    print(f"\n{'class':<12}AP50 (area)")
    for key, value in results.items():
        if key.startswith("AP50/"):
            print(f"{key.removeprefix('AP50/'):<12}{value:.1f}")
    print(f"{'mean':<12}{results['AP50']:.1f}   (AP at .50:.95: {results['AP']:.1f})\n")
    print(f"weights, log, metrics: {run}")
    print(f"report of the training, for a browser: {write_report(run)}")
    print(f"pictures, left the truth, right the detections: {sheet} and beside it")
    print(f"took {time.perf_counter() - start:.0f} s")
    if not args.quick and results["AP50"] < LEARNED:
        sys.exit(f"error: AP50 is {results['AP50']:.1f}: the detector has learned next to nothing")
    if not args.quick and results["AP50"] < USUAL:
        print(
            f"AP50 is below the usual {USUAL:.0f}. So short a training depends on how the "
            "processor rounds, and on the seed (SEED 4 at the end of the command tries another)"
        )
    return results


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")

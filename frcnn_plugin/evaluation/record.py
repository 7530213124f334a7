"""What an evaluation leaves: AP per class and a few images for the training report, as JSON.

All detections are in COCO's format for results, and from the VOC evaluator also in that of its
server.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog

from ..atomic_files import optional_output, reading_json, write_json
from .average_precision import MatchRule
from .detections import Detections, judge_detections
from .ground_truth import GroundTruth

EVALUATION_FILE = "evaluation.json"  # in OUTPUT_DIR/inference/<data set>
COCO_RESULTS_FILE = "coco_instances_results.json"  # there; Detectron2's name
MIN_SCORE = 0.5  # detections below are not looked at: nobody would show them
NUM_IMAGES = 6  # best ones, and as many worst ones


@dataclass(frozen=True)
class ClassRecord:
    """How the detector did on one class."""

    name: str
    num_objects: int  # ignored ones not counted
    num_detections: int
    aps: dict[str, float]  # such as "AP50-area", in percent; empty if there are no objects


class BoxRecord(NamedTuple):
    """One box of an image.

    An object is "found", "missed" or "ignored" (difficult, crowd); a detection is "right", "wrong"
    or "ignored" (on such an object).
    """

    box: list[float]  # continuous XYXY, original-image pixels
    label: str
    outcome: str
    score: float | None = None  # None for an object


class ImageRecord(NamedTuple):
    """One image."""

    image_id: str
    file_name: str  # "" if the data set does not say
    boxes: list[BoxRecord]  # objects, then confident detections


@dataclass(frozen=True)
class EvaluationRecord:
    """Outcome of one evaluation of a detector."""

    dataset: str
    metric: str  # the headline, such as "11point"
    match: str  # rule of the IoU, ">=" or ">"
    num_images: int
    results: dict[str, float]  # what the evaluator returned, in percent
    classes: list[ClassRecord]
    best: list[ImageRecord]  # see `pick_examples`
    worst: list[ImageRecord]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, whole or not at all."""
        write_json(path, asdict(self))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> EvaluationRecord:
        """Read what `save` wrote; a UserError names a missing, damaged or foreign file."""
        with reading_json(
            path, "evaluation", "; make it again: frcnn train --eval-only"
        ) as content:
            content["classes"] = [ClassRecord(**entry) for entry in content["classes"]]
            for key in ("best", "worst"):
                content[key] = [
                    ImageRecord(image_id, file_name, [BoxRecord(*box) for box in boxes])
                    for image_id, file_name, boxes in content[key]
                ]
            return EvaluationRecord(**content)


def record_evaluation(
    folder: str | os.PathLike[str],
    dataset_name: str,
    metric: str,
    match: MatchRule,
    results: Mapping[str, float],
    classes: Sequence[ClassRecord],
    detections: Detections,
    truth: GroundTruth,
) -> None:
    """Write ``evaluation.json`` into `folder`; if that fails, a warning says so.

    The other arguments are those of `EvaluationRecord` and `pick_examples`.
    """
    path = Path(folder) / EVALUATION_FILE
    with optional_output(path):
        best, worst = pick_examples(detections, truth, [entry.name for entry in classes], match)
        EvaluationRecord(
            dataset_name, metric, match, len(truth.image_ids), dict(results), list(classes),
            best, worst,
        ).save(path)  # fmt: skip


def write_coco_results(
    folder: str | os.PathLike[str], dataset_name: str, detections: Iterable[Mapping[str, Any]]
) -> None:
    """Write all detections in COCO's format for results; if that fails, a warning says so.

    Those given have ``image_id``, ``category_id`` (the class index), ``bbox`` (XYWH) and ``score``.
    The category ids of the data set are written; class indices if it has none.
    """
    path = Path(folder) / COCO_RESULTS_FILE
    with optional_output(path):
        ids = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id") or {}
        own = {index: number for number, index in ids.items()}
        rows = [
            {**entry, "category_id": own.get(entry["category_id"], entry["category_id"])}
            for entry in detections
        ]
        write_json(path, rows)


def pick_examples(
    detections: Detections, truth: GroundTruth, class_names: Sequence[str], match: MatchRule
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Choose the images with the best and the worst F1 of confident detections.

    F1 is the harmonic mean of precision and recall. Only images with objects that count, or with
    confident detections that are wrong, take part. Of equal ones the image with more objects right
    is the better, that with more errors the worse. No image is in both lists, and none without a
    right detection is in the first. The detections, of the whole data set, are in descending order
    of score.

    Returns:
        At most `NUM_IMAGES` best ones, best first, and as many worst ones, worst first.
    """
    shown = detections.select(detections.scores >= MIN_SCORE)
    right, ignored, found = judge_detections(shown, truth, match)
    size = len(truth.image_ids)
    num_right = np.bincount(shown.images[right], minlength=size)
    num_wrong = np.bincount(shown.images[~right & ~ignored], minlength=size)
    num_objects = np.bincount(truth.images[~truth.ignored], minlength=size)
    errors = num_wrong + num_objects - num_right
    f1 = 2 * num_right / np.maximum(2 * num_right + errors, 1)
    judged = np.flatnonzero((num_objects > 0) | (num_wrong > 0))
    # Stable, so that equal images come in the order of the data set.
    best_first = judged[np.lexsort((-num_right[judged], -f1[judged]))]
    worst_first = judged[np.lexsort((-errors[judged], f1[judged]))]
    best = best_first[f1[best_first] > 0][: min(NUM_IMAGES, (len(judged) + 1) // 2)]
    worst = worst_first[~np.isin(worst_first, best)][:NUM_IMAGES]

    def record(index: int) -> ImageRecord:
        boxes = []
        for i in np.flatnonzero(truth.images == index):
            outcome = "ignored" if truth.ignored[i] else "found" if found[i] else "missed"
            name = class_names[truth.classes[i]]
            boxes.append(BoxRecord(truth.boxes[i].round(2).tolist(), name, outcome))
        for i in np.flatnonzero(shown.images == index):
            outcome = "right" if right[i] else "ignored" if ignored[i] else "wrong"
            name, score = class_names[shown.classes[i]], round(float(shown.scores[i]), 5)
            boxes.append(BoxRecord(shown.boxes[i].round(2).tolist(), name, outcome, score))
        file_name = truth.file_names[index]
        if file_name and "://" not in file_name:
            file_name = os.path.abspath(file_name)  # the report may be made elsewhere
        return ImageRecord(truth.image_ids[index], file_name, boxes)

    return [record(i) for i in best], [record(i) for i in worst]

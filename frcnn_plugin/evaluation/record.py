"""What an evaluation leaves for the training report: curves per class and a few images, as JSON.

Small on purpose: a curve has one point per object found, and only the images on which the detector
did best and worst are kept. All detections are in the files in the VOC server's format, or COCO's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic_files import optional_output, reading_json, write_json
from .average_precision import MatchRule
from .detections import Detections, judge_detections
from .ground_truth import GroundTruth

EVALUATION_FILE = "evaluation.json"  # in OUTPUT_DIR/inference/<data set>
MIN_SCORE = 0.5  # detections below are not looked at: nobody would show them
NUM_IMAGES = 6  # best ones, and as many worst ones
_MOST_BOXES = 100  # per image, for a detector that fires everywhere


@dataclass(frozen=True)
class ClassRecord:
    """One class.

    Attributes:
        name: of the class.
        num_objects: objects to be found.
        num_detections: detections of the class.
        ap50: AP at IoU 0.5 in percent, by metric; empty if there are no objects.
        recall: in [0, 1], after every object found, best score first, at IoU 0.5.
        precision: in [0, 1], likewise.
    """

    name: str
    num_objects: int
    num_detections: int
    ap50: dict[str, float]
    recall: list[float]
    precision: list[float]


@dataclass(frozen=True)
class BoxRecord:
    """One box of an image.

    Attributes:
        box: continuous XYXY, original-image pixels.
        label: name of the class.
        outcome: of an object "found", "missed" or "ignored" (difficult, crowd); of a detection
            "right", "wrong" or "ignored" (on such an object).
        score: of a detection in [0, 1]; None for an object.
    """

    box: list[float]
    label: str
    outcome: str
    score: float | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One image.

    Attributes:
        image_id: its id.
        file_name: its path; "" if the data set does not say.
        width: in pixels; 0 if the data set does not say.
        height: likewise.
        f1: harmonic mean of precision and recall of its confident detections, in [0, 1].
        boxes: objects, then confident detections.
    """

    image_id: str
    file_name: str
    width: int
    height: int
    f1: float
    boxes: list[BoxRecord]

    @property
    def summary(self) -> str:
        """How the detector did on it, in a few words."""
        outcomes = [box.outcome for box in self.boxes]
        return ", ".join(f"{outcomes.count(word)} {word}" for word in ("right", "wrong", "missed"))


@dataclass(frozen=True)
class EvaluationRecord:
    """Outcome of one evaluation of a detector.

    Attributes:
        dataset: name of the data set.
        metric: the headline, such as "11point".
        match: rule of the IoU, ">=" or ">".
        num_images: images of the set.
        results: what the evaluator returned, in percent.
        classes: one entry per class.
        min_score: score from which on a detection counts as confident in `best` and `worst`.
        best: images with the highest `f1`, best first.
        worst: images with the lowest `f1`, worst first.
    """

    dataset: str
    metric: str
    match: str
    num_images: int
    results: dict[str, float]
    classes: list[ClassRecord]
    min_score: float
    best: list[ImageRecord]
    worst: list[ImageRecord]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, whole or not at all."""
        write_json(path, _shortened(asdict(self)))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> EvaluationRecord:
        """Read what `save` wrote.

        Raises:
            UserError: for a missing, damaged or foreign file.
        """
        with reading_json(
            path, "evaluation", "; make it again: frcnn train --eval-only"
        ) as content:
            content["classes"] = [ClassRecord(**entry) for entry in content["classes"]]
            for key in ("best", "worst"):
                content[key] = [
                    ImageRecord(**{**entry, "boxes": [BoxRecord(**b) for b in entry["boxes"]]})
                    for entry in content[key]
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
    """Write ``evaluation.json``; if that fails, a warning says so.

    Args:
        folder: where to.
        dataset_name: name of the data set.
        metric: the headline.
        match: see `match_detections`.
        results: what the evaluator returns, in percent.
        classes: one entry per class, by class index.
        detections: of the whole data set, in descending order of score.
        truth: its objects.
    """
    path = Path(folder) / EVALUATION_FILE
    with optional_output(path):
        best, worst = pick_examples(detections, truth, [entry.name for entry in classes], match)
        EvaluationRecord(
            dataset_name, metric, match, len(truth.image_ids), dict(results), list(classes),
            MIN_SCORE, best, worst,
        ).save(path)  # fmt: skip


def pick_examples(
    detections: Detections,
    truth: GroundTruth,
    class_names: Sequence[str],
    match: MatchRule,
    number: int = NUM_IMAGES,
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Choose the images with the best and the worst F1 of confident detections.

    Only images with objects that count, or with confident detections that are wrong, take part.
    Of equal ones the image with more objects right is the better, that with more errors the worse.
    No image is in both lists, and none without a right detection is in the first.

    Args:
        detections: of the whole data set, in descending order of score.
        truth: its objects.
        class_names: names by class index.
        match: see `match_detections`.
        number: length of each list, at most.

    Returns:
        The best ones, best first, and the worst ones, worst first.
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
    best = best_first[f1[best_first] > 0][: min(number, (len(judged) + 1) // 2)]
    worst = worst_first[~np.isin(worst_first, best)][:number]

    def record(index: int) -> ImageRecord:
        boxes = []
        for i in np.flatnonzero(truth.images == index)[:_MOST_BOXES]:
            outcome = "ignored" if truth.ignored[i] else "found" if found[i] else "missed"
            boxes.append(BoxRecord(truth.boxes[i].tolist(), class_names[truth.classes[i]], outcome))
        for i in np.flatnonzero(shown.images == index)[:_MOST_BOXES]:
            outcome = "right" if right[i] else "ignored" if ignored[i] else "wrong"
            name, score = class_names[shown.classes[i]], float(shown.scores[i])
            boxes.append(BoxRecord(shown.boxes[i].tolist(), name, outcome, score))
        file_name, width, height = truth.files[index] if truth.files else ("", 0, 0)
        if file_name and "://" not in file_name:
            file_name = os.path.abspath(file_name)  # the report may be made elsewhere
        return ImageRecord(
            truth.image_ids[index], file_name, width, height, float(f1[index]), boxes
        )

    return [record(i) for i in best], [record(i) for i in worst]


def _shortened(value: Any, key: str = "") -> Any:
    """Leave out digits that no picture shows; results and APs stay exact."""
    if isinstance(value, dict):
        return {k: v if k in ("results", "ap50") else _shortened(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_shortened(entry, key) for entry in value]
    if isinstance(value, float):
        return round(value, 2 if key == "box" else 5)
    return value

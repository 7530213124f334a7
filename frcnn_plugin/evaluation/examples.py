"""The images on which a detector did best and worst."""

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .average_precision import MatchRule, best_overlaps, match_detections
from .ground_truth import GroundTruth
from .record import BoxRecord, ImageRecord
from .voc_results import Detections

MIN_SCORE = 0.5  # detections below are not looked at: nobody would show them
NUM_IMAGES = 6  # best ones, and as many worst ones
_IOU = np.array([0.5])
_MOST_BOXES = 100  # per image, for a detector that fires everywhere


def pick_examples(
    detections: Detections,
    truth: GroundTruth,
    class_names: Sequence[str],
    match: MatchRule,
    number: int = NUM_IMAGES,
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Chooses the best and the worst images by F1 of their confident detections.

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
    kept = np.flatnonzero(detections.scores >= MIN_SCORE)
    shown = Detections(
        detections.boxes[kept],
        detections.scores[kept],
        detections.classes[kept],
        detections.images[kept],
    )
    right, ignored, found = _match(shown, truth, match)
    size = len(truth.image_ids)
    num_right = np.bincount(shown.images[right], minlength=size)
    num_wrong = np.bincount(shown.images[~right & ~ignored], minlength=size)
    num_objects = np.bincount(truth.images[~truth.ignored], minlength=size)
    f1 = 2 * num_right / np.maximum(2 * num_right + num_wrong + num_objects - num_right, 1)
    errors = num_wrong + num_objects - num_right
    judged = np.flatnonzero((num_objects > 0) | (num_wrong > 0))
    # Stable, so that equal images come in the order of the data set.
    best_first = judged[np.lexsort((-num_right[judged], -f1[judged]))]
    worst_first = judged[np.lexsort((-errors[judged], f1[judged]))]
    best = best_first[f1[best_first] > 0][: min(number, (len(judged) + 1) // 2)]
    worst = worst_first[~np.isin(worst_first, best)][:number]

    def record(index: int) -> ImageRecord:
        return _record(index, float(f1[index]), shown, truth, class_names, right, ignored, found)

    return [record(i) for i in best], [record(i) for i in worst]


def _match(
    shown: Detections, truth: GroundTruth, match: MatchRule
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Detections that are right, and ignored, (D,) each; objects that are found, (G,)."""
    right = np.zeros(len(shown.scores), dtype=bool)
    ignored = np.zeros_like(right)
    found = np.zeros(len(truth.boxes), dtype=bool)
    for index in np.union1d(shown.classes, truth.classes):
        mine = np.flatnonzero(shown.classes == index)
        gt = np.flatnonzero(truth.classes == index)
        boxes = (shown.boxes[mine], shown.images[mine], truth.boxes[gt], truth.images[gt])
        hit, skip = match_detections(*boxes, truth.ignored[gt], _IOU, match)
        right[mine], ignored[mine] = hit[0], skip[0]
        true = mine[hit[0]]
        owner, _ = best_overlaps(
            shown.boxes[true], shown.images[true], truth.boxes[gt], truth.images[gt]
        )
        found[gt[owner]] = True
    return right, ignored, found


def _record(
    index: int,
    f1: float,
    shown: Detections,
    truth: GroundTruth,
    class_names: Sequence[str],
    right: npt.NDArray[np.bool_],
    ignored: npt.NDArray[np.bool_],
    found: npt.NDArray[np.bool_],
) -> ImageRecord:
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
    return ImageRecord(truth.image_ids[index], file_name, width, height, f1, boxes)

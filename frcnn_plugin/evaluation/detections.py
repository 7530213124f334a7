"""The detections of a whole data set: which of them are right, and can they be believed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .average_precision import (
    BoolArray,
    FloatArray,
    IntArray,
    MatchRule,
    best_overlaps,
    match_detections,
)
from .ground_truth import GroundTruth

_SAME_SCORE = 1e-3
_CONFIDENT = 0.5


@dataclass(frozen=True)
class Detections:
    """Detections of a whole data set, in descending order of score.

    Attributes:
        boxes: (D, 4) float64, continuous XYXY, image pixels.
        scores: (D,) float64, finite.
        classes: (D,) class index.
        images: (D,) index into the ground truth's `image_ids`.
    """

    boxes: FloatArray
    scores: FloatArray
    classes: IntArray
    images: IntArray

    def best_first(self) -> Detections:
        """Return them in descending order of score; equal scores keep their order."""
        order = np.argsort(-self.scores, kind="stable")
        return self.select(order)

    def best_of_classes(self, limit: int) -> Detections:
        """Return the first `limit` of each class."""
        kept = [np.flatnonzero(self.classes == c)[:limit] for c in np.unique(self.classes)]
        return self.select(np.sort(np.concatenate([*kept, np.zeros(0, dtype=np.int64)])))

    def select(self, chosen: IntArray | BoolArray) -> Detections:
        """Return some of them, by index or mask."""
        return Detections(
            self.boxes[chosen], self.scores[chosen], self.classes[chosen], self.images[chosen]
        )


def judge_detections(
    detections: Detections, truth: GroundTruth, match: MatchRule
) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Match detections and objects of all classes at IoU 0.5, as average precision does.

    Returns:
        right (D,): true positives; ignored (D,): detections of difficult or crowd objects, which
        count neither way; found (G,): objects that have a true positive.
    """
    right = np.zeros(len(detections.scores), dtype=bool)
    ignored = np.zeros_like(right)
    found = np.zeros(len(truth.boxes), dtype=bool)
    for index in np.union1d(detections.classes, truth.classes):
        mine = np.flatnonzero(detections.classes == index)
        gt = np.flatnonzero(truth.classes == index)
        pairs = (
            detections.boxes[mine], detections.images[mine], truth.boxes[gt], truth.images[gt],
        )  # fmt: skip
        hits, no_counts = match_detections(*pairs, truth.ignored[gt], np.array([0.5]), match)
        right[mine], ignored[mine] = hits[0], no_counts[0]
        # A true positive is one of the object that it overlaps most.
        best_gt, _ = best_overlaps(*pairs)
        found[gt[best_gt[hits[0]]]] = True
    return right, ignored, found


def diagnose(
    scores: Sequence[float] | FloatArray, num_classes: int, ap50: float | None = None
) -> str | None:
    """Say in one line why detections cannot be those of a trained detector; None if they can.

    Background is no class; `ap50` is in percent, None or nan if it is not known.
    """
    if len(scores) == 0:
        return (
            "no detections at all: is MODEL.WEIGHTS the trained detector (and not, say, a "
            "backbone), and MODEL.ROI_HEADS.SCORE_THRESH_TEST low enough? A detector that has "
            "trained only a few iterations calls everything background"
        )
    lowest, highest = float(np.min(scores)), float(np.max(scores))
    chance = 1 / (num_classes + 1)
    # A perfect detector gives the same score to all, too: a high one.
    if len(scores) > 1 and highest - lowest <= _SAME_SCORE and highest <= (1 + chance) / 2:
        return (
            f"all {len(scores)} scores lie within {_SAME_SCORE} of {highest:.4f} (chance is "
            f"{chance:.4f}): the predictor looks untrained; is MODEL.WEIGHTS the "
            f"trained detector, with the same number of classes?"
        )
    if ap50 == 0 and highest >= _CONFIDENT:
        return (
            f"AP50 is 0 although there are {len(scores)} detections, the best with score "
            f"{highest:.3f}: their classes or boxes are not those of the annotations. Is the class "
            f"list of the test set, in this order, the one that MODEL.WEIGHTS was trained with, "
            f"and are its boxes where the objects are?"
        )
    return None

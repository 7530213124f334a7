"""From detections and ground truth to average precision per class, and its means."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .average_precision import (
    MatchRule,
    Metric,
    average_precision,
    match_detections,
    precision_recall,
)
from .ground_truth import GroundTruth
from .record import ClassRecord

METRICS: tuple[Metric, ...] = ("11point", "area")
# As Detectron2 writes them: 55 / 100, not 0.5 + 0.05.
IOU_THRESHOLDS = np.array([percent / 100.0 for percent in range(50, 100, 5)])


@dataclass(frozen=True)
class Detections:
    """Detections of a whole data set, in descending order of score.

    Attributes:
        boxes: (D, 4) float64, continuous XYXY, image pixels.
        scores: (D,) float64, finite.
        classes: (D,) class index.
        images: (D,) index into the ground truth's `image_ids`.
    """

    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClassResult:
    """Outcome of one class.

    Attributes:
        num_objects: objects to be found.
        num_detections: detections of the class.
        aps: AP in [0, 1] by metric, (T,) over the IoU thresholds .50:.05:.95; None if there are
            no objects.
        recall: (F,) behind every object found, best score first, at IoU .50.
        precision: (F,) likewise.
    """

    num_objects: int
    num_detections: int
    aps: dict[Metric, npt.NDArray[np.float64]] | None
    recall: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    precision: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


def evaluate_class(
    detections: Detections, truth: GroundTruth, class_index: int, match: MatchRule
) -> ClassResult:
    """Average precision of one class at all IoU thresholds.

    Args:
        detections: of all classes, in descending order of score.
        truth: of all classes.
        class_index: the class.
        match: see `match_detections`.

    Returns:
        Its AP by metric, (T,) each, None if the class has no objects that count.
    """
    mine = detections.classes == class_index
    gt = truth.classes == class_index
    num_objects = int((gt & ~truth.ignored).sum())
    if num_objects == 0:
        return ClassResult(0, int(mine.sum()), None)
    true_positive, ignored = match_detections(
        detections.boxes[mine],
        detections.images[mine],
        truth.boxes[gt],
        truth.images[gt],
        truth.ignored[gt],
        IOU_THRESHOLDS,
        match,
    )
    curves = [
        precision_recall(hit, skip, num_objects)
        for hit, skip in zip(true_positive, ignored, strict=True)
    ]
    aps = {
        metric: np.array([average_precision(*curve, metric) for curve in curves])
        for metric in METRICS
    }
    # Between two hits recall stays and precision falls: the hits are the whole curve.
    recall, precision = (column[true_positive[0]] for column in curves[0])
    return ClassResult(num_objects, int(mine.sum()), aps, recall, precision)


def summarize(
    per_class: Sequence[ClassResult], class_names: Sequence[str], metric: Metric
) -> dict[str, float]:
    """Means over the classes that have objects, and each class's AP50; in percent.

    Args:
        per_class: one result per class; at least one has objects.
        class_names: their names.
        metric: the headline.

    Returns:
        The dict that `VOCEvaluator.evaluate` documents.
    """
    defined = [result.aps for result in per_class if result.aps is not None]
    means = {name: 100 * np.mean([aps[name] for aps in defined], axis=0) for name in METRICS}
    level = {percent: index for index, percent in enumerate(range(50, 100, 5))}
    results = {
        "AP": float(means[metric].mean()),
        "AP50": float(means[metric][level[50]]),
        "AP75": float(means[metric][level[75]]),
    }
    results |= {f"AP50-{name}": float(means[name][level[50]]) for name in METRICS}
    for class_name, result in zip(class_names, per_class, strict=True):
        if result.aps is not None:
            results[f"AP50/{class_name}"] = float(100 * result.aps[metric][level[50]])
    return results


def class_records(
    per_class: Sequence[ClassResult], class_names: Sequence[str]
) -> list[ClassRecord]:
    """The results as the training report takes them; AP in percent.

    Args:
        per_class: one result per class.
        class_names: their names.
    """
    return [
        ClassRecord(
            name=name,
            num_objects=result.num_objects,
            num_detections=result.num_detections,
            ap50={metric: float(100 * aps[0]) for metric, aps in (result.aps or {}).items()},
            recall=result.recall.tolist(),
            precision=result.precision.tolist(),
        )
        for name, result in zip(class_names, per_class, strict=True)
    ]

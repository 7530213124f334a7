"""COCO's evaluation, which also writes what the training report needs and doubts odd results."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import COCOEvaluator

from .detections import Detections, diagnose
from .ground_truth import GroundTruth, load_ground_truth
from .record import ClassRecord, record_evaluation

logger = logging.getLogger(__name__)


class RecordingCOCOEvaluator(COCOEvaluator):
    """Detectron2's evaluator; writes ``evaluation.json`` beside its other files.

    One warning says so if the detections look like those of an untrained network.
    """

    def __init__(self, dataset_name: str, **options: Any) -> None:
        """Take Detectron2's arguments; pycocotools evaluates where its compiled part is missing."""
        super().__init__(dataset_name, **{"use_fast_impl": _has_fast_cocoeval(), **options})
        self._dataset_name = dataset_name

    def _eval_predictions(self, predictions: Any, img_ids: Any = None) -> None:
        # Read first: Detectron2 changes the numbers of the classes in place.
        truth = load_ground_truth(self._dataset_name)
        detections = _detections(predictions, truth)
        super()._eval_predictions(predictions, img_ids)
        results = self._results.get("bbox", {})
        ap50 = results.get("AP50", float("nan"))
        names = list(self._metadata.thing_classes)
        problem = diagnose(detections.scores, len(names), ap50)
        if problem:
            logger.warning("%s: %s", self._dataset_name, problem)
        if self._output_dir and np.isfinite(ap50):  # else no detections, or no objects
            classes = []
            for index, name in enumerate(names):
                ap = results.get(f"AP-{name}", results["AP"])  # not listed for a single class
                num_objects = int(((truth.classes == index) & ~truth.ignored).sum())
                num_detections = int((detections.classes == index).sum())
                aps = {"AP": ap} if np.isfinite(ap) else {}
                classes.append(ClassRecord(name, num_objects, num_detections, aps))
            record_evaluation(
                self._output_dir, self._dataset_name, "coco", ">=", results, classes,
                detections, truth,
            )  # fmt: skip


def _detections(predictions: Sequence[Mapping[str, Any]], truth: GroundTruth) -> Detections:
    """Return what the evaluator collected, best score first."""
    index_of = {image_id: index for index, image_id in enumerate(truth.image_ids)}
    rows = [
        (index_of[str(entry["image_id"])], entry["category_id"], entry["score"], *entry["bbox"])
        for prediction in predictions
        for entry in prediction.get("instances", ())
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    boxes = table[:, 3:].copy()  # XYWH
    boxes[:, 2:] += boxes[:, :2]
    images, classes = (table[:, i].astype(np.int64) for i in (0, 1))
    return Detections(boxes, table[:, 2], classes, images).best_first()


def _has_fast_cocoeval() -> bool:
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError:
        return False
    return True

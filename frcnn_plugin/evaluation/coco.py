"""COCO's evaluation, which also leaves what the training report needs, and doubts odd results."""

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
        self._coco_eval: Any = None

    def _eval_predictions(self, predictions: Any, img_ids: Any = None) -> None:
        # Read first: Detectron2 changes the numbers of the classes in place.
        truth = load_ground_truth(self._dataset_name)
        detections = _detections(predictions, truth)
        self._coco_eval = None
        super()._eval_predictions(predictions, img_ids)
        ap50 = self._results.get("bbox", {}).get("AP50", float("nan"))
        names = list(self._metadata.thing_classes)
        problem = diagnose(detections.scores, len(names), ap50)
        if problem:
            logger.warning("%s: %s", self._dataset_name, problem)
        if self._coco_eval is not None and self._output_dir:  # else no detections, or no objects
            record_evaluation(
                self._output_dir, self._dataset_name, "coco", ">=", self._results["bbox"],
                _class_records(self._coco_eval, names, detections, truth), detections, truth,
            )  # fmt: skip

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> Any:
        if iou_type == "bbox":
            self._coco_eval = coco_eval
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


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


def _class_records(
    coco_eval: Any, names: Sequence[str], detections: Detections, truth: GroundTruth
) -> list[ClassRecord]:
    thresholds = coco_eval.params.recThrs
    records = []
    for index, name in enumerate(names):
        # IoU 0.5, all recall thresholds, all areas, the largest number of detections.
        precision = coco_eval.eval["precision"][0, :, index, 0, -1]
        defined = bool((precision > -1).all())  # no objects: -1
        reached = precision > 0
        records.append(
            ClassRecord(
                name=name,
                num_objects=int(((truth.classes == index) & ~truth.ignored).sum()),
                num_detections=int((detections.classes == index).sum()),
                ap50={"coco": float(100 * precision.mean())} if defined else {},
                recall=thresholds[reached].tolist() if defined else [],
                precision=precision[reached].tolist() if defined else [],
            )
        )
    return records

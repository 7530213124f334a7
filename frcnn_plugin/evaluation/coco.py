"""COCO's evaluation, which also leaves what the training report needs, and doubts odd results."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import COCOEvaluator

from .diagnosis import diagnose_misses, diagnose_scores
from .examples import MIN_SCORE, pick_examples
from .ground_truth import GroundTruth, load_ground_truth
from .record import EVALUATION_FILE, ClassRecord, EvaluationRecord
from .voc_results import Detections

logger = logging.getLogger(__name__)


class RecordingCOCOEvaluator(COCOEvaluator):
    """The host's evaluator; writes ``evaluation.json`` beside its other files.

    One warning says so if the detections look like those of an untrained network.
    """

    def __init__(self, dataset_name: str, **options: Any) -> None:
        """As the host's; where its compiled evaluation is missing, pycocotools does it."""
        super().__init__(dataset_name, **{"use_fast_impl": _has_fast_cocoeval(), **options})
        self._dataset_name = dataset_name
        self._coco_eval: Any = None

    def _eval_predictions(self, predictions: Any, img_ids: Any = None) -> None:
        # Read first: the host changes the numbers of the classes in place.
        truth = load_ground_truth(self._dataset_name)
        detections = _detections(predictions, truth)
        self._coco_eval = None
        super()._eval_predictions(predictions, img_ids)
        ap50 = self._results.get("bbox", {}).get("AP50", float("nan"))
        problem = diagnose_scores(
            detections.scores, len(self._metadata.thing_classes)
        ) or diagnose_misses(detections.scores, ap50)
        if problem:
            logger.warning("%s: %s", self._dataset_name, problem)
        if self._coco_eval is None or not self._output_dir:  # no detections, or no annotations
            return
        names = list(self._metadata.thing_classes)
        best, worst = pick_examples(detections, truth, names, ">=")
        EvaluationRecord(
            dataset=self._dataset_name,
            metric="coco",
            match=">=",
            num_images=len(truth.image_ids),
            results=dict(self._results["bbox"]),
            classes=_class_records(self._coco_eval, names, detections, truth),
            min_score=MIN_SCORE,
            best=best,
            worst=worst,
        ).save(os.path.join(self._output_dir, EVALUATION_FILE))

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> Any:
        if iou_type == "bbox":
            self._coco_eval = coco_eval
        return super()._derive_coco_results(coco_eval, iou_type, class_names)


def _detections(predictions: Sequence[Mapping[str, Any]], truth: GroundTruth) -> Detections:
    """What the host collected, best score first."""
    index_of = {image_id: index for index, image_id in enumerate(truth.image_ids)}
    rows = [
        (index_of[str(entry["image_id"])], entry["category_id"], entry["score"], *entry["bbox"])
        for prediction in predictions
        for entry in prediction.get("instances", ())
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 7)
    table = table[np.argsort(-table[:, 2], kind="stable")]
    boxes = table[:, 3:].copy()  # XYWH
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        boxes, table[:, 2], table[:, 1].astype(np.int64), table[:, 0].astype(np.int64)
    )


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

"""VOC evaluation of any data set: per-class AP, 11-point and area, in one or several processes.

Differs from Detectron2's PascalVOCDetectionEvaluator, which repeats py-faster-rcnn (point 52 of
docs/faithfulness.md): scores stay exact instead of being rounded to three digits, equal scores
keep their order, the IoU must reach the threshold (">=", as in the devkit) unless ">" is asked
for, and classes without objects are left out of the mean.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..errors import UserError
from .average_precision import MatchRule, Metric
from .diagnosis import diagnose_misses, diagnose_scores
from .examples import MIN_SCORE, pick_examples
from .ground_truth import GroundTruth, load_ground_truth
from .record import EVALUATION_FILE, EvaluationRecord
from .voc_report import format_report, write_submission
from .voc_results import METRICS, Detections, class_records, evaluate_class, summarize

logger = logging.getLogger(__name__)

_Prediction = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (n, 4), scores (n,), classes (n,)


class VOCEvaluator(DatasetEvaluator):
    """Average precision of detections, by the rules of the PASCAL VOC devkit."""

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        distributed: bool = True,
        match: MatchRule = ">=",
        metric: Literal["auto", "11point", "area"] = "auto",
    ) -> None:
        """Creates the evaluator; the ground truth is loaded when it is needed.

        Args:
            dataset_name: any registered name whose metadata has `thing_classes`.
            output_dir: if given, ``comp4_det_<split>_<class>.txt`` files in the VOC server's
                format are written there, and ``evaluation.json`` for the training report; give
                each data set its own folder.
            distributed: collect the predictions of all processes; the main one evaluates.
            match: ">=" (devkit, MATLAB) or ">" (py-faster-rcnn).
            metric: the headline: "11point", "area", or "auto" = by the metadata's year, area from
                2010 on, else 11-point. Both are always printed.

        Raises:
            UserError: for an unknown `match` or `metric`, or a set without class names.
        """
        metadata = MetadataCatalog.get(dataset_name)
        if match not in (">=", ">"):
            raise UserError(f"match must be '>=' or '>', got {match!r}")
        if metric not in ("auto", *METRICS):
            raise UserError(f"metric must be 'auto', '11point' or 'area', got {metric!r}")
        if metadata.get("thing_classes") is None:
            raise UserError(
                f"data set '{dataset_name}' has no class names: set "
                f"MetadataCatalog.get('{dataset_name}').thing_classes"
            )
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._distributed = distributed
        self._match = match
        self._metric: Metric
        if metric == "auto":
            self._metric = "area" if (metadata.get("year") or 2007) >= 2010 else "11point"
        else:
            self._metric = metric
        self._class_names: list[str] = list(metadata.thing_classes)
        self._split: str = metadata.get("split") or dataset_name
        self.reset()

    def reset(self) -> None:
        """Forgets all predictions."""
        self._predictions: dict[str, _Prediction] = {}

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Takes in the detections of some images.

        Args:
            inputs: dicts with `image_id`.
            outputs: dicts with `instances` (`pred_boxes` in image pixels, continuous XYXY;
                `scores`; `pred_classes`). An image that comes a second time, as samplers do to
                fill a batch, is ignored.
        """
        for item, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            boxes = instances.pred_boxes.tensor.detach().to("cpu", torch.float64).numpy()
            scores = instances.scores.detach().to("cpu", torch.float64).numpy()
            classes = instances.pred_classes.detach().to("cpu", torch.int64).numpy()
            self._predictions.setdefault(str(item["image_id"]), (boxes, scores, classes))

    def evaluate(self) -> "OrderedDict[str, dict[str, float]]":
        """Matches, prints and, if asked to, writes the detections.

        Returns:
            ``{"bbox": {"AP", "AP50", "AP75", "AP50-11point", "AP50-area", "AP50/<class>", ...}}``
            in percent, all but the two named ones in the headline metric; AP is the mean over IoU
            .50:.05:.95. Empty on processes other than the main one, and on a set without ground
            truth.

        Raises:
            UserError: if predictions do not belong to this data set or its classes.
        """
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(predictions, dst=0)
            if not comm.is_main_process():
                return OrderedDict()
            predictions = {}
            for part in gathered:
                for image_id, prediction in part.items():
                    predictions.setdefault(image_id, prediction)
        truth = load_ground_truth(self._dataset_name)
        detections = self._collect(predictions, truth)
        if self._output_dir:
            write_submission(self._output_dir, self._split, self._class_names, truth, detections)
        diagnosis = diagnose_scores(detections.scores, len(self._class_names))
        if diagnosis:
            logger.warning("%s: %s", self._dataset_name, diagnosis)
        if truth.ignored.all():  # also true of no objects at all
            logger.warning(
                "%s: no ground truth (difficult objects not counted) in %d images: average "
                "precision is not defined; nothing is reported",
                self._dataset_name, len(truth.image_ids),
            )  # fmt: skip
            return OrderedDict()
        per_class = [
            evaluate_class(detections, truth, index, self._match)
            for index in range(len(self._class_names))
        ]
        title = (
            f"{self._dataset_name}: headline metric {self._metric}, match at IoU {self._match} "
            f"0.5, difficult and crowd objects ignored; {len(truth.image_ids)} images, "
            f"{int((~truth.ignored).sum())} objects (+ {int(truth.ignored.sum())} ignored), "
            f"{len(detections.scores)} detections"
        )
        results = summarize(per_class, self._class_names, self._metric)
        misses = None if diagnosis else diagnose_misses(detections.scores, results["AP50"])
        if misses:
            logger.warning("%s: %s", self._dataset_name, misses)
        logger.info("%s", format_report(title, self._class_names, per_class, self._metric, results))
        if self._output_dir:
            best, worst = pick_examples(detections, truth, self._class_names, self._match)
            EvaluationRecord(
                dataset=self._dataset_name,
                metric=self._metric,
                match=self._match,
                num_images=len(truth.image_ids),
                results=results,
                classes=class_records(per_class, self._class_names),
                min_score=MIN_SCORE,
                best=best,
                worst=worst,
            ).save(os.path.join(self._output_dir, EVALUATION_FILE))
        return OrderedDict(bbox=results)

    def _collect(self, predictions: Mapping[str, _Prediction], truth: GroundTruth) -> Detections:
        """All detections in descending order of score."""
        index_of = {image_id: index for index, image_id in enumerate(truth.image_ids)}
        unknown = [image_id for image_id in predictions if image_id not in index_of]
        if unknown:
            raise UserError(
                f"{len(unknown)} images with predictions (first: '{unknown[0]}') are not in data "
                f"set '{self._dataset_name}': the loader reads another set"
            )
        absent = len(index_of) - len(predictions)
        if absent:
            logger.warning(
                "%s: %d of %d images were not processed; they count as without detections",
                self._dataset_name, absent, len(index_of),
            )  # fmt: skip
        # In the order of the data set, so that the outcome does not depend on who processed what.
        ordered = sorted(predictions, key=index_of.__getitem__)
        parts = [predictions[image_id] for image_id in ordered]
        boxes = np.concatenate([np.zeros((0, 4)), *(part[0] for part in parts)])
        scores = np.concatenate([np.zeros(0), *(part[1] for part in parts)])
        classes = np.concatenate([np.zeros(0, dtype=np.int64), *(part[2] for part in parts)])
        images = np.repeat(
            np.array([index_of[image_id] for image_id in ordered], dtype=np.int64),
            np.array([len(part[1]) for part in parts], dtype=np.int64),
        )
        finite = np.isfinite(scores) & np.isfinite(boxes).all(axis=1)
        if not finite.all():
            logger.warning(
                "%s: %d of %d detections have a score or box that is nan or infinite; they are "
                "left out (diverged weights?)",
                self._dataset_name, int((~finite).sum()), len(finite),
            )  # fmt: skip
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(self._class_names):
            wrong = classes.max() if classes.min() >= 0 else classes.min()
            raise UserError(
                f"a detection has class {wrong} but data set '{self._dataset_name}' has "
                f"{len(self._class_names)} classes. Type: MODEL.ROI_HEADS.NUM_CLASSES "
                f"{len(self._class_names)}"
            )
        order = np.flatnonzero(finite)
        order = order[np.argsort(-scores[order], kind="stable")]
        return Detections(boxes[order], scores[order], classes[order], images[order])

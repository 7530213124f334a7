"""VOC evaluation of any data set: per-class AP, 11-point and area, in one or several processes.

Differs from Detectron2's PascalVOCDetectionEvaluator, which repeats py-faster-rcnn (point 52 of
docs/faithfulness.md): scores stay exact instead of being rounded to three digits, equal scores
keep their order, the IoU must reach the threshold (">=", as in the devkit) unless ">" is asked
for, and classes without objects are left out of the mean (py-faster-rcnn's 11-point AP of
such a class is 0, and counts).
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..atomic_files import optional_output, safe_file_name, write_text
from ..errors import UserError, check_choice
from .average_precision import (
    FloatArray,
    MatchRule,
    Metric,
    average_precision,
    match_detections,
    precision_recall,
)
from .detections import Detections, diagnose
from .ground_truth import GroundTruth, absent_images, gather_by_image, load_ground_truth
from .record import ClassRecord, record_evaluation, write_coco_results

logger = logging.getLogger(__name__)

_Prediction = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes (n, 4), scores (n,), classes (n,)
_APs = dict[Metric, FloatArray]  # of one class, in [0, 1], (T,) over the IoU thresholds

_METRICS: tuple[Metric, ...] = get_args(Metric)
METRICS = ("auto", *_METRICS)  # what TEST.VOC_METRIC may be
MATCHES = (">=", ">")  # what TEST.VOC_MATCH may be
# As Detectron2 writes them: 55 / 100, not 0.5 + 0.05.
_IOU_THRESHOLDS = np.array([percent / 100.0 for percent in range(50, 100, 5)])


class VOCEvaluator(DatasetEvaluator):
    """Average precision of detections, by the rules of the PASCAL VOC devkit."""

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        match: MatchRule = ">=",
        metric: Literal["auto", "11point", "area"] = "auto",
        per_class: int = 0,
    ) -> None:
        """Create the evaluator; the ground truth is loaded when it is needed.

        Args:
            dataset_name: any registered name whose metadata has `thing_classes`.
            output_dir: if given, ``comp4_det_<split>_<class>.txt`` files in the VOC server's
                format are written there (of a set without annotations as
                ``results/VOC<year>/Main/comp4_...``, ready to be packed),
                ``coco_instances_results.json`` in COCO's, and ``evaluation.json`` for the training
                report; give each data set its own folder.
            match: ">=" (devkit, MATLAB) or ">" (py-faster-rcnn).
            metric: the headline: "11point", "area", or "auto" = 11-point if the metadata's year is
                one in which VOC used it (2007 to 2009), else area. Both are always printed.
            per_class: see ``TEST.DETECTIONS_PER_CLASS``.

        Raises:
            UserError: for an unknown `match` or `metric`, or a set without class names.
        """
        metadata = MetadataCatalog.get(dataset_name)
        check_choice("match", match, MATCHES)
        check_choice("metric", metric, METRICS)
        if metadata.get("thing_classes") is None:
            raise UserError(
                f"data set '{dataset_name}' has no class names: set "
                f"MetadataCatalog.get('{dataset_name}').thing_classes"
            )
        self._dataset_name = dataset_name
        self._output_dir = output_dir
        self._match = match
        self._per_class = per_class
        by_year: Metric = "11point" if (metadata.get("year") or 2010) < 2010 else "area"
        self._metric: Metric = by_year if metric == "auto" else metric
        self._class_names: list[str] = list(metadata.thing_classes)
        self._split: str = metadata.get("split") or dataset_name
        self._annotated: bool = metadata.get("annotated", True)
        self._year: int | None = metadata.get("year")
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._predictions: dict[str, _Prediction] = {}

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take in the `instances` of some images; boxes are continuous XYXY, image pixels.

        An image that comes a second time, because samplers repeat some to fill a batch, is ignored.
        """
        for item, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            boxes = instances.pred_boxes.tensor.detach().to("cpu", torch.float64).numpy()
            scores = instances.scores.detach().to("cpu", torch.float64).numpy()
            classes = instances.pred_classes.detach().to("cpu", torch.int64).numpy()
            self._predictions.setdefault(str(item["image_id"]), (boxes, scores, classes))

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Match, print and, if asked to, write the detections.

        Returns:
            ``{"bbox": {"AP", "AP50", "AP75", "AP50-11point", "AP50-area", "AP50/<class>", ...}}``
            in percent, all but the two named ones in the headline metric; AP is the mean over IoU
            .50:.05:.95. Empty on processes other than the main one, and on a set without ground
            truth.

        Raises:
            UserError: if predictions do not belong to this data set or its classes.
        """
        predictions = gather_by_image(self._predictions)
        if not comm.is_main_process():
            return OrderedDict()
        truth = load_ground_truth(self._dataset_name)
        detections = self._collect(predictions, truth)
        if self._output_dir:
            folder = Path(self._output_dir)
            if not self._annotated:
                folder = folder / "results" / f"VOC{self._year or ''}" / "Main"
            with optional_output(f"{folder}/comp4_det_{self._split}_*.txt"):
                write_submission(folder, self._split, self._class_names, truth, detections)
            write_coco_results(
                self._output_dir, self._dataset_name, _coco_entries(detections, truth)
            )
        if not self._annotated:
            logger.info("%s", self._what_now(len(detections.scores)))
            return OrderedDict()
        per_class = [
            evaluate_class(detections, truth, index, name, self._match)
            for index, name in enumerate(self._class_names)
        ]
        defined = not truth.ignored.all()  # also false without any object
        results = summarize(per_class, self._metric) if defined else {}
        problem = diagnose(detections.scores, len(self._class_names), results.get("AP50"))
        if problem:
            logger.warning("%s: %s", self._dataset_name, problem)
        if not defined:
            logger.warning(
                "%s: no ground truth (difficult objects not counted) in %d images: average "
                "precision is not defined; nothing is reported",
                self._dataset_name, len(truth.image_ids),
            )  # fmt: skip
            return OrderedDict()
        title = (
            f"{self._dataset_name}: headline metric {self._metric}, match at IoU {self._match} "
            f"0.5, difficult and crowd objects ignored; {len(truth.image_ids)} images, "
            f"{int((~truth.ignored).sum())} objects (+ {int(truth.ignored.sum())} ignored), "
            f"{len(detections.scores)} detections"
        )
        classes = [record for record, _ in per_class]
        logger.info("%s", format_report(title, classes, self._metric, results))
        if self._output_dir:
            record_evaluation(
                self._output_dir, self._dataset_name, self._metric, self._match, results, classes,
                detections, truth,
            )  # fmt: skip
        return OrderedDict(bbox=results)

    def _what_now(self, number: int) -> str:
        """Say what to do with the detections of a set without annotations."""
        text = f"{self._dataset_name}: {number} detections; the set has no annotations, so no AP"
        if not self._output_dir:
            return text
        archive = f"{self._output_dir}/results.tgz"
        return f"{text}. To submit them: tar -C {self._output_dir} -czf {archive} results"

    def _collect(self, predictions: Mapping[str, _Prediction], truth: GroundTruth) -> Detections:
        """Return all detections in descending order of score."""
        index_of = {image_id: index for index, image_id in enumerate(truth.image_ids)}
        absent = absent_images(predictions, truth.image_ids, self._dataset_name)
        if absent:
            logger.warning(
                "%s: %d of %d images were not processed; they count as without detections",
                self._dataset_name, len(absent), len(index_of),
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
        found = Detections(boxes, scores, classes, images).select(finite).best_first()
        if self._per_class:
            found = found.best_of_classes(self._per_class * len(index_of))
        return found


def evaluate_class(
    detections: Detections, truth: GroundTruth, index: int, name: str, match: MatchRule
) -> tuple[ClassRecord, _APs | None]:
    """Return the record of a class and its APs; None for these if it has no objects that count."""
    mine = detections.select(detections.classes == index)
    gt = truth.classes == index
    num_objects = int((gt & ~truth.ignored).sum())
    if num_objects == 0:
        return ClassRecord(name, 0, len(mine.scores), {}), None
    true_positive, ignored = match_detections(
        mine.boxes, mine.images, truth.boxes[gt], truth.images[gt], truth.ignored[gt],
        _IOU_THRESHOLDS, match,
    )  # fmt: skip
    curves = [
        precision_recall(hit, skip, num_objects)
        for hit, skip in zip(true_positive, ignored, strict=True)
    ]
    aps: _APs = {
        metric: np.array([average_precision(*curve, metric) for curve in curves])
        for metric in _METRICS
    }
    ap50 = {f"AP50-{metric}": float(100 * values[0]) for metric, values in aps.items()}
    return ClassRecord(name, num_objects, len(mine.scores), ap50), aps


def summarize(
    per_class: Sequence[tuple[ClassRecord, _APs | None]], metric: Metric
) -> dict[str, float]:
    """Return what `VOCEvaluator.evaluate` documents; at least one class has objects."""
    defined = [aps for _, aps in per_class if aps is not None]
    means = {name: 100 * np.mean([aps[name] for aps in defined], axis=0) for name in _METRICS}
    results = {
        "AP": float(means[metric].mean()),
        "AP50": float(means[metric][0]),
        "AP75": float(means[metric][5]),
    }
    results |= {f"AP50-{name}": float(means[name][0]) for name in _METRICS}
    results |= {f"AP50/{c.name}": c.aps[f"AP50-{metric}"] for c, _ in per_class if c.aps}
    return results


def format_report(
    title: str, classes: Sequence[ClassRecord], metric: Metric, results: Mapping[str, float]
) -> str:
    """Lay out the table: the settings (`title`), a line per class, the means."""
    width = max(len("class"), *(len(entry.name) for entry in classes))
    row = f"{{:<{width}}}  {{:>7}}  {{:>10}}  {{:>13}}  {{:>9}}"
    lines = [title, row.format("class", "objects", "detections", "AP50 11-point", "AP50 area")]
    for entry in classes:
        cells = [f"{entry.aps[f'AP50-{key}']:.2f}" if entry.aps else "-" for key in _METRICS]
        lines.append(row.format(entry.name, entry.num_objects, entry.num_detections, *cells))
    objects = sum(entry.num_objects for entry in classes)
    detections = sum(entry.num_detections for entry in classes)
    means = [f"{results[f'AP50-{key}']:.2f}" for key in _METRICS]
    lines.append(row.format("mean", objects, detections, *means))
    absent = sum(not entry.aps for entry in classes)
    if absent:
        lines.append(f"{absent} classes have no objects here ('-') and are left out of the means")
    lines.append(
        f"mean AP50 {results['AP50']:.2f}, AP75 {results['AP75']:.2f}, AP at IoU .50:.95 "
        f"{results['AP']:.2f} ({metric}; all in percent)"
    )
    return "\n".join(lines)


def write_submission(
    output_dir: str | os.PathLike[str],
    split: str,
    class_names: Sequence[str],
    truth: GroundTruth,
    detections: Detections,
) -> None:
    """Write a ``comp4_det_<split>_<class>.txt`` file per class, as the VOC server takes them.

    A split or class whose name cannot be part of a file's has another; see `safe_file_name`.
    One line per detection: image id, score, and the box with 1-based inclusive coordinates.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for index, class_name in enumerate(class_names):
        lines = []
        for i in np.flatnonzero(detections.classes == index):
            x1, y1, x2, y2 = detections.boxes[i]
            lines.append(
                f"{truth.image_ids[detections.images[i]]} {detections.scores[i]:.8f} "
                f"{x1 + 1:.3f} {y1 + 1:.3f} {x2:.3f} {y2:.3f}\n"
            )
        path = folder / f"comp4_det_{safe_file_name(split)}_{safe_file_name(class_name)}.txt"
        write_text(path, "".join(lines))


def _coco_entries(detections: Detections, truth: GroundTruth) -> Iterator[dict[str, Any]]:
    """Give the detections as entries for `write_coco_results`."""
    sizes = detections.boxes[:, 2:] - detections.boxes[:, :2]
    boxes = np.concatenate([detections.boxes[:, :2], sizes], axis=1).tolist()
    for index, box in enumerate(boxes):
        yield {
            "image_id": truth.original_ids[detections.images[index]],
            "category_id": int(detections.classes[index]),
            "bbox": box,
            "score": float(detections.scores[index]),
        }

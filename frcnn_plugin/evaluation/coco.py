"""COCO's evaluation, which also writes what the training report needs and doubts odd results."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import COCOEvaluator

from ..atomic_files import optional_output, replacing, safe_file_name, write_json
from ..data.datasets.coco import coco_source
from ..data.datasets.coco_files import complete_for_metric
from ..host import coco_content, metadata_replaced, set_coco_content
from .detections import Detections, diagnose
from .ground_truth import GroundTruth, load_ground_truth
from .record import ClassRecord, record_evaluation, write_coco_results

logger = logging.getLogger(__name__)


class RecordingCOCOEvaluator(COCOEvaluator):
    """Detectron2's evaluator; writes ``evaluation.json`` beside its other files.

    COCO's metric sees the annotations numbered from 1 (it takes the number 0 for "not matched") and
    with the fields that it needs. No file that cannot be written ends the evaluation. One warning
    says so if the detections look like those of an untrained network.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, **options: Any) -> None:
        """Take Detectron2's arguments."""
        metadata = MetadataCatalog.get(dataset_name)
        source = coco_source(dataset_name)
        if source is None and metadata.get("json_file"):
            super().__init__(dataset_name, **options)
            content = coco_content(self)
            complete_for_metric(content.get("annotations", ()))
        else:
            # Detectron2 reads an empty file, and is then given what our reader made of the set.
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
                file.write('{"annotations": []}')
                file.flush()
                with metadata_replaced(dataset_name, json_file=file.name):
                    super().__init__(dataset_name, **options)
            content = source.read() if source else convert_to_coco_dict(dataset_name)
        set_coco_content(self, content)
        if source is None and not metadata.get("json_file") and output_dir:
            path = Path(output_dir, f"{safe_file_name(dataset_name)}_coco_format.json")
            with optional_output(path):
                write_json(path, content)
        self._dataset_name = dataset_name
        # Detectron2's own writing, which is left out without its _output_dir, would end the run.
        self._folder = output_dir

    def _eval_predictions(self, predictions: Any, img_ids: Any = None) -> None:
        # Read first: Detectron2 changes the numbers of the classes in place.
        truth = load_ground_truth(self._dataset_name)
        detections = _detections(predictions, truth)
        if self._folder:
            self._write(self._folder, predictions)
        super()._eval_predictions(predictions, img_ids)
        results = self._results.get("bbox", {})
        ap50 = results.get("AP50", float("nan"))
        names = list(self._metadata.thing_classes)
        problem = diagnose(detections.scores, len(names), ap50)
        if problem:
            logger.warning("%s: %s", self._dataset_name, problem)
        if self._folder and np.isfinite(ap50):  # else no detections, or no objects
            classes = []
            for index, name in enumerate(names):
                ap = results.get(f"AP-{name}", results["AP"])  # not listed for a single class
                num_objects = int(((truth.classes == index) & ~truth.ignored).sum())
                num_detections = int((detections.classes == index).sum())
                aps = {"AP": ap} if np.isfinite(ap) else {}
                classes.append(ClassRecord(name, num_objects, num_detections, aps))
            record_evaluation(
                self._folder, self._dataset_name, "coco", ">=", results, classes,
                detections, truth,
            )  # fmt: skip

    def _write(self, folder: str, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Write what Detectron2 would: the predictions, and the detections in COCO's format."""
        path = Path(folder, "instances_predictions.pth")
        with optional_output(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()  # torch hides what the disk says behind errors of its own
            torch.save(predictions, buffer)
            with replacing(path) as temporary:
                temporary.write_bytes(buffer.getbuffer())
        write_coco_results(
            folder, self._dataset_name, chain(*(entry["instances"] for entry in predictions))
        )


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

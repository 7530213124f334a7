"""From a config and an image to a picture of one step of the method.

    pictures = Pictures(cfg, class_names)
    for suffix, canvas in pictures.draw("matches", record):
        canvas.save(f"matches{suffix}.png")

A record is an entry of a data set in Detectron2's format; ``{"file_name": ..., "image_id": ...}``
is enough for what needs no ground truth. `tools/visualize.py` is the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper

from ..checkpoint.checkpointer import names_detector
from ..data.loading.resize import build_mapper
from ..data.loading.train_loader import MirroringMapper
from ..data.proposals.checks import Proposals
from ..errors import UserError
from ..evaluation.ground_truth import GroundTruth, from_dicts
from ..evaluation.proposals.recall import measure_recall
from . import Canvas, Objects, count_of, draw_data, draw_detections, draw_proposals
from .inspected_image import InspectedImage
from .inspection import BoxRules, detect, load_model, propose, with_training_proposals
from .training_pictures import (
    Options,
    anchors_picture,
    matches_picture,
    roi_cells_pictures,
    sampled_picture,
)

__all__ = ["MODES", "NEEDS_TRUTH", "Options", "Pictures", "is_of_training"]

Drawn = list[tuple[str, Canvas]]

# Of each mode: whether it needs ground truth, and whether it looks at training (its image size and
# its data set) or at testing.
NEEDS_TRUTH = {
    "data": True, "anchors": False, "matches": True, "sampled": True, "proposals": False,
    "roi-cells": False, "detections": False,
}  # fmt: skip
MODES = tuple(NEEDS_TRUTH)
_TESTING = ("proposals", "detections")
_ADVICE = "Add MODEL.WEIGHTS path/to/model_final.pth, the weights of a trained detector"


_MOST_PROPOSALS = 20
_LOWEST_SCORE = 0.5  # of detections


def is_of_training(mode: str) -> bool:
    """Whether a mode shows training rather than testing."""
    return mode not in _TESTING


class Pictures:
    """Draws; what is expensive is made once, when it is first needed."""

    def __init__(
        self, cfg: CfgNode, class_names: Sequence[str] = (), options: Options | None = None
    ) -> None:
        """Nothing is read yet.

        Args:
            cfg: config of `setup_cfg`.
            class_names: names by class index; classes beyond them are shown as numbers.
            options: what may be chosen.
        """
        self.cfg = cfg
        missing = range(len(class_names), cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        self.class_names = [*class_names, *(f"class {index}" for index in missing)]
        self.options = options or Options()

    def draw(self, mode: str, record: dict[str, Any]) -> Drawn:
        """Draw one image.

        Args:
            mode: one of `MODES`.
            record: the image, in Detectron2's format.

        Returns:
            pictures, each with what to add to the file name to tell them apart.

        Raises:
            UserError: an unreadable image, no annotations where they are needed, no weights where
                they are needed, a config that the mode cannot draw.
        """
        if NEEDS_TRUTH[mode] and "annotations" not in record:
            raise UserError(
                f"{record['file_name']} has no annotations, which mode {mode} draws: name a data "
                f"set that has them (--dataset)"
            )
        if self.cfg.MODEL.LOAD_PROPOSALS and (mode in _TESTING or self._samples_rois(mode)):
            raise UserError(
                f"mode {mode} draws what the RPN proposes, but this config has proposals from "
                f"files: add MODEL.LOAD_PROPOSALS False MODEL.PAPER_RCNN.PHASE joint, with weights "
                f"of a whole detector"
            )
        mapper = self._training_mapper if is_of_training(mode) else self._test_mapper
        image = InspectedImage(record, mapper)
        if mode == "data":
            return [("", self._data(image))]
        if mode == "anchors":
            return [("", anchors_picture(self._rules, image, self.options))]
        if mode == "matches":
            return [("", matches_picture(self._rules, image, self._trained_objects(image)))]
        if mode == "sampled":
            return [("", self._sampled(image))]
        if mode == "roi-cells":
            drawn = roi_cells_pictures(self._rules, image, self.class_names, self.options)
            return [(f"_{number}", canvas) for number, canvas in enumerate(drawn, start=1)]
        return [("", self._proposals(image) if mode == "proposals" else self._detections(image))]

    def _samples_rois(self, mode: str) -> bool:
        return mode == "sampled" and names_detector(self.cfg)

    @cached_property
    def _training_mapper(self) -> MirroringMapper:
        return MirroringMapper(self.cfg, is_train=True)  # mirrors nothing that is not marked

    @cached_property
    def _test_mapper(self) -> DatasetMapper:
        return build_mapper(self.cfg, is_train=False)

    @cached_property
    def _rules(self) -> BoxRules:
        return BoxRules(self.cfg)

    @cached_property
    def _proposing_model(self) -> Any:
        return load_model(self.cfg, _ADVICE, unused="roi_heads")

    @cached_property
    def _sampling_model(self) -> Any:
        if not names_detector(self.cfg):
            return None
        advice = f"{_ADVICE}, or MODEL.WEIGHTS '' to see the anchors alone"
        return load_model(with_training_proposals(self.cfg), advice, unused="roi_heads")

    @cached_property
    def _detecting_model(self) -> Any:
        return load_model(self.cfg, _ADVICE)

    def _truth(self, record: dict[str, Any]) -> tuple[GroundTruth, Objects]:
        truth = from_dicts([record])
        names = [self.class_names[index] for index in truth.classes]
        return truth, Objects(truth.boxes, names, truth.ignored)

    def _trained_objects(self, image: InspectedImage) -> Objects:
        """Those that training sees, then those that it leaves out."""
        instances = image.item["instances"]
        _, everything = self._truth(image.record)
        out = [bool(obj.get("iscrowd", 0)) for obj in image.record["annotations"]]
        names = [self.class_names[index] for index in instances.gt_classes.tolist()]
        return Objects(
            np.vstack([image.to_image(instances.gt_boxes.tensor), everything.boxes[out]]),
            [*names, *np.array(everything.names, dtype=object)[out]],
            np.array([False] * len(names) + [True] * sum(out), dtype=bool),
        )

    def _data(self, image: InspectedImage) -> Canvas:
        _, objects = self._truth(image.record)
        notes = ["labels: number, class, width x height in pixels"] if objects.names else []
        return draw_data(image.bgr, objects, image.name, notes)

    def _sampled(self, image: InspectedImage) -> Canvas:
        objects, seed = self._trained_objects(image), self.options.seed
        return sampled_picture(
            self._rules, image, objects, self.class_names, seed, self._sampling_model
        )

    def _proposals(self, image: InspectedImage) -> Canvas:
        proposals = propose(self._proposing_model, image.item)
        logits = proposals.objectness_logits.double()
        boxes = proposals.proposal_boxes.tensor.double().numpy()
        scores = logits.sigmoid().numpy()
        lowest = self.options.score or 0.0
        count = min(int((scores >= lowest).sum()), self.options.topk or _MOST_PROPOSALS)
        objects, recall = None, {}
        if "annotations" in image.record:
            truth, objects = self._truth(image.record)
            found = Proposals([image.name], [boxes], [logits.numpy()])
            recall = _recall_in_words(found, truth, count)
        return draw_proposals(
            image.bgr, boxes[:count], scores[:count], len(boxes), objects, recall, image.name,
            ["labels: objectness score" + (f", from {lowest:g} on" if lowest else "")],
        )  # fmt: skip

    def _detections(self, image: InspectedImage) -> Canvas:
        instances = detect(self._detecting_model, image.item)
        lowest = _LOWEST_SCORE if self.options.score is None else self.options.score
        instances = instances[instances.scores >= lowest][: self.options.topk]
        objects = self._truth(image.record)[1] if "annotations" in image.record else None
        rule = "" if objects is None else f"; right: IoU {self.cfg.TEST.VOC_MATCH} 0.5, same class"
        return draw_detections(
            image.bgr,
            instances.pred_boxes.tensor.double().numpy(),
            [self.class_names[index] for index in instances.pred_classes.tolist()],
            instances.scores.double().numpy(),
            objects,
            f"detections: {image.name}",
            [f"scores from {lowest:g} on{rule}"],
            match=self.cfg.TEST.VOC_MATCH,
        )


def _recall_in_words(proposals: Proposals, truth: GroundTruth, count: int) -> dict[str, str]:
    total = len(proposals.boxes[0])
    counts = sorted({count, total})
    curves = measure_recall(proposals, truth, counts, "image")
    if curves is None:
        return {"best": "not defined, there is no object that counts"}
    words = {}
    for number in counts:
        found = {iou: round(curves.at(number, iou) * curves.num_objects) for iou in (0.5, 0.7)}
        words[f"best {number}" if number < total else f"{total} proposals"] = (
            f"{found[0.5]} of {count_of(curves.num_objects, 'object')} at IoU .5, "
            f"{found[0.7]} at .7"
        )
    return words

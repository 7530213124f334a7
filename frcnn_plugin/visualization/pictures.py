"""From a config and an image to a picture of one part of the method.

    pictures = Pictures(cfg, class_names)
    for suffix, canvas in pictures.draw("matches", record):
        canvas.save(f"matches{suffix}.png")

A record is an entry of a data set in Detectron2's format; ``{"file_name": ..., "image_id": ...}``
is enough for what needs no ground truth. ``frcnn visualize`` is the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import GenericMask

from ..checkpoint.checkpointer import load_model
from ..data.loading.mappers import build_mapper
from ..data.proposals.files import Proposals
from ..errors import UserError
from ..evaluation.detections import Detections, judge_detections
from ..evaluation.ground_truth import GroundTruth, from_dicts
from ..evaluation.proposals.recall import measure_recall
from ..modeling import clip_inclusive
from ..modeling.anchor_generator import CaffeAnchorGenerator
from .drawings.anchors import Sample, draw_anchors, draw_matches, draw_samples, explain_matches
from .drawings.canvas import Canvas
from .drawings.detections import draw_detections
from .drawings.maps import draw_funnel, draw_losses, draw_maps
from .drawings.objects import NO_OBJECTS, Objects, count_of, draw_data
from .drawings.palette import ImageArray, paint_masks
from .drawings.proposals import draw_proposals
from .drawings.roi_cells import draw_roi_cells, pooled_cells
from .inspection import (
    BoxRules,
    InspectedImage,
    detect,
    has_rpn_weights,
    propose,
    sample_rois,
    with_training_proposals,
)
from .measure import ForwardPass, TrainingStep, forward_pass, training_step

MODES = (
    "data", "anchors", "matches", "sampled", "losses", "layers", "funnel", "proposals",
    "roi-cells", "detections",
)  # fmt: skip
_NEED_TRUTH = ("data", "matches", "sampled", "losses")
_TESTING = ("layers", "funnel", "proposals", "detections")

# Defaults of the options.
_MOST_ROIS = 3  # pictures of pooled cells per image
_MOST_PROPOSALS = 20
_LOWEST_SCORE = 0.5  # of detections
_CHANNELS = 4  # of a feature map
_BOXES = 100  # of each step of the funnel


@dataclass(frozen=True)
class Options:
    """What may be chosen.

    Attributes:
        topk: boxes drawn at most, best first; None: the mode's default.
        score: lowest score drawn; None: the mode's default.
        seed: of sampling.
        box: for "roi-cells": XYXY in original-image pixels; None: the objects.
        cell: for "anchors": row and column; None: the middle one.
    """

    topk: int | None = None
    score: float | None = None
    seed: int = 0
    box: Sequence[float] | None = None
    cell: Sequence[int] | None = None


def is_of_training(mode: str) -> bool:
    """Return whether a mode shows training (its image size and data set) rather than testing."""
    return mode not in _TESTING


class Pictures:
    """Draw any mode of any image; a model is loaded once, when it is first needed."""

    def __init__(
        self, cfg: CfgNode, class_names: Sequence[str] = (), options: Options | None = None
    ) -> None:
        """Take what all pictures share.

        Args:
            cfg: config of `setup_cfg`.
            class_names: names by class index; classes beyond them are shown as numbers.
            options: what may be chosen.
        """
        self.cfg = cfg
        missing = range(len(class_names), cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        self.class_names = [*class_names, *(f"class {index}" for index in missing)]
        self.options = options or Options()
        whole = cfg.clone()  # what is drawn is neither flipped nor cropped
        whole.merge_from_list(["INPUT.RANDOM_FLIP", "none", "INPUT.CROP.ENABLED", False])
        # By whether it is for training.
        self._mappers = {key: build_mapper(whole, is_train=key) for key in (True, False)}

    def draw(self, mode: str, record: dict[str, Any]) -> list[tuple[str, Canvas]]:
        """Draw one image.

        Args:
            mode: one of `MODES`.
            record: the image, in Detectron2's format.

        Returns:
            Pictures, each with what is added to the file name to tell them apart.

        Raises:
            UserError: an unreadable image, annotations or weights missing that the mode needs, a
                config that the mode cannot draw.
        """
        if mode in _NEED_TRUTH and "annotations" not in record:
            raise UserError(
                f"{record['file_name']} has no annotations, which mode {mode} draws: name a data "
                f"set that has them (--dataset, --image)"
            )
        if mode == "detections" and self.cfg.MODEL.PAPER_RCNN.PHASE == "rpn":
            raise UserError(
                "mode detections draws what the detector finds, but MODEL.PAPER_RCNN.PHASE is rpn: "
                "draw --mode proposals, or add MODEL.PAPER_RCNN.PHASE joint, with weights of a "
                "whole detector"
            )
        proposes = mode in (*_TESTING, "losses") or (mode == "sampled" and self._has_rpn)
        if self.cfg.MODEL.LOAD_PROPOSALS and proposes:
            raise UserError(
                f"mode {mode} draws what the RPN proposes, but this config has proposals from "
                f"files: add MODEL.LOAD_PROPOSALS False MODEL.PAPER_RCNN.PHASE joint, with weights "
                f"of a whole detector"
            )
        image = InspectedImage(record, self._mappers[is_of_training(mode)])
        if mode == "roi-cells":
            return [(f"_{n}", canvas) for n, canvas in enumerate(self._roi_cells(image), start=1)]
        if mode == "layers":
            return [(f"_{name}", canvas) for name, canvas in layers_of(self._seen(image))]
        draw_one = {
            "losses": self._losses, "funnel": self._funnel, "data": self._data,
            "anchors": self._anchors, "matches": self._matches,
            "sampled": self._sampled, "proposals": self._proposals, "detections": self._detections,
        }[mode]  # fmt: skip
        return [("", draw_one(image))]

    @cached_property
    def _rules(self) -> BoxRules:
        return BoxRules(self.cfg)

    @cached_property
    def _has_rpn(self) -> bool:
        return has_rpn_weights(self.cfg)

    @cached_property
    def _proposing_model(self) -> Any:
        return load_model(self.cfg, unused="roi_heads")

    @cached_property
    def _sampling_model(self) -> Any:
        """None without the weights of an RPN: anchors are sampled without a model."""
        if not self._has_rpn:
            return None
        return load_model(with_training_proposals(self.cfg), unused="roi_heads")

    @cached_property
    def _detecting_model(self) -> Any:
        return load_model(self.cfg)

    def _seen(self, image: InspectedImage) -> ForwardPass:
        return forward_pass(self._proposing_model, image)

    def _funnel(self, image: InspectedImage) -> Canvas:
        known = "annotations" in image.record
        return funnel_of(self._seen(image), self._truth(image)[1] if known else NO_OBJECTS)

    def _losses(self, image: InspectedImage) -> Canvas:
        model = load_model(with_training_proposals(self.cfg))
        step = training_step(model, seen := forward_pass(model, image), self.options.seed)
        return losses_of(seen, step, self._trained_objects(image))

    def objects_of(self, image: InspectedImage) -> tuple[tuple[GroundTruth, Objects], Objects]:
        """Return all objects, and those that train before those that do not; none if unknown."""
        truth = self._truth(image)
        return truth, self._trained_objects(image) if "annotations" in image.record else truth[1]

    def _truth(self, image: InspectedImage) -> tuple[GroundTruth, Objects]:
        truth = from_dicts([image.record])
        names = [self.class_names[index] for index in truth.classes]
        return truth, Objects(truth.boxes, names, truth.ignored)

    def _trained_objects(self, image: InspectedImage) -> Objects:
        """Return those that training sees, in its order, then those that it leaves out."""
        instances = image.item["instances"]
        _, everything = self._truth(image)
        out = [bool(obj.get("iscrowd", 0)) for obj in image.record["annotations"]]
        names = [self.class_names[index] for index in instances.gt_classes.tolist()]
        return Objects(
            np.vstack([image.to_image(instances.gt_boxes.tensor), everything.boxes[out]]),
            [*names, *np.array(everything.names, dtype=object)[out]],
            np.array([False] * len(names) + [True] * sum(out), dtype=bool),
        )

    def _data(self, image: InspectedImage) -> Canvas:
        _, objects = self._truth(image)
        return draw_data(_with_masks(image), objects, image.name)

    def _anchors(self, image: InspectedImage) -> Canvas:
        rules = self._rules
        rows, columns, per_cell = rules.grid(image.size)
        row, column = self.options.cell or (rows // 2, columns // 2)
        if not (0 <= row < rows and 0 <= column < columns):
            raise UserError(
                f"--cell {row} {column}: the feature map of {image.name} has rows 0 to {rows - 1} "
                f"and columns 0 to {columns - 1}"
            )
        anchors = rules.anchors(image.size)
        inside = rules.inside(anchors, image.size)
        first = (row * columns + column) * per_cell
        cell = slice(first, first + per_cell)
        chosen = anchors.tensor[cell]
        sizes = (chosen[:, 2:] - chosen[:, :2]).double().numpy()
        nominal = np.array(self.cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0], dtype=float)
        ratios = sizes[:, 1:] / sizes[:, :1]  # rounding moved them a little
        nearest = nominal[np.abs(np.log(ratios / nominal)).argmin(axis=1)]
        cell_box = torch.tensor([[column, row, column + 1, row + 1]]) * rules.stride
        return draw_anchors(
            image.bgr, image.to_image(chosen), sizes, inside[cell].numpy(), nearest.tolist(),
            image.to_image(cell_box)[0], f"cell at row {row}, column {column} of {image.name}",
            [
                image.resized,
                f"all cells: {rows} x {columns} x {per_cell} = {len(anchors)} anchors, "
                f"{int(inside.sum())} of them inside the image",
                "labels: width x height in network pixels",
            ],
        )  # fmt: skip

    def _matches(self, image: InspectedImage) -> Canvas:
        rules, instances = self._rules, image.item["instances"]
        anchors = rules.anchors(image.size)
        labels, _ = rules.rpn.label_anchors(anchors, instances)
        lower, upper = rules.rpn.anchor_matcher.thresholds[1:3]
        reasons = explain_matches(
            anchors, labels, rules.inside(anchors, image.size), instances.gt_boxes, (lower, upper)
        )
        rows, columns, _ = rules.grid(image.size)
        generator = self.cfg.MODEL.ANCHOR_GENERATOR
        table = [("ratios", generator.ASPECT_RATIOS[0]), ("sizes", generator.SIZES[0])]
        if not isinstance(rules.rpn.anchor_generator, CaffeAnchorGenerator):
            table.reverse()  # Detectron2's loops over the sizes outside, the ratios inside
        words = [f"{what} {', '.join(f'{v:g}' for v in values)}" for what, values in table]
        high, wide = (len(values) for _, values in table)
        return draw_matches(
            image.bgr, image.to_image(anchors.tensor), reasons, (rows, columns, high, wide),
            image.cell(rules.stride), self._trained_objects(image), image.name,
            [
                f"{image.resized}; labels: IoU",
                f"spots of a cell on the right: rows {words[0]}; columns {words[1]}",
            ],
        )  # fmt: skip

    def _sampled(self, image: InspectedImage) -> Canvas:
        """Draw the mini-batch of anchors and, with a model, that of RoIs."""
        rules, seed, model = self._rules, self.options.seed, self._sampling_model
        anchors = rules.anchors(image.size)
        labels = rules.sampled_labels(anchors, image.item["instances"], seed)
        samples = [anchor_sample(image, anchors, labels)]
        notes = [f"{image.resized}; seed {seed}"]
        if model is None:
            given = self.cfg.MODEL.WEIGHTS
            why = f"{Path(given).name} has no RPN" if given else "no weights are given"
            notes.append(f"RoIs of the head need proposals, so a trained RPN: {why}")
        else:
            rois = sample_rois(model, image.item, seed)
            samples.append(roi_sample(image, rois, model.roi_heads.num_classes))
            classes = rois.gt_classes.numpy()
            classes = classes[classes < model.roi_heads.num_classes]
            each = zip(*np.unique(classes, return_counts=True), strict=True)
            listed = ", ".join(f"{count} {self.class_names[index]}" for index, count in each)
            notes += [f"foreground RoIs: {listed}"] if listed else []
        return draw_samples(image.bgr, samples, self._trained_objects(image), image.name, notes)

    def _roi_cells(self, image: InspectedImage) -> list[Canvas]:
        """Draw what is pooled for the box that was given, or for each of the objects."""
        rules = self._rules
        feature, stride = rules.pooled_feature
        size = rules.feature_size(feature, image.size)
        drawn = []
        for box, name in self._rois(image)[: self.options.topk or _MOST_ROIS]:
            cells = pooled_cells(rules.heads.box_pooler, box, size)
            canvas = draw_roi_cells(
                image.bgr, image.to_image(box[None])[0], cells, size, image.cell(stride),
                f"{name} of {image.name}",
                [image.resized, f"a cell of {feature} is {stride} network pixels"],
            )  # fmt: skip
            drawn.append(canvas)
        return drawn

    def _rois(self, image: InspectedImage) -> list[tuple[torch.Tensor, str]]:
        """Return boxes, (4,) in network pixels, and what the titles call them."""
        height, width = image.bgr.shape[:2]
        box = self.options.box
        if box is not None:
            given = np.clip(box, 0, [width, height, width, height])
            if given[2] <= given[0] or given[3] <= given[1]:
                words = " ".join(f"{value:g}" for value in box)
                raise UserError(
                    f"--box {words}: no part of it lies in {image.name}, which is {width} x "
                    f"{height} pixels; give x1 y1 x2 y2"
                )
            return [(torch.tensor(given / image.scale), "box")]
        instances = image.item.get("instances")
        if instances is None:
            raise UserError(f"{image.name}: which RoI? Add --box X1 Y1 X2 Y2 in image pixels")
        classes = enumerate(instances.gt_classes.tolist(), start=1)
        names = [f"{number} {self.class_names[index]}" for number, index in classes]
        return list(zip(instances.gt_boxes.tensor, names, strict=True))

    def _proposals(self, image: InspectedImage) -> Canvas:
        proposals = propose(self._proposing_model, image.item)
        logits = proposals.objectness_logits.double()
        boxes = proposals.proposal_boxes.tensor.double().numpy()
        scores = logits.sigmoid().numpy()
        lowest = self.options.score or 0.0
        count = min(int((scores >= lowest).sum()), self.options.topk or _MOST_PROPOSALS)
        objects, notes = NO_OBJECTS, list[str]()
        if "annotations" in image.record:
            truth, objects = self._truth(image)
            found = Proposals([image.name], [boxes], [logits.numpy()])
            notes = _recall_in_words(found, truth, count)
        notes.append("labels: objectness score" + (f", at least {lowest:g}" if lowest else ""))
        title = f"proposals: {image.name}, the best {count} of {len(boxes)}"
        return draw_proposals(image.bgr, boxes[:count], scores[:count], title, objects, notes)

    def _detections(self, image: InspectedImage) -> Canvas:
        instances = detect(self._detecting_model, image.item)
        lowest = _LOWEST_SCORE if self.options.score is None else self.options.score
        instances = instances[instances.scores >= lowest][: self.options.topk]
        found = detections_of(instances)
        objects, verdicts, rule = None, None, ""
        if "annotations" in image.record:
            truth, objects = self._truth(image)
            verdicts = judge_detections(found, truth, self.cfg.TEST.VOC_MATCH)
            rule = f"; right: IoU {self.cfg.TEST.VOC_MATCH} 0.5, same class"
        names = [self.class_names[index] for index in found.classes]
        pixels = image.bgr
        if instances.has("pred_masks"):
            pixels = paint_masks(pixels, instances.pred_masks.numpy(), found.classes.tolist())
        return draw_detections(
            pixels, found.boxes, names, found.scores, objects, verdicts,
            f"detections: {image.name}", [f"scores of at least {lowest:g}{rule}"],
        )  # fmt: skip


def anchor_sample(image: InspectedImage, anchors: Boxes, labels: torch.Tensor) -> Sample:
    """Return the RPN's mini-batch of an image: anchors (R, 4) with labels (R,) of 1 and 0."""
    positive, negative = (image.to_image(anchors.tensor[labels == value].cpu()) for value in (1, 0))
    return Sample("RPN anchors", positive, negative)


def roi_sample(image: InspectedImage, rois: Instances, num_classes: int) -> Sample:
    """Return the head's mini-batch of an image."""
    boxes = image.to_image(rois.proposal_boxes.tensor.cpu())
    background = (rois.gt_classes == num_classes).cpu().numpy()
    words = ("foreground", "background")
    return Sample("head RoIs", boxes[~background], boxes[background], words)


def detections_of(found: Instances) -> Detections:
    """Return the detections in one image, in its pixels, as they are judged."""
    return Detections(
        found.pred_boxes.tensor.double().cpu().numpy(),
        found.scores.double().cpu().numpy(),
        found.pred_classes.cpu().numpy(),
        np.zeros(len(found), dtype=np.int64),
    )


def layers_of(seen: ForwardPass) -> list[tuple[str, Canvas]]:
    """Draw the channels of each block that vary most over the image; return them by its name."""
    drawn = []
    for name, values in seen.maps.items():
        layer = [one for one in seen.layers if one.name.startswith(name)][-1]
        own, seen_by = (f"{side} x {side}" for side in (layer.stride, layer.sees))
        notes = [f"a cell is {own} network pixels and sees {seen_by}"]
        array = values.float().cpu().numpy()
        chosen = np.argsort(-array.std(axis=(1, 2)), kind="stable")[:_CHANNELS]
        maps = [(f"channel {c}, up to {array[c].max():.3g}", array[c]) for c in chosen]
        cells, (channels, rows, columns) = [seen.image.cell(layer.stride)] * len(maps), array.shape
        title = f"{name}: {channels} channels of {rows} x {columns} cells"
        drawn.append((name, draw_maps(seen.image.bgr, maps, cells, title, notes)))
    return drawn


def funnel_of(seen: ForwardPass, objects: Objects) -> Canvas:
    """Draw the way from anchors to proposals, the best boxes of each step."""
    selection, size, image = seen.selection, seen.image.size, seen.image
    assert selection.counts is not None
    left, best = selection.counts, seen.logits.argsort(descending=True, stable=True)[:_BOXES]
    kept = selection.boxes[:_BOXES]
    steps = [
        (f"{len(seen.anchors)} anchors", seen.anchors.tensor[best]),
        ("moved by t", seen.decoded[best]),
        (f"clipped; {left['large']} large enough", clip_inclusive(seen.decoded[best], size)),
        (f"top {left['pre_nms']}, NMS: {left['nms']}, top {left['proposals']}", kept),
    ]
    notes = [
        f"{image.resized}; {int(seen.inside.sum())} anchors lie inside and are trained on",
        f"the {_BOXES} boxes of the highest scores of each step",
    ]
    drawn = [(text, image.to_image(boxes.cpu())) for text, boxes in steps]
    return draw_funnel(image.bgr, drawn, objects, f"funnel: {image.name}", notes)


def losses_of(seen: ForwardPass, step: TrainingStep, objects: Objects) -> Canvas:
    """Draw the mini-batches of anchors and RoIs by their class losses, and name all losses."""
    anchors = seen.anchors.tensor[step.sampled >= 0]
    groups = [(f"{len(anchors)} anchors, class losses", anchors, step.anchor_losses)]
    if step.rois is not None and step.roi_losses:
        boxes = step.rois.proposal_boxes.tensor
        groups.append((f"{len(boxes)} RoIs, class losses", boxes, step.roi_losses["loss_cls"]))
    drawn = [(t, seen.image.to_image(b.cpu()), x.cpu().numpy()) for t, b, x in groups]
    notes = [", ".join(f"{name} {value:.4f}" for name, value in step.losses.items())]
    title = f"losses: {seen.image.name}, {sum(step.losses.values()):.4f} in all, without dropout"
    return draw_losses(seen.image.bgr, drawn, objects, title, notes)


def _with_masks(image: InspectedImage) -> ImageArray:
    """Return the pixels, with the masks of the objects, if any, in their class colours."""
    objects = [obj for obj in image.record["annotations"] if "segmentation" in obj]
    if not objects:
        return image.bgr
    try:
        masks = [GenericMask(obj["segmentation"], *image.bgr.shape[:2]).mask for obj in objects]
        return paint_masks(image.bgr, np.stack(masks) > 0, [obj["category_id"] for obj in objects])
    except (ValueError, TypeError, LookupError, RuntimeError, AssertionError) as error:
        file = image.record["file_name"]
        raise UserError(f"{file}: its masks cannot be drawn ({error}): correct them") from error


def objects_found(proposals: Proposals, truth: GroundTruth, count: int) -> tuple[int, int, int]:
    """Return how many objects count, and are found by the best `count` at IoU 0.5 and at 0.7."""
    curves = measure_recall(proposals, truth, [count], "image")
    if curves is None:
        return 0, 0, 0
    half, most = (round(curves.at(count, iou) * curves.num_objects) for iou in (0.5, 0.7))
    return curves.num_objects, half, most


def _recall_in_words(proposals: Proposals, truth: GroundTruth, count: int) -> list[str]:
    """Say how many objects the best `count` proposals find, and how many all of them do."""
    if truth.ignored.all():
        return ["recall: not defined, there is no object that counts"]
    total, lines = len(proposals.boxes[0]), []
    for number in sorted({count, total}):
        what = f"best {number}" if number < total else f"{total} proposals"
        known, half, most = objects_found(proposals, truth, number)
        objects = count_of(known, "object")
        lines.append(f"recall of the {what}: {half} of {objects} at IoU .5, {most} at .7")
    return lines

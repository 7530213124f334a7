"""Pictures of what training does with boxes: anchors, their labels, samples, pooled cells.

No weights are needed, but for the RoIs of the head. Each function draws one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode

from ..errors import UserError
from ..modeling.anchor_generator import CaffeAnchorGenerator
from .drawings.anchors import draw_anchors
from .drawings.canvas import Canvas
from .drawings.matches import draw_matches, explain_matches
from .drawings.objects import Objects, count_of
from .drawings.roi_cells import draw_roi_cells, pooled_cells
from .drawings.samples import Sample, draw_samples
from .inspected_image import InspectedImage
from .inspection import BoxRules, sample_rois

MOST_ROIS = 3  # pictures of pooled cells per image where nothing says how many


@dataclass(frozen=True)
class Options:
    """What may be chosen.

    Attributes:
        topk: boxes drawn at most, best first; None: as the mode likes.
        score: lowest score drawn; None: as the mode likes.
        seed: of sampling.
        box: for "roi-cells": XYXY in original-image pixels; None: the objects.
        cell: for "anchors": row and column; None: the middle one.
    """

    topk: int | None = None
    score: float | None = None
    seed: int = 0
    box: Sequence[float] | None = None
    cell: Sequence[int] | None = None


def anchors_picture(rules: BoxRules, image: InspectedImage, options: Options) -> Canvas:
    """The anchors of one cell.

    Raises:
        UserError: the cell is not on the feature map.
    """
    rows, columns, per_cell = rules.grid(image.size)
    row, column = options.cell or (rows // 2, columns // 2)
    if not (0 <= row < rows and 0 <= column < columns):
        raise UserError(
            f"--cell {row} {column}: the feature map of {image.name} has rows 0 to {rows - 1} "
            f"and columns 0 to {columns - 1}"
        )
    anchors = rules.anchors(image.size)
    inside = rules.inside(anchors, image.size)
    cell = slice((row * columns + column) * per_cell, (row * columns + column + 1) * per_cell)
    chosen = anchors.tensor[cell]
    sizes = (chosen[:, 2:] - chosen[:, :2]).double().numpy()
    nominal = np.array(rules.cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0], dtype=float)
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


def matches_picture(rules: BoxRules, image: InspectedImage, objects: Objects) -> Canvas:
    """Labels of all anchors before sampling.

    Args:
        rules: of the config.
        image: with ``instances``.
        objects: those that are trained on, in the order of ``instances``, then others.
    """
    anchors = rules.anchors(image.size)
    instances = image.item["instances"]
    lower, upper = rules.rpn.anchor_matcher.thresholds[1:3]
    reasons = explain_matches(
        anchors,
        rules.labels(anchors, instances),
        rules.inside(anchors, image.size),
        instances.gt_boxes,
        (lower, upper),
    )
    rows, columns, _ = rules.grid(image.size)
    generator = rules.cfg.MODEL.ANCHOR_GENERATOR
    table = {"ratios": generator.ASPECT_RATIOS[0], "sizes": generator.SIZES[0]}
    if not isinstance(rules.rpn.anchor_generator, CaffeAnchorGenerator):
        table = dict(reversed(table.items()))  # the host's: the size outside, the ratio inside
    (what_high, high), (what_wide, wide) = table.items()
    words = [", ".join(f"{value:g}" for value in values) for values in (high, wide)]
    width, height = (float(side) for side in rules.stride * image.scale[:2])
    return draw_matches(
        image.bgr, image.to_image(anchors.tensor), reasons, (rows, columns, len(high), len(wide)),
        (width, height), objects, image.name,
        [
            f"{image.resized}; labels: IoU",
            f"spots of a cell on the right: rows {what_high} {words[0]}; columns {what_wide} "
            f"{words[1]}",
            *left_out(rules.cfg, image),
        ],
    )  # fmt: skip


def left_out(cfg: CfgNode, image: InspectedImage) -> list[str]:
    """A note if the image is no training image."""
    if len(image.item["instances"]) or not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return []
    return ["no objects to learn: DATALOADER.FILTER_EMPTY_ANNOTATIONS keeps it out of training"]


def sampled_picture(
    rules: BoxRules,
    image: InspectedImage,
    objects: Objects,
    class_names: Sequence[str],
    seed: int,
    model: Any = None,
) -> Canvas:
    """The mini-batch of anchors and, with a model, that of RoIs.

    Args:
        rules: of the config.
        image: with ``instances``.
        objects: as for :func:`matches_picture`.
        class_names: names by class index, of all classes of the model.
        seed: of the draw.
        model: with trained weights; None: there is none.
    """
    anchors = rules.anchors(image.size)
    labels = rules.sampled_labels(anchors, image.item["instances"], seed)
    positive, negative = (image.to_image(anchors.tensor[labels == value]) for value in (1, 0))
    samples = [Sample("RPN anchors", positive, negative)]
    notes = [f"{image.resized}; seed {seed}", *left_out(rules.cfg, image)]
    if model is None:
        notes.append("RoIs of the head need proposals, so weights: none given")
    else:
        rois = sample_rois(model, image.item, seed)
        boxes, classes = image.to_image(rois.proposal_boxes.tensor), rois.gt_classes.numpy()
        background = classes == model.roi_heads.num_classes
        words = ("foreground", "background")
        samples.append(Sample("head RoIs", boxes[~background], boxes[background], words))
        found, counts = np.unique(classes[~background], return_counts=True)
        if len(found):
            each = zip(counts, found, strict=True)
            listed = ", ".join(f"{count} {class_names[index]}" for count, index in each)
            notes.append(f"foreground RoIs: {listed}")
    return draw_samples(image.bgr, samples, objects, image.name, notes)


def roi_cells_pictures(
    rules: BoxRules, image: InspectedImage, class_names: Sequence[str], options: Options
) -> list[Canvas]:
    """What is pooled for a box of the user's, or for each of the objects.

    Raises:
        UserError: the box lies outside the image, or there is none.
    """
    boxes, names = _rois(image, class_names, options)
    feature, stride = rules.pooled_feature
    size = rules.feature_size(feature, image.size)
    width, height = (float(side) for side in stride * image.scale[:2])
    drawn = []
    for box, name in list(zip(boxes, names, strict=True))[: options.topk or MOST_ROIS]:
        cells = pooled_cells(rules.pooler, box, size)
        empty = f"; {count_of(cells.empty_bins, 'empty bin')}" if cells.empty_bins else ""
        canvas = draw_roi_cells(
            image.bgr, image.to_image(box[None])[0], cells, size, (width, height),
            f"{name} of {image.name}",
            [image.resized, f"a cell of {feature} is {stride} network pixels{empty}"],
        )  # fmt: skip
        drawn.append(canvas)
    return drawn


def _rois(
    image: InspectedImage, class_names: Sequence[str], options: Options
) -> tuple[torch.Tensor, list[str]]:
    """Boxes in network pixels, (N, 4), and what the titles call them."""
    height, width = image.bgr.shape[:2]
    if options.box is not None:
        given = np.clip(options.box, 0, [width, height, width, height])
        if given[2] <= given[0] or given[3] <= given[1]:
            words = " ".join(f"{value:g}" for value in options.box)
            raise UserError(
                f"--box {words}: no part of it lies in {image.name}, which is {width} x {height} "
                f"pixels; give x1 y1 x2 y2"
            )
        return torch.tensor(given / image.scale)[None], ["box"]
    instances = image.item.get("instances")
    if instances is None:
        raise UserError(f"{image.name}: which RoI? Add --box X1 Y1 X2 Y2 in image pixels")
    classes = enumerate(instances.gt_classes.tolist(), start=1)
    return instances.gt_boxes.tensor, [f"{number} {class_names[i]}" for number, i in classes]

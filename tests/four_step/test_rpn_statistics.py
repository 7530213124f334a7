"""Statistics of the RPN's box targets: against a loop, and the host's mapper."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import transform_instance_annotations
from detectron2.modeling import build_model

from frcnn_plugin.errors import UserError
from frcnn_plugin.four_step.statistics import rpn_target_statistics
from frcnn_plugin.modeling import backbone_feature_sizes
from tests.four_step.statistics_records import close, record


def random_images() -> list[dict[str, Any]]:
    """Objects of all sizes, images that share a size, an empty one, a crowd region."""
    rng = np.random.default_rng(0)
    images = []
    for height, width in ((100, 200), (120, 90), (100, 200), (77, 200), (131, 107)):
        corner = rng.uniform(0, 0.5, (4, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0.1, 0.5, (4, 2))], axis=1)
        boxes *= [width, height, width, height]
        images.append(record([(box, 0) for box in boxes], size=(height, width)))
    images[0]["annotations"][2]["iscrowd"] = 1
    return [*images, record([], size=(77, 200))]


RPN_DATA = random_images()
MIN_SIZE, MAX_SIZE = 150, 260


def brute_force(
    data: list[dict[str, Any]], cell: list[list[float]], ceil16: Callable[[float], int], flip: bool
) -> np.ndarray:
    """Raw targets of all positive anchors, one anchor and one object at a time, (P, 4)."""
    targets = []
    for image in data:
        h, w = image["height"], image["width"]
        ratio = MIN_SIZE / min(h, w)
        if ratio * max(h, w) > MAX_SIZE:
            ratio = MAX_SIZE / max(h, w)
        height, width = int(h * ratio + 0.5), int(w * ratio + 0.5)
        for mirrored in (False, True) if flip else (False,):
            objects = []
            for a in image["annotations"]:
                if a["iscrowd"]:
                    continue
                x1, y1, x2, y2 = np.array(a["bbox"]) * np.array([width / w, height / h] * 2)
                objects.append([width - x2, y1, width - x1, y2] if mirrored else [x1, y1, x2, y2])
            anchors = []
            for y in range(ceil16(height)):
                for x in range(ceil16(width)):
                    for c in cell:
                        b = [c[0] + 16 * x, c[1] + 16 * y, c[2] + 16 * x, c[3] + 16 * y]
                        if b[0] >= 0 and b[1] >= 0 and b[2] <= width and b[3] <= height:
                            anchors.append(b)
            table = np.array([[iou(a, o) for o in objects] for a in anchors])
            for i, row in enumerate(table):
                best = [j for j in range(len(row)) if row[j] >= table[:, j].max() - 1e-7 > 0]
                if len(row) and (row.max() >= 0.7 or best):
                    targets.append(encode(anchors[i], objects[int(row.argmax())]))
    return np.array(targets)


def iou(a: list[float], b: list[float]) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def encode(a: list[float], b: list[float]) -> list[float]:
    wa, ha, wb, hb = a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]
    dx = (b[0] + b[2] - a[0] - a[2]) / 2 / wa
    dy = (b[1] + b[3] - a[1] - a[3]) / 2 / ha
    return [dx, dy, math.log(wb / wa), math.log(hb / ha)]


def test_rpn_statistics_against_a_loop(tiny_cfg: Callable[..., CfgNode]) -> None:
    model = build_model(tiny_cfg())
    rpn = model.proposal_generator
    sizes = backbone_feature_sizes(model.backbone, rpn.in_features)
    (cell,) = (c.tolist() for c in rpn.anchor_generator.cell_anchors)
    results = []
    for flip in (False, True):
        targets = brute_force(RPN_DATA, cell, lambda side: math.ceil(side / 16), flip)
        assert len(targets) > 20
        mean, std = rpn_target_statistics(
            RPN_DATA, rpn, sizes, min_size=MIN_SIZE, max_size=MAX_SIZE, mirror=flip
        )
        assert mean.shape == std.shape == (1, 4)
        assert close(mean[0], targets.mean(axis=0)) and close(std[0], targets.std(axis=0))
        results.append(mean)
    assert not torch.allclose(*results)
    # What has been set does not change what is measured.
    rpn.target_statistics.set(mean, std)
    again = rpn_target_statistics(RPN_DATA, rpn, sizes, min_size=MIN_SIZE, max_size=MAX_SIZE)
    assert torch.equal(again[0], mean) and torch.equal(again[1], std)


def test_rpn_sees_the_boxes_of_the_mapper(tiny_cfg: Callable[..., CfgNode]) -> None:
    """The host's own resize and flip put the ground truth where the statistics assume it."""
    model = build_model(tiny_cfg())
    rpn = model.proposal_generator
    image = RPN_DATA[1]
    seen: list[torch.Tensor] = []
    match = rpn.match_anchors
    rpn.match_anchors = lambda anchors, gt: (seen.append(gt.tensor), match(anchors, gt))[1]
    rpn_target_statistics(
        [image],
        rpn,
        backbone_feature_sizes(model.backbone, rpn.in_features),
        min_size=MIN_SIZE,
        max_size=MAX_SIZE,
    )
    pixels = np.zeros((image["height"], image["width"], 3), dtype=np.uint8)
    resize = T.ResizeShortestEdge((MIN_SIZE, MIN_SIZE), MAX_SIZE)
    for boxes, flip in zip(seen, (0.0, 1.0), strict=True):
        augmented = T.AugInput(pixels)
        transforms = T.AugmentationList([resize, T.RandomFlip(prob=flip)])(augmented)
        expected = [
            transform_instance_annotations(dict(a), transforms, augmented.image.shape[:2])["bbox"]
            for a in image["annotations"]
        ]
        assert boxes.numpy() == pytest.approx(np.array(expected), abs=1e-4)


def test_rpn_with_nothing_to_count(tiny_cfg: Callable[..., CfgNode], caplog) -> None:
    """No objects; and an image that no anchor fits into."""
    model = build_model(tiny_cfg())
    data = [record([]), record([([0, 0, 5, 5], 0)], size=(8, 8))]
    mean, std = rpn_target_statistics(
        data,
        model.proposal_generator,
        backbone_feature_sizes(model.backbone, ["conv5"]),
        min_size=0,
        max_size=1000,
    )
    assert mean.tolist() == [[0] * 4] and std.tolist() == [[1] * 4]
    assert "positive anchors (0)" in caplog.text


def test_rpn_needs_the_size_of_the_image(tiny_cfg: Callable[..., CfgNode]) -> None:
    image = record([])
    del image["height"]
    rpn = build_model(tiny_cfg()).proposal_generator
    with pytest.raises(UserError, match=r"image a.jpg has no 'height' and 'width'"):
        rpn_target_statistics([image], rpn, lambda h, w: [(1, 1)], min_size=600, max_size=1000)

"""Statistics of box targets. Examples E5 and E30 (docs/worked_examples.md)."""

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
from detectron2.structures import BoxMode

from frcnn_plugin.errors import UserError
from frcnn_plugin.four_step.statistics import (
    TargetMoments,
    head_target_statistics,
    on_main_process,
    rpn_target_statistics,
)
from frcnn_plugin.modeling import CaffeBox2BoxTransform, backbone_feature_sizes

RAW = CaffeBox2BoxTransform()


def record(
    objects: list[tuple[list[float], int]],
    proposals: list[list[float]] | None = None,
    size: tuple[int, int] = (100, 200),
    **more: Any,
) -> dict[str, Any]:
    """One image of ``size`` (height, width) with (box, class) objects."""
    ret: dict[str, Any] = {
        "file_name": "a.jpg",
        "image_id": "a",
        "height": size[0],
        "width": size[1],
        "annotations": [
            {"bbox": [*map(float, box)], "bbox_mode": 0, "category_id": number, "iscrowd": 0}
            for box, number in objects
        ],
    }
    if proposals is not None:
        ret["proposal_boxes"] = np.array(proposals, dtype=np.float32).reshape(-1, 4)
        ret["proposal_bbox_mode"] = BoxMode.XYXY_ABS
    return {**ret, **more}


def close(tensor: torch.Tensor, expected: Any, atol: float = 1e-5) -> bool:
    return torch.allclose(tensor, torch.tensor(expected, dtype=tensor.dtype), atol=atol)


# ---- sums ----------------------------------------------------------------------------------------

E30 = torch.tensor([[0.2, 0, 0.1, 0], [0, 0, 0, 0], [-0.2, 0.1, 0.3, 0.2]], dtype=torch.float64)


def test_moments_e30() -> None:
    moments = TargetMoments(2)
    moments.add(E30[:1], torch.tensor([1]))
    moments.add(E30[1:], torch.tensor([1, 1]))
    mean, std = moments.result(["cat", "dog"])
    assert moments.count.tolist() == [0, 3]
    assert close(mean[1], [0, 0.033333, 0.133333, 0.066667])
    assert close(std[1], [0.163299, 0.04714, 0.124722, 0.094281])
    assert mean[0].tolist() == [0] * 4 and std[0].tolist() == [1] * 4


def test_mirrored_moments_are_those_of_both_copies() -> None:
    mirror = E30 * torch.tensor([-1, 1, 1, 1])
    both, closed = TargetMoments(1), TargetMoments(1)
    rows = torch.zeros(3, dtype=torch.int64)
    both.add(E30, rows)
    both.add(mirror, rows)
    closed.add(E30, rows)
    closed.add_mirrored()
    for a, b in zip(both.result(["x"]), closed.result(["x"]), strict=True):
        assert torch.allclose(a, b, atol=1e-7)
    assert both.count == closed.count == 6


# ---- head ---------------------------------------------------------------------------------------

# E5: the deltas from the proposal to the object are (.2, .45, .182322, .405465); IoU .37.
E5_PROPOSAL, E5_OBJECT = [0.0, 0.0, 10.0, 10.0], [1.0, 2.0, 13.0, 17.0]


def test_known_deltas() -> None:
    """Class 0: the object (0) and the proposal (E5). Deviation of {0, d} is d / 2.

    Class 1: only its own box. Far proposals do not count.
    """
    data = [
        record([(E5_OBJECT, 0)], [E5_PROPOSAL, [100.0, 50.0, 150.0, 90.0]]),
        record([([50.0, 50.0, 90.0, 90.0], 1)], [[0.0, 0.0, 20.0, 20.0]]),
    ]
    mean, std, count = head_target_statistics(data, 2, RAW, mirror=False, fg_iou=0.3)
    half = [0.1, 0.225, 0.091161, 0.202733]
    assert count.tolist() == [2, 1]
    assert close(mean, [half, [0] * 4]) and close(std, [half, [1] * 4])
    assert mean.dtype == std.dtype == torch.float32

    mean, std, count = head_target_statistics(data, 2, RAW, fg_iou=0.3)
    assert count.tolist() == [4, 2]
    # dx is 0, d, 0, -d: its deviation is d / sqrt(2).
    assert close(mean[0], [0, *half[1:]])
    assert close(std[0], [0.2 / math.sqrt(2), *half[1:]])


def test_units_are_those_of_the_transform() -> None:
    data = [record([(E5_OBJECT, 0)], [E5_PROPOSAL])]
    weighted = CaffeBox2BoxTransform((10, 10, 5, 5))
    mean, std, _ = head_target_statistics(data, 1, weighted, mirror=False, fg_iou=0.3)
    assert close(mean, [[1.0, 2.25, 0.455804, 1.013663]])
    assert close(std, [[1.0, 2.25, 0.455804, 1.013663]])


CROWD = record([(E5_OBJECT, 0), (E5_OBJECT, 0), ([5.0, 5.0, 5.0, 9.0], 0)], [E5_PROPOSAL])
CROWD["annotations"][0]["iscrowd"] = 1


@pytest.mark.parametrize(
    ("data", "fg_iou", "expected"),
    [
        # IoU exactly .5 counts, a little less does not.
        ([record([([0, 0, 40, 40], 0)], [[0, 0, 40, 20], [0, 0, 40, 19.9]])], 0.5, 2),
        ([CROWD], 0.3, 2),  # neither a crowd nor a box without area
        # Images without objects or proposals.
        ([record([], [E5_PROPOSAL]), record([(E5_OBJECT, 0)], []), record([], [])], 0.5, 1),
    ],
)
def test_what_counts(data: list[dict[str, Any]], fg_iou: float, expected: int) -> None:
    _, _, count = head_target_statistics(data, 1, RAW, mirror=False, fg_iou=fg_iou)
    assert count.tolist() == [expected]


def test_a_proposal_counts_for_the_object_it_overlaps_most() -> None:
    """One proposal over two objects, closer to the second: IoU .8 and .9."""
    data = [record([([0, 0, 80.0, 100.0], 0), ([0, 0, 90.0, 100.0], 1)], [[0, 0, 100.0, 100.0]])]
    mean, _, count = head_target_statistics(data, 2, RAW, mirror=False)
    assert count.tolist() == [1, 2]
    assert close(mean[1], [-0.05 / 2, 0, math.log(0.9) / 2, 0])


def test_other_box_modes() -> None:
    xyxy = record([(E5_OBJECT, 0)], [E5_PROPOSAL])
    xywh = record([([1.0, 2.0, 12.0, 15.0], 0)], [[0.0, 0.0, 10.0, 10.0]])
    xywh["annotations"][0]["bbox_mode"] = BoxMode.XYWH_ABS
    xywh["proposal_bbox_mode"] = BoxMode.XYWH_ABS
    a, b = (head_target_statistics([x], 1, RAW, fg_iou=0.3) for x in (xyxy, xywh))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_class_agnostic() -> None:
    data = [record([(E5_OBJECT, 0), ([50.0, 50.0, 90.0, 90.0], 1)], [E5_PROPOSAL])]
    mean, std, count = head_target_statistics(
        data, 2, RAW, mirror=False, fg_iou=0.3, class_agnostic=True
    )
    assert mean.shape == std.shape == (1, 4) and count.tolist() == [3]
    assert close(mean, [[0.2 / 3, 0.45 / 3, 0.182322 / 3, 0.405465 / 3]])


def test_classes_without_targets(caplog: pytest.LogCaptureFixture) -> None:
    data = [record([(E5_OBJECT, 0), ([50.0, 50.0, 90.0, 90.0], 2)], [E5_PROPOSAL])]
    mean, std, _ = head_target_statistics(
        data, 3, RAW, fg_iou=0.3, class_names=["cat", "dog", "cow"]
    )
    assert mean[1:].abs().sum() == 0 and (std[1:] == 1).all()
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().endswith("using 1: dog (0), cow (2)")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (record([(E5_OBJECT, 0)]), r"image a.jpg has no proposals"),
        (record([(E5_OBJECT, 5)], []), "object of class 5, but there are 3 classes"),
        (record([], [], height=None), r"image a.jpg has no 'height' and 'width'"),
    ],
)
def test_mistakes(image: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        head_target_statistics([{k: v for k, v in image.items() if v is not None}], 3, RAW)


# ---- RPN: against a loop, and the mapper of Detectron2 -------------------------------------------


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


def measure(model: Any, data: list[dict[str, Any]], **options: Any) -> tuple[torch.Tensor, ...]:
    rpn = model.proposal_generator
    sizes = backbone_feature_sizes(model.backbone, rpn.in_features)
    options = {"min_size": MIN_SIZE, "max_size": MAX_SIZE} | options
    return rpn_target_statistics(data, rpn, sizes, **options)


def test_rpn_statistics_against_a_loop(tiny_cfg: Callable[..., CfgNode]) -> None:
    model = build_model(tiny_cfg())
    rpn = model.proposal_generator
    (cell,) = (c.tolist() for c in rpn.anchor_generator.cell_anchors)
    results = []
    for flip in (False, True):
        targets = brute_force(RPN_DATA, cell, lambda side: math.ceil(side / 16), flip)
        assert len(targets) > 20
        mean, std = measure(model, RPN_DATA, mirror=flip)
        assert mean.shape == std.shape == (1, 4)
        assert close(mean[0], targets.mean(axis=0)) and close(std[0], targets.std(axis=0))
        results.append(mean)
    assert not torch.allclose(*results)
    # What has been set does not change what is measured.
    rpn.target_statistics.set(mean, std)
    again = measure(model, RPN_DATA)
    assert torch.equal(again[0], mean) and torch.equal(again[1], std)


def test_rpn_sees_the_boxes_of_the_mapper(tiny_cfg: Callable[..., CfgNode]) -> None:
    """Detectron2's own resize and flip put the ground truth where the statistics assume it."""
    model = build_model(tiny_cfg())
    rpn = model.proposal_generator
    image = RPN_DATA[1]
    seen: list[torch.Tensor] = []
    match = rpn.match_anchors
    rpn.match_anchors = lambda anchors, gt: (seen.append(gt.tensor), match(anchors, gt))[1]
    measure(model, [image])
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
    data = [record([]), record([([0, 0, 5, 5], 0)], size=(8, 8))]
    mean, std = measure(build_model(tiny_cfg()), data, min_size=0)
    assert mean.tolist() == [[0] * 4] and std.tolist() == [[1] * 4]
    assert "positive anchors (0)" in caplog.text


def test_one_process() -> None:
    assert on_main_process(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        on_main_process(lambda: 1 // 0)

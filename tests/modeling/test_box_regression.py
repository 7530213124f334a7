"""Encoding and decoding. Literals: examples E4, E5, E26, E27, E28 (docs/worked_examples.md)."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, pairwise_iou

from frcnn_plugin.modeling import CaffeBox2BoxTransform

ONE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def continuous(*inclusive: float) -> torch.Tensor:
    return torch.tensor([inclusive], dtype=torch.float32) + ONE


@pytest.mark.parametrize(
    ("a", "b", "iou"),
    [
        ((0, 0, 9, 9), (5, 5, 14, 14), 0.142857),  # E4
        ((0, 0, 9, 9), (9, 0, 18, 9), 0.0526316),  # E4b
        ((0, 0, 9, 9), (10, 0, 19, 9), 0.0),
        ((0, 0, 9, 9), (2, 0, 11, 9), 0.666667),  # E14c
    ],
)
def test_iou_of_continuous_boxes_is_caffes(a: tuple, b: tuple, iou: float) -> None:
    value = pairwise_iou(Boxes(continuous(*a)), Boxes(continuous(*b))).item()
    assert value == pytest.approx(iou, abs=1e-6)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((1, 1, 1, 1), [0.2, 0.45, 0.182322, 0.405465]),  # E5, E27
        ((10, 10, 5, 5), [2.0, 4.5, 0.911608, 2.027326]),  # E28: fixed deviations
    ],
)
def test_encode(weights: tuple[float, ...], expected: list[float]) -> None:
    transform = CaffeBox2BoxTransform(weights)
    deltas = transform.get_deltas(continuous(0, 0, 9, 9), continuous(1, 2, 12, 16))
    assert deltas[0].tolist() == pytest.approx(expected, abs=1e-5)


E5, E26 = [0.2, 0.45, math.log(1.2), math.log(1.5)], [0.1, -0.2, 0.05, -0.1]


@pytest.mark.parametrize(
    ("growth", "deltas", "box", "expected"),
    [
        (0.0, E5, (0, 0, 9, 9), [1, 2, 12, 16]),
        (1.0, E5, (0, 0, 9, 9), [1, 2, 13, 17]),
        (0.0, [0.0] * 4, (0, 0, 9, 9), [0, 0, 9, 9]),  # E5b
        (1.0, [0.0] * 4, (0, 0, 9, 9), [0, 0, 10, 10]),
        # E26: an anchor, by py-faster-rcnn and by MATLAB
        (1.0, E26, (200, 40, 455, 295), [219.0373, 0.98081, 488.1627, 232.61919]),
        (0.0, E26, (200, 40, 455, 295), [219.0373, 0.98081, 487.1627, 231.61919]),
    ],
)
def test_decode(growth: float, deltas: list[float], box: tuple, expected: list[float]) -> None:
    transform = CaffeBox2BoxTransform(decode_growth=growth)
    boxes = transform.apply_deltas(torch.tensor([deltas]), continuous(*box)) - ONE
    assert boxes[0].tolist() == pytest.approx(expected, rel=2e-6, abs=1e-5)


def test_growth_reaches_every_class() -> None:
    boxes = CaffeBox2BoxTransform(decode_growth=1.0).apply_deltas(
        torch.zeros(1, 8), torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    )
    assert boxes.tolist() == [[0, 0, 11, 11, 0, 0, 11, 11]]


def test_scale_is_not_clamped_unless_asked() -> None:
    """dw = 5 on a 128 px box: 128 * e^5 = 18,997 px."""
    deltas = torch.tensor([[0.0, 0.0, 5.0, 0.0]])
    box = torch.tensor([[0.0, 0.0, 128.0, 128.0]])
    free = CaffeBox2BoxTransform().apply_deltas(deltas, box)[0]
    clamped = CaffeBox2BoxTransform(scale_clamp=math.log(1000 / 16)).apply_deltas(deltas, box)[0]
    assert (free[2] - free[0]).item() == pytest.approx(18997, abs=1)
    assert (clamped[2] - clamped[0]).item() == pytest.approx(8000, abs=1)


def test_no_boxes() -> None:
    transform = CaffeBox2BoxTransform(decode_growth=1.0)
    assert transform.apply_deltas(torch.zeros(0, 12), torch.zeros(0, 4)).shape == (0, 12)


def test_encoding_is_detectron2s_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    corner, side = torch.rand(2, 50, 2, generator=generator) * 100
    boxes = torch.cat([corner, corner + side + 1], dim=1)
    weights = (10.0, 10.0, 5.0, 5.0)
    expected = Box2BoxTransform(weights).get_deltas(boxes, boxes.flip(0))
    assert torch.equal(CaffeBox2BoxTransform(weights).get_deltas(boxes, boxes.flip(0)), expected)

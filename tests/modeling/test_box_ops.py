"""Literals by hand."""

from __future__ import annotations

import pytest
import torch

from frcnn_plugin.modeling import box_ops


def test_clip() -> None:
    boxes = torch.tensor([[-5.0, -3.0, 1005.0, 605.0], [10.0, 20.0, 30.0, 40.0]])
    clipped = box_ops.clip_boxes(boxes, (600, 1000))
    assert clipped.tolist() == [[0, 0, 1000, 600], [10, 20, 30, 40]]
    assert boxes[0, 0] == -5


def test_clip_inclusive() -> None:
    """By hand: inclusive (795..900, 10..20) in an image 80 wide is column 79, so 79 to 80."""
    boxes = torch.tensor([[795.0, 10, 901, 21, -50.0, -9, -30, 30], [5.0, 5, 9, 9] * 2])
    clipped = box_ops.clip_inclusive(boxes, (60, 80))
    assert clipped.tolist() == [[79, 10, 80, 21, 0, 0, 1, 30], [5, 5, 9, 9] * 2]
    assert box_ops.clip_boxes(boxes[:, :4], (60, 80))[0].tolist() == [80, 10, 80, 21]


def test_scale_inclusive() -> None:
    """Inclusive (10, 20, 29, 20) by 2 is (20, 40, 58, 40)."""
    boxes = torch.tensor([[10.0, 20.0, 30.0, 21.0]])
    for values in (boxes, boxes.numpy()):
        assert box_ops.scale_inclusive(values, 2.0).tolist() == [[20, 40, 59, 41]]
    assert boxes.tolist() == [[10, 20, 30, 21]]
    assert box_ops.scale_inclusive(torch.zeros(0, 4), 1.6).shape == (0, 4)


def test_mirror() -> None:
    """The box at the left border of an image 100 wide comes to lie at the right one."""
    boxes = torch.tensor([[0.0, 10.0, 30.0, 20.0], [40.0, 0.0, 60.0, 5.0]])
    assert box_ops.mirror(boxes, 100).tolist() == [[70, 10, 100, 20], [40, 0, 60, 5]]
    assert torch.equal(box_ops.mirror(box_ops.mirror(boxes, 100), 100), boxes)
    assert box_ops.mirror(torch.zeros(0, 4), 100).shape == (0, 4)
    assert box_ops.mirror(torch.tensor([1, 2, 3, 4]), 9).tolist() == [6, 2, 8, 4]


def test_allowed_border() -> None:
    boxes = torch.tensor([[-1.0, 0.0, 10.0, 10.0], [0.0, 0.0, 11.0, 10.0], [0.0, 0.0, 10.0, 10.0]])
    assert box_ops.inside_image(boxes, (10, 10), 0).tolist() == [False, False, True]
    assert box_ops.inside_image(boxes, (10, 10), 1).tolist() == [True, True, True]
    assert box_ops.inside_image(boxes * 9, (10, 10), -1).all()


def test_corner_factors_e7b() -> None:
    """500 px become 800: column 100 goes to 160.12024 and the last one, 499, to 799; and back."""
    factors = box_ops.corner_factors((333, 500), (600, 800))
    boxes = torch.tensor([[100.0, 0.0, 500.0, 333.0]], dtype=torch.float64)
    scaled = box_ops.scale_inclusive(boxes, factors)
    assert scaled[0].tolist() == pytest.approx([160.12024, 0, 800, 600], abs=1e-5)
    assert torch.equal(boxes, torch.tensor([[100.0, 0.0, 500.0, 333.0]], dtype=torch.float64))
    back = box_ops.scale_inclusive(scaled.numpy(), box_ops.corner_factors((600, 800), (333, 500)))
    assert back == pytest.approx(boxes.numpy())
    assert box_ops.corner_factors((1, 50), (2, 100)) == (2, 99 / 49)

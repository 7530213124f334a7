"""Suppression against torchvision's. Literal: example E14b (docs/worked_examples.md)."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou, nms

from frcnn_plugin.layers import prefix_nms
from frcnn_plugin.layers.nms import _MANY, _overlap_any, float32_threshold


def test_iou_of_exactly_three_tenths_stays_e14b() -> None:
    """[0,0,9,9] and [0,0,9,2]: intersection 30, union 100."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 3.0]])
    scores = torch.tensor([0.9, 0.8])
    assert len(nms(boxes, scores, float32_threshold(0.3))) == 2
    assert len(prefix_nms(boxes, scores, 0.3, 10)) == 2


def test_prefix_nms_over_several_pieces_with_equal_scores() -> None:
    """20000 boxes, of which fewer survive than are wanted; many scores tie."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(20000, 2, generator=generator) * 150
    boxes = torch.cat([corner, corner + 40 + 20 * torch.rand(20000, 2, generator=generator)], 1)
    scores = torch.randint(50, (20000,), generator=generator).float().sort(descending=True).values
    survivors = nms(boxes, scores, 0.7)
    assert 100 < len(survivors) < 2000
    assert torch.equal(prefix_nms(boxes, scores, 0.7, 2000), survivors)
    assert torch.equal(prefix_nms(boxes, scores, 0.7, 100), survivors[:100])


def boxes_of_all_sizes(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """On a grid of 4 px, so that many pairs have an IoU of exactly 0.5 or share an edge only."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(60, (count, 2), generator=generator) * 4.0
    side = torch.randint(1, 9, (count, 2), generator=generator) * 4.0
    huge = torch.rand(count, 1, generator=generator) < 0.1
    boxes = torch.cat([corner, corner + torch.where(huge, side * 20, side)], 1)
    return boxes, torch.rand(count, generator=generator).sort(descending=True).values


@pytest.mark.parametrize("thresh", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_prefix_nms_where_most_are_kept(thresh: float) -> None:
    """Many boxes are kept, so pieces are compared with them before they are suppressed."""
    boxes, scores = boxes_of_all_sizes(6000)
    expected = nms(boxes, scores, float32_threshold(thresh))
    assert len(expected) > _MANY or thresh == 0.0
    for limit in (1, 7, 50, 500, 6000):
        assert torch.equal(prefix_nms(boxes, scores, thresh, limit), expected[:limit])


@pytest.mark.parametrize("thresh", [0.0, 0.3, 0.5, 0.7])
@pytest.mark.parametrize(("rows", "columns"), [(300, 400), (1, 400), (129, 1), (0, 5), (128, 0)])
def test_overlap_any(rows: int, columns: int, thresh: float) -> None:
    thresh = float32_threshold(thresh)
    boxes, _ = boxes_of_all_sizes(rows + columns, seed=1)
    expected = (box_iou(boxes[:rows], boxes[rows:]) > thresh).any(dim=1)
    assert torch.equal(_overlap_any(boxes[:rows], boxes[rows:], thresh), expected)
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])  # a box without area overlaps nothing
    around = torch.cat([point, torch.tensor([[0.0, 0.0, 10.0, 10.0]])])
    assert not _overlap_any(around, point, thresh).any()

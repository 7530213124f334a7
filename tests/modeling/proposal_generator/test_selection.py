"""Proposal selection.

Literals: examples E6, E13, E14, E27b, E34 (docs/worked_examples.md), or by hand.
"""

from __future__ import annotations

import pytest
import torch

from frcnn_plugin.modeling import Selection, select_proposals

ONE = torch.tensor([0.0, 0.0, 1.0, 1.0])
SIZE = (600, 1000)


def select(
    inclusive: list[list[float]], scores: list[float], **kwargs: object
) -> tuple[list[list[float]], list[float]]:
    options = {"min_side": 0.0, "pre_nms_topk": 0, "post_nms_topk": 100, "nms_thresh": 0.7}
    boxes, kept, *_ = select_proposals(
        torch.tensor(inclusive, dtype=torch.float32).reshape(-1, 4) + ONE,
        torch.tensor(scores, dtype=torch.float32),
        SIZE,
        **{**options, **kwargs},
    )
    return (boxes - ONE).tolist(), kept.tolist()


def test_clip_e6() -> None:
    assert select([[-5, -3, 1005, 605]], [1.0])[0] == [[0, 0, 999, 599]]


def test_min_side_e13() -> None:
    """Scale 1.6: sides below 25.6 px go; [0,0,24,30] is 25 wide, [0,0,25,30] is 26."""
    boxes, _ = select([[0, 0, 24, 30], [100, 0, 125, 30]], [0.9, 0.8], min_side=16 * 1.6)
    assert boxes == [[100, 0, 125, 30]]


def test_min_side_keeps_equality_e27b() -> None:
    assert select([[0, 0, 15, 15]], [1.0], min_side=16.0)[0] == [[0, 0, 15, 15]]


def test_size_filter_comes_before_the_first_top_n_e34() -> None:
    boxes = [[0, 0, 3, 3], [100, 0, 199, 99], [300, 0, 399, 99], [500, 0, 599, 99]]
    _, scores = select(boxes, [0.9, 0.8, 0.7, 0.6], min_side=16.0, pre_nms_topk=2)
    assert scores == pytest.approx([0.8, 0.7])


def test_clip_comes_before_the_size_filter() -> None:
    """A wide box hanging out of the image keeps only its 10 px inside."""
    assert select([[-90, 0, 9, 99]], [1.0], min_side=16.0)[0] == []


def test_suppression_is_strict_e14() -> None:
    """IoU of [0,0,9,9] and [0,0,9,4] is exactly .5: both stay."""
    assert len(select([[0, 0, 9, 9], [0, 0, 9, 4]], [0.9, 0.8], nms_thresh=0.5)[0]) == 2


def test_order_and_final_top_n() -> None:
    boxes = [[0, 0, 99, 99], [200, 0, 299, 99], [400, 0, 499, 99]]
    kept, scores = select(boxes, [0.2, 0.9, 0.5], post_nms_topk=2)
    assert kept == [[200, 0, 299, 99], [400, 0, 499, 99]]
    assert scores == pytest.approx([0.9, 0.5])


def test_overlapping_box_is_suppressed() -> None:
    assert select([[0, 0, 99, 99], [2, 0, 101, 99]], [0.5, 0.9])[0] == [[2, 0, 101, 99]]


def test_not_finite_boxes() -> None:
    """NaN is dropped, an infinite side is clipped to the image."""
    boxes, _ = select([[float("nan"), 0, 9, 9], [-float("inf"), 0, float("inf"), 599]], [0.9, 0.8])
    assert boxes == [[0, 0, 999, 599]]


def test_nothing_in_nothing_out() -> None:
    assert select([], []) == ([], [])
    assert select([[0, 0, 3, 3]], [1.0], min_side=16.0) == ([], [])


def counted(boxes: list[list[float]], scores: list[float], **kwargs: object) -> Selection:
    return select_proposals(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        SIZE,
        **{"min_side": 16.0, "pre_nms_topk": 4, "post_nms_topk": 2, "nms_thresh": 0.5, **kwargs},
        count=True,
    )


def test_index_and_counts_of_every_step() -> None:
    """By hand: 6 boxes; row 1 is small; of 5 the best 4 enter; 4 overlaps 2 by .6; 2 of 3 stay."""
    boxes = [
        [0, 0, 100, 100],
        [200, 0, 210, 10],
        [300, 0, 400, 100],
        [500, 0, 600, 100],
        [300, 0, 360, 100],
        [700, 0, 800, 100],
    ]
    result = counted(boxes, [0.1, 0.9, 0.8, 0.3, 0.7, 0.6])
    assert result.indices.tolist() == [2, 5]
    assert result.boxes.tolist() == [boxes[2], boxes[5]]
    assert result.scores.tolist() == pytest.approx([0.8, 0.6])
    steps = ["candidates", "large", "pre_nms", "nms", "proposals"]
    assert list(result.counts.items()) == list(zip(steps, [6, 5, 4, 3, 2], strict=True))


def test_counting_changes_no_proposal() -> None:
    """More boxes than enter a suppression at a time, and more survivors than are wanted."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand((3000, 2), generator=generator) * torch.tensor([900.0, 500.0])
    boxes = torch.cat([corners, corners + 20 + 80 * torch.rand((3000, 2), generator=generator)], 1)
    scores = torch.rand(3000, generator=generator)
    options = {"min_side": 16.0, "pre_nms_topk": 2500, "post_nms_topk": 40, "nms_thresh": 0.3}
    plain = select_proposals(boxes, scores, SIZE, **options)
    with_counts = select_proposals(boxes, scores, SIZE, **options, count=True)
    assert plain.counts is None and with_counts.counts["proposals"] == 40
    assert 40 < with_counts.counts["nms"] < with_counts.counts["pre_nms"] == 2500
    for one, other in zip(plain[:3], with_counts[:3], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(scores[plain.indices], plain.scores)


@pytest.mark.parametrize(
    ("boxes", "numbers"),
    [([], [0, 0, 0, 0, 0]), ([[0.0, 0, 3, 3], [9.0, 9, 9, 99]], [2, 0, 0, 0, 0])],
    ids=["no boxes", "all too small"],
)
def test_counts_of_nothing(boxes: list[list[float]], numbers: list[int]) -> None:
    result = counted(boxes, [0.5] * len(boxes))
    assert result.boxes.shape == (0, 4) and result.indices.tolist() == []
    assert list(result.counts.values()) == numbers

"""Proposal selection.

Literals: examples E6, E13, E14, E27b, E34 (docs/worked_examples.md), or by hand.
"""

from __future__ import annotations

import pytest
import torch

from frcnn_plugin.modeling import Selection, select_proposals

ONE = torch.tensor([0.0, 0.0, 1.0, 1.0])
SIZE = (600, 1000)


@pytest.mark.parametrize(
    ("boxes", "scores", "options", "kept"),
    [
        ([[-5, -3, 1005, 605]], [1.0], {}, [[0, 0, 999, 599]]),  # E6: clipped
        # E13: at scale 1.6 sides below 25.6 px go; [0,0,24,30] is 25 wide, [0,0,25,30] is 26.
        (
            [[0, 0, 24, 30], [100, 0, 125, 30]],
            [0.9, 0.8],
            {"min_side": 16 * 1.6},
            [[100, 0, 125, 30]],
        ),
        ([[0, 0, 15, 15]], [1.0], {"min_side": 16.0}, [[0, 0, 15, 15]]),  # E27b: equality stays
        # E34: the size filter comes before the first top-N.
        (
            [[0, 0, 3, 3], [100, 0, 199, 99], [300, 0, 399, 99], [500, 0, 599, 99]],
            [0.9, 0.8, 0.7, 0.6],
            {"min_side": 16.0, "pre_nms_topk": 2},
            [[100, 0, 199, 99], [300, 0, 399, 99]],
        ),
        # Clipping comes before the size filter: of a wide box 10 px are in the image.
        ([[-90, 0, 9, 99]], [1.0], {"min_side": 16.0}, []),
        # E14: an IoU of exactly .5 is not suppressed.
        (
            [[0, 0, 9, 9], [0, 0, 9, 4]],
            [0.9, 0.8],
            {"nms_thresh": 0.5},
            [[0, 0, 9, 9], [0, 0, 9, 4]],
        ),
        ([[0, 0, 99, 99], [2, 0, 101, 99]], [0.5, 0.9], {}, [[2, 0, 101, 99]]),  # suppressed
        # By descending score, and the final top-N.
        (
            [[0, 0, 99, 99], [200, 0, 299, 99], [400, 0, 499, 99]],
            [0.2, 0.9, 0.5],
            {"post_nms_topk": 2},
            [[200, 0, 299, 99], [400, 0, 499, 99]],
        ),
        # NaN is dropped, an infinite side is clipped to the image.
        (
            [[float("nan"), 0, 9, 9], [-float("inf"), 0, float("inf"), 599]],
            [0.9, 0.8],
            {},
            [[0, 0, 999, 599]],
        ),
        ([], [], {}, []),
        ([[0, 0, 3, 3]], [1.0], {"min_side": 16.0}, []),
    ],
)
def test_which_boxes_stay(
    boxes: list[list[float]], scores: list[float], options: dict[str, float], kept: list
) -> None:
    defaults = {"min_side": 0.0, "pre_nms_topk": 0, "post_nms_topk": 100, "nms_thresh": 0.7}
    inclusive = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    selected = select_proposals(inclusive + ONE, torch.tensor(scores), SIZE, **(defaults | options))
    assert (selected.boxes - ONE).tolist() == kept
    assert selected.scores.tolist() == sorted(selected.scores.tolist(), reverse=True)
    assert torch.equal(torch.tensor(scores)[selected.indices], selected.scores)


def test_outside_boxes_stay_one_pixel_wide_without_a_minimum() -> None:
    """Against py-faster-rcnn's arithmetic on inclusive corners, box by box, with a minimum of 1."""
    generator = torch.Generator().manual_seed(0)
    corners = (torch.rand(60, 2, generator=generator) - 0.3) * torch.tensor([1800.0, 1000.0])
    sides = torch.rand(60, 2, generator=generator) * 300
    inclusive = torch.cat([corners, corners + sides], dim=1)
    scores = torch.rand(60, generator=generator)
    expected = []
    for (x1, y1, x2, y2), score in zip(inclusive.tolist(), scores.tolist(), strict=True):
        x1, x2 = (min(max(x, 0.0), 999.0) for x in (x1, x2))
        y1, y2 = (min(max(y, 0.0), 599.0) for y in (y1, y2))
        if x2 - x1 + 1 >= 1 and y2 - y1 + 1 >= 1:
            expected.append((score, [x1, y1, x2, y2]))
    expected = [box for _, box in sorted(expected, reverse=True)]
    options = {"min_side": 1.0, "pre_nms_topk": 0, "post_nms_topk": 100, "nms_thresh": 1.0}
    selected = select_proposals(inclusive + ONE, scores, SIZE, **options)
    assert len(expected) == 60
    assert sum(x1 == x2 or y1 == y2 for x1, y1, x2, y2 in expected) > 10
    torch.testing.assert_close(selected.boxes - ONE, torch.tensor(expected), atol=2e-4, rtol=0)


def test_scores_that_are_not_finite_are_dropped() -> None:
    scores = [float("nan"), 0.5, float("inf"), -float("inf")]
    result = counted([[0.0, 0, 50, 50]] * 4, scores)
    assert result.indices.tolist() == [1]


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

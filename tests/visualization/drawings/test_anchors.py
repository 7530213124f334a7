"""Labels of anchors: their reasons, on boxes whose IoUs are seen at once, and the pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes

from frcnn_plugin.visualization.drawings.anchors import (
    Reason,
    Sample,
    draw_anchors,
    draw_matches,
    draw_samples,
    explain_matches,
    spots,
)
from frcnn_plugin.visualization.drawings.objects import NO_OBJECTS
from frcnn_plugin.visualization.drawings.palette import BLUE, SKY, VERMILION

from .artists import IMAGE, TWO, boxes, heading, legend, objects, texts


def explain(anchors, labels, gt, inside=None):
    inside = torch.ones(len(anchors), dtype=torch.bool) if inside is None else torch.tensor(inside)
    first, second = (
        Boxes(torch.tensor(b, dtype=torch.float32).reshape(-1, 4)) for b in (anchors, gt)
    )
    return explain_matches(first, torch.tensor(labels), inside, second, (0.3, 0.7))


def test_every_reason() -> None:
    gt = [[0, 0, 10, 10], [100, 0, 110, 10]]
    anchors = [
        [0, 0, 10, 8],  # IoU .8 with the first
        [0, 0, 10, 5],  # .5, not its best
        [100, 0, 110, 4],  # .4, the best of the second
        [0, 0, 10, 2],  # .2
        [0, 0, 10, 10],  # 1, but over the border
    ]
    found = explain(anchors, [1, -1, 1, 0, -1], gt, [True] * 4 + [False])
    assert found.reason.tolist() == [
        Reason.ABOVE, Reason.BETWEEN, Reason.BEST, Reason.BELOW, Reason.OUTSIDE
    ]  # fmt: skip
    assert found.iou.tolist() == pytest.approx([0.8, 0.5, 0.4, 0.2, 0.0])
    assert found.best_object.tolist()[:4] == [0, 0, 1, 0]


def test_named_object_is_the_one_it_is_best_of() -> None:
    """The second anchor overlaps the first object more, but another is that one's best."""
    gt = [[0, 0, 10, 10], [8, 0, 18, 10]]
    # The second anchor: 7 / 13 = .54 with the first object, 5 / 15 = .33 with the second.
    found = explain([[0, 0, 10, 9], [3, 0, 13, 10]], [1, 1], gt)
    assert found.reason.tolist() == [Reason.ABOVE, Reason.BEST]
    assert found.best_object.tolist() == [0, 1]
    assert found.iou.tolist() == pytest.approx([0.9, 7 / 13])


@pytest.mark.parametrize(
    "anchors, label, gt, reason",
    [
        # Ties are all the best.
        ([[0, 0, 10, 5], [0, 5, 10, 10]], 1, [[0, 0, 10, 10]], Reason.BEST),
        # The originals' flaw (example E9c): nothing touches the object, so all are its best.
        ([[0, 0, 10, 10]], 1, [[50, 50, 60, 60]], Reason.BEST),
        ([[0, 0, 10, 10]], 0, [[50, 50, 60, 60]], Reason.BELOW),  # guarded
        ([[0, 0, 10, 10]], 0, [], Reason.BELOW),
    ],
)
def test_ties_and_no_overlap(anchors, label, gt, reason) -> None:
    found = explain(anchors, [label] * len(anchors), gt)
    assert found.reason.tolist() == [reason] * len(anchors)
    assert found.best_object.tolist() == [0 if gt else -1] * len(anchors)


def match_picture(gt: list[list[float]], labels: list[int]):
    """Two by one cells of 100 px with two anchors each; image pixels are network pixels."""
    anchors = [[10.0, 20, 60, 75], [10, 20, 60, 40], [100, 0, 190, 95], [-20, 0, 190, 95]]
    reasons = explain(anchors, labels, gt, [True] * 3 + [False])
    truth = objects(*((box, "dog", False) for box in gt)) if gt else NO_OBJECTS
    return draw_matches(IMAGE, np.array(anchors), reasons, (1, 2, 1, 2), (100.0, 100.0), truth, "7")


def test_matches() -> None:
    # IoUs 55/60, 20/60, 0: above, in between, below.
    canvas = match_picture([[10.0, 20, 60, 80]], [1, -1, 0, -1])
    assert "1 positive, 1 negative, 2 ignored anchors" in heading(canvas)
    assert legend(canvas)[:5] == [
        "positive: IoU >= 0.7 (1)", "positive: the best of an object (0)",
        "negative: IoU < 0.3 (1)", "ignored: in between (1)", "ignored: crosses the border (1)",
    ]  # fmt: skip
    left, right = canvas.axes
    assert boxes(left, BLUE) == [(10, 20, 60, 75)] and boxes(left, SKY) == []
    assert "0.92" in texts(left)
    # The map: one row of two cells with two spots each, over 200 x 100 image pixels.
    table = right.images[1]
    assert table.get_array().shape == (1, 4, 4) and list(table.get_extent()) == [0, 200, 100, 0]
    assert right.get_xlim() == (0, 200)


def test_matches_without_objects() -> None:
    canvas = match_picture([], [0, 0, 0, -1])
    assert "0 positive, 3 negative, 1 ignored" in heading(canvas)
    assert boxes(canvas.axes[0]) == []


def test_every_object_has_an_anchor_among_those_drawn() -> None:
    """80 anchors above the threshold, and one best anchor of low IoU."""
    many = [[0.0, 0, 50, 50]] * 80 + [[100.0, 0, 130, 30]]
    truth = objects(([0.0, 0, 50, 50], "dog", False), ([100, 0, 130, 80], "cat", False))
    reasons = explain(many, [1] * 81, truth.boxes.tolist())
    canvas = draw_matches(IMAGE, np.array(many), reasons, (1, 1, 9, 9), (16.0, 16.0), truth, "7")
    assert "81 positive" in heading(canvas)
    left = canvas.axes[0]
    assert left.get_title("left") == "60 of 81 positive anchors, highest IoU first"
    assert boxes(left, SKY) == [(100, 0, 130, 30)]
    assert "best of 2: 0.38" in texts(left)  # 900 / 2400


def test_spots_are_laid_out_cell_by_cell() -> None:
    reason = np.arange(1 * 2 * 6)  # two cells with six anchors
    assert spots(reason, (1, 2, 2, 3)).tolist() == [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
    ]


def test_anchors_reach_beyond_the_image() -> None:
    anchors = np.array([[90.0, 40, 110, 60], [-50, 20, 250, 80]])
    canvas = draw_anchors(
        IMAGE, anchors, np.array([[32.0, 32], [480, 96]]), np.array([True, False]), [1.0, 0.5],
        np.array([95.0, 45, 105, 55]), "cell",
    )  # fmt: skip
    assert "1 of 2 inside the image" in heading(canvas)
    axes = canvas.axes[0]
    assert axes.get_xlim() == (-54, 254) and axes.get_ylim() == (104, -4)  # 2% of 200 around
    assert boxes(axes, dash="--") == [(-50, 20, 250, 80)]
    assert (90, 40, 110, 60) in boxes(axes, dash="-") and (95, 45, 105, 55) in boxes(axes)
    assert sorted(texts(axes)) == ["32 x 32", "480 x 96"]


def test_samples() -> None:
    positive, negative = np.array([[10.0, 20, 60, 80]]), np.array([[0.0, 0, 20, 20]] * 3)
    rpn = Sample("RPN anchors", positive, negative)
    head = Sample("head RoIs", positive[:0], negative, ("foreground", "background"))
    canvas = draw_samples(IMAGE, [rpn, head], TWO, "7")
    title = heading(canvas)
    assert "4 = 1 positive + 3 negative" in title and "3 = 0 foreground + 3 background" in title
    assert boxes(canvas.axes[0], BLUE) == [(10, 20, 60, 80)]
    assert len(boxes(canvas.axes[0], VERMILION)) == len(boxes(canvas.axes[1], VERMILION)) == 3
    assert boxes(canvas.axes[1], BLUE) == []
    centres = canvas.axes[0].lines[1].get_xydata()
    assert centres.tolist() == [[35, 50]]
    nothing = Sample("RPN anchors", positive[:0], positive[:0])
    assert "0 = 0 positive + 0 negative" in heading(draw_samples(IMAGE, [nothing], NO_OBJECTS, "7"))

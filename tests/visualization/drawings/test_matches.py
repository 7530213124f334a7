"""Labels of anchors: their reasons, on boxes whose IoUs are seen at once, and the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes

from frcnn_plugin.visualization import Objects, Reason, draw_matches, explain_matches
from frcnn_plugin.visualization.drawings.matches import spots
from frcnn_plugin.visualization.drawings.palette import BLUE, SKY

from .artists import IMAGE, boxes, heading, legend, texts

LIMITS = (0.3, 0.7)


def explain(anchors, labels, gt, inside=None):
    inside = torch.ones(len(anchors), dtype=torch.bool) if inside is None else torch.tensor(inside)
    boxes = (Boxes(torch.tensor(b, dtype=torch.float32).reshape(-1, 4)) for b in (anchors, gt))
    first, second = boxes
    return explain_matches(first, torch.tensor(labels), inside, second, LIMITS)


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
    assert [found.count(reason) for reason in Reason] == [1, 1, 1, 1, 1]


def test_named_object_is_the_one_it_is_best_of() -> None:
    """The anchor overlaps the first more, but another anchor is that one's best."""
    gt = [[0, 0, 10, 10], [8, 0, 18, 10]]
    anchors = [[0, 0, 10, 9], [4, 0, 14, 10]]
    # Second anchor: 6 / 14 with the first, 6 / 14 with the second: make it .43 and less.
    anchors[1] = [3, 0, 13, 10]  # 7 / 13 = .54 with the first, 5 / 15 = .33 with the second
    found = explain(anchors, [1, 1], gt)
    assert found.reason.tolist() == [Reason.ABOVE, Reason.BEST]
    assert found.best_object.tolist() == [0, 1]
    assert found.iou.tolist() == pytest.approx([0.9, 7 / 13])


def test_ties_are_all_best() -> None:
    gt = [[0, 0, 10, 10]]
    found = explain([[0, 0, 10, 5], [0, 5, 10, 10]], [1, 1], gt)
    assert found.reason.tolist() == [Reason.BEST] * 2


def test_zero_iou_is_best_where_the_model_says_so() -> None:
    """The originals' flaw (example E9c): nothing touches the object, so all are its best."""
    found = explain([[0, 0, 10, 10]], [1], [[50, 50, 60, 60]])
    assert found.reason.tolist() == [Reason.BEST]
    guarded = explain([[0, 0, 10, 10]], [0], [[50, 50, 60, 60]])
    assert guarded.reason.tolist() == [Reason.BELOW]


def test_without_objects_or_anchors() -> None:
    found = explain([[0, 0, 10, 10]], [0], [])
    assert found.reason.tolist() == [Reason.BELOW] and found.best_object.tolist() == [-1]
    assert explain([], [], [[0, 0, 1, 1]]).reason.tolist() == []


@pytest.mark.parametrize("label, gt", [(1, [[0, 0, 10, 3]]), (0, [[0, 0, 10, 9]]), (-1, [])])
def test_label_of_another_rule_is_not_explained_away(label: int, gt: list) -> None:
    """Positive though another is the best; negative at .9; ignored without objects."""
    anchors = [[0, 0, 10, 10], [0, 0, 10, 3]]
    with pytest.raises(ValueError, match=r"anchor 0 has label .* no rule with the thresholds 0\.3"):
        explain(anchors, [label, 1 if gt else 0], gt)


def match_picture(gt: list[list[float]]):
    """Two by one cells of 100 px with two anchors each; image pixels are network pixels."""
    anchors = torch.tensor(
        [[10.0, 20, 60, 75], [10, 20, 60, 40], [100, 0, 190, 95], [-20, 0, 190, 95]]
    )
    labels = torch.tensor([1, 0, 0, -1] if not gt else [1, -1, 0, -1])
    if not gt:
        labels[0] = 0
    inside = torch.tensor([True, True, True, False])
    boxes_ = Boxes(torch.tensor(gt).reshape(-1, 4))
    reasons = explain_matches(Boxes(anchors), labels, inside, boxes_, (0.3, 0.7))
    truth = Objects(np.array(gt).reshape(-1, 4), ["dog"] * len(gt), np.zeros(len(gt), dtype=bool))
    return reasons, draw_matches(
        IMAGE, anchors.double().numpy(), reasons, (1, 2, 1, 2), (100.0, 100.0), truth, "7"
    )


def test_matches() -> None:
    # IoUs 55/60, 20/60, 0: above, in between, below.
    reasons, canvas = match_picture([[10.0, 20, 60, 80]])
    assert [reasons.count(reason) for reason in Reason] == [1, 0, 1, 1, 1]
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
    _, canvas = match_picture([])
    assert "0 positive, 3 negative, 1 ignored" in heading(canvas)
    assert boxes(canvas.axes[0]) == []


def test_every_object_has_an_anchor_among_those_drawn() -> None:
    """80 anchors above the threshold, and one best anchor of low IoU."""
    many = torch.tensor([[0.0, 0, 50, 50]] * 80 + [[100.0, 0, 130, 30]])
    gt = Boxes(torch.tensor([[0.0, 0, 50, 50], [100, 0, 130, 80]]))
    inside = torch.ones(81, dtype=torch.bool)
    reasons = explain_matches(Boxes(many), torch.ones(81), inside, gt, (0.3, 0.7))
    truth = Objects(gt.tensor.double().numpy(), ["dog", "cat"], np.zeros(2, dtype=bool))
    canvas = draw_matches(
        IMAGE, many.double().numpy(), reasons, (1, 1, 9, 9), (16.0, 16.0), truth, "7"
    )
    assert "81 positive" in heading(canvas)
    assert canvas.axes[0].get_title("left") == (
        "60 of 81 positive anchors, highest IoU first"
    )  # fmt: skip
    assert boxes(canvas.axes[0], SKY) == [(100, 0, 130, 30)]
    assert "best of 2: 0.38" in texts(canvas.axes[0])  # 900 / 2400


def test_spots_are_laid_out_cell_by_cell() -> None:
    reason = np.arange(1 * 2 * 6)  # two cells with six anchors
    assert spots(reason, (1, 2, 2, 3)).tolist() == [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
    ]

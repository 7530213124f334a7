"""Reasons, on boxes whose IoUs are seen at once."""

from __future__ import annotations

import pytest
import torch
from detectron2.structures import Boxes

from frcnn_plugin.visualization import Reason, explain_matches

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
    """The originals' flaw (check E9c): nothing touches the object, so all are its best."""
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

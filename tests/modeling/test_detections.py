"""From a head's boxes to detections. Check E20 (docs/checks.md), or by hand."""

from __future__ import annotations

import pytest
import torch

from frcnn_plugin.modeling.detections import select_detections

FAR = torch.tensor([[100.0 * i, 0.0, 100.0 * i + 10.0, 10.0] for i in range(5)])


def select(boxes: torch.Tensor, scores: list[float], classes: list[int], **options) -> list[int]:
    settings = {"nms_thresh": 0.3, "topk": 100, **options}
    return select_detections(
        boxes, torch.tensor(scores), torch.tensor(classes), **settings
    ).tolist()


@pytest.mark.parametrize(
    ("topk", "ties", "expected"),
    [
        (2, True, 4),
        (2, False, 2),
        (4, True, 4),
        (5, True, 5),
        (9, True, 5),
        (-1, True, 5),
        (0, True, 0),
        (0, False, 0),
    ],
)
def test_limit_e20(topk: int, ties: bool, expected: int) -> None:
    kept = select(FAR, [0.8, 0.9, 0.8, 0.1, 0.8], [0, 1, 0, 1, 0], topk=topk, keep_ties=ties)
    assert len(kept) == expected
    assert kept[:1] == [1][:expected]


def test_classes_do_not_suppress_each_other() -> None:
    same = FAR[:1].repeat(3, 1)
    assert select(same, [0.5, 0.9, 0.7], [0, 3, 0]) == [1, 2]


def test_the_class_does_not_change_coordinates() -> None:
    """IoU 3 / 10.0002 < .3, whatever the class; in float32 at class 79 it would be 3 / 10."""
    boxes = torch.tensor([[0.0, 0.0, 10.0002, 1.0], [0.0, 0.0, 3.0, 1.0], [0.0, 0.0, 999.0, 1.0]])
    threshold = 0.2999970
    kept = [select(boxes, [0.9, 0.8, 0.7], [k, k, 0], nms_thresh=threshold) for k in (1, 79)]
    assert kept == [[0, 1, 2], [0, 1, 2]]


def test_nothing() -> None:
    assert select(FAR[:0], [], [], keep_ties=True) == []

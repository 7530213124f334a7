"""From a head's boxes to detections. Example E20 (docs/worked_examples.md), or by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from detectron2.structures import Boxes, Instances

from frcnn_plugin.modeling.roi_heads.detections import (
    detection_candidates,
    select_detections,
    to_original_size,
)

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
    assert select(FAR[:0], [], [], topk=topk, keep_ties=ties) == []


def test_classes_do_not_suppress_each_other() -> None:
    same = FAR[:1].repeat(3, 1)
    assert select(same, [0.5, 0.9, 0.7], [0, 3, 0]) == [1, 2]


def test_the_class_does_not_change_coordinates() -> None:
    """IoU 3 / 10.0002 < .3, whatever the class; in float32 at class 79 it would be 3 / 10."""
    boxes = torch.tensor([[0.0, 0.0, 10.0002, 1.0], [0.0, 0.0, 3.0, 1.0], [0.0, 0.0, 999.0, 1.0]])
    threshold = 0.2999970
    kept = [select(boxes, [0.9, 0.8, 0.7], [k, k, 0], nms_thresh=threshold) for k in (1, 79)]
    assert kept == [[0, 1, 2], [0, 1, 2]]


# ---- as Detectron2 does it, with fewer waits ---------------------------------------------------

SIZE = (300, 400)


def scored_boxes(count: int, classes: int, shared: bool, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    columns = 1 if shared else classes
    corner = torch.rand(count, columns, 2, generator=generator) * 420 - 20
    sides = torch.rand(count, columns, 2, generator=generator) * 100
    boxes = torch.cat([corner, corner + sides], dim=2).flatten(1)
    scores = (torch.randn(count, classes + 1, generator=generator) * 2).softmax(dim=1)
    return boxes, scores


def as_lists(result: Instances, rows: torch.Tensor) -> list[list[float]]:
    fields = (result.pred_boxes.tensor, result.scores[:, None], result.pred_classes[:, None])
    return torch.cat([*(f.double() for f in fields), rows[:, None].double()], dim=1).tolist()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("count", [0, 1, 80])
def test_candidates_are_detectron2s(count: int, shared: bool) -> None:
    """Detectron2's function with a threshold that suppresses nothing, by descending score."""
    boxes, scores = scored_boxes(count, 4, shared)
    if count > 2:
        boxes[1, 2], scores[2, 0] = float("nan"), float("inf")
    expected = fast_rcnn_inference_single_image(boxes.clone(), scores, SIZE, 0.05, 2.0, -1)
    boxes, scores, classes, rows = detection_candidates(boxes, scores, SIZE, 0.05)
    order = scores.argsort(descending=True)
    result = Instances(SIZE, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
    assert as_lists(result[order], rows[order]) == as_lists(*expected)
    assert (len(rows) > 0) == (count > 0)


@pytest.mark.parametrize("name", ["pred_boxes", "proposal_boxes"])
def test_scaling_equals_detectron2s(name: str) -> None:
    """Boxes outside the image have no area after clipping and go, with all their fields."""
    result = Instances(SIZE)
    tensor = torch.tensor([[10.0, 20, 50, 60], [-9, 0, 0, 9], [390, 290, 480, 350], [5, 5, 5, 9]])
    result.set(name, Boxes(tensor))
    result.scores = torch.arange(4.0)
    expected = detector_postprocess(copy.deepcopy(result), 450, 500)
    actual = to_original_size(result, 450, 500)
    assert actual.scores.tolist() == expected.scores.tolist() == [0, 2]
    assert actual.get(name).tensor.tolist() == expected.get(name).tensor.tolist()
    assert actual.image_size == (450, 500)


def test_the_best_of_each_class_enter_nms() -> None:
    """Two of each class; of the second class one is above the threshold."""
    boxes = torch.arange(16.0).view(4, 4).sort(dim=1).values
    scores = torch.tensor([[0.1, 0.6, 0.3], [0.4, 0.05, 0.5], [0.3, 0.0, 0.7], [0.2, 0.0, 0.8]])
    found = detection_candidates(boxes, scores, (100, 100), 0.05, topk_per_class=2)
    pairs = sorted(zip(found[3].tolist(), found[2].tolist(), strict=True))
    assert pairs == [(0, 1), (1, 0), (2, 0)]
    every = detection_candidates(boxes, scores, (100, 100), 0.05)
    more = detection_candidates(boxes, scores, (100, 100), 0.05, topk_per_class=9)
    assert len(every[1]) == len(more[1]) == 5
    nothing = detection_candidates(boxes[:0], scores[:0], (100, 100), 0.05, topk_per_class=2)
    assert len(nothing[1]) == 0

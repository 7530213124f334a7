"""Soft-NMS, alone and in the heads. Examples S1 to S3 (docs/worked_examples.md), or a loop."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, pairwise_iou

from frcnn_plugin.errors import UserError
from frcnn_plugin.layers import soft_nms
from frcnn_plugin.modeling import (
    CaffeBox2BoxTransform,
    PaperFastRCNNOutputLayers,
    select_detections,
    suppress,
)
from tests.conftest import make_input

BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [2, 0, 12, 10], [20, 20, 30, 30]])
SCORES = torch.tensor([0.9, 0.8, 0.7, 0.6])
SOFT = ("linear", "gaussian")
either = pytest.mark.parametrize("method", SOFT)


@pytest.mark.parametrize(
    ("method", "kept", "scores"),
    [
        ("hard", [0, 3], [0.9, 0.6]),  # S1
        ("linear", [0, 3, 1, 2], [0.9, 0.6, 0.4, 0.148485]),  # S2
        ("gaussian", [0, 3, 1, 2], [0.9, 0.6, 0.485225, 0.220904]),  # S3
    ],
)
def test_methods_s1_s2_s3(method: str, kept: list[int], scores: list[float]) -> None:
    found, decayed = suppress(
        BOXES, SCORES, torch.zeros(4, dtype=torch.int64), method=method, thresh=0.3
    )
    assert found.tolist() == kept
    assert decayed.tolist() == pytest.approx(scores, abs=5e-7)


def random_boxes(count: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    corner = 60 * torch.rand(count, 2, generator=generator)
    boxes = torch.cat([corner, corner + 60 * torch.rand(count, 2, generator=generator)], dim=1)
    scores = torch.rand(count, generator=generator) ** 4
    return boxes, scores, torch.randint(classes, (count,), generator=generator)


def by_the_rule(boxes, scores, classes, method: str) -> dict[int, float]:
    """What soft-nms says, box by box: decayed score of each box that is kept."""
    overlaps = pairwise_iou(Boxes(boxes), Boxes(boxes)).tolist()
    kept = {}
    for k in set(classes.tolist()):
        left = {i: float(scores[i]) for i in (classes == k).nonzero().flatten().tolist()}
        while left:
            best = max(left, key=left.__getitem__)
            kept[best] = left.pop(best)
            for i in list(left):
                iou = overlaps[best][i]
                if method == "gaussian":
                    left[i] *= math.exp(-(iou**2) / 0.5)
                elif iou > 0.3:
                    left[i] *= 1 - iou
                if left[i] < 0.001:
                    del left[i]
    return kept


@either
def test_many_boxes_of_many_classes(method: str) -> None:
    boxes, scores, classes = random_boxes(200, 5)
    classes[classes == 2] = 7  # not every class has boxes
    expected = by_the_rule(boxes, scores, classes, method)
    found, decayed = soft_nms(boxes, scores, classes, method=method)
    assert dict(zip(found.tolist(), decayed.tolist(), strict=True)) == pytest.approx(expected)
    assert torch.equal(decayed, decayed.sort(descending=True).values)
    assert len(found) < 200  # some fell below the least score
    for limit in (0, 1, 37):
        first, of_first = soft_nms(boxes, scores, classes, method=method, limit=limit)
        assert torch.equal(first, found[:limit]) and torch.equal(of_first, decayed[:limit])


@either
def test_best_of_a_class_stays_and_ties_pass_the_limit(method: str) -> None:
    boxes = 100.0 * torch.arange(5)[:, None] + BOXES[:1]  # apart
    scores = torch.tensor([9e-4, 8e-4, 0.5, 0.5, 0.5])
    classes = torch.tensor([0, 0, 1, 1, 2])
    found, _ = soft_nms(boxes, scores, classes, method=method)
    assert found.tolist() == [2, 3, 4, 0]
    found, _ = soft_nms(boxes, scores, classes, method=method, limit=2)
    assert found.tolist() == [2, 3, 4]
    found, decayed = soft_nms(boxes[:0], scores[:0], classes[:0], method=method)
    assert found.tolist() == decayed.tolist() == []
    flat = torch.zeros(2, 4)  # without area: no IoU
    assert len(soft_nms(flat, scores[2:4], classes[2:4], method=method)[0]) == 2
    with pytest.raises(ValueError, match="hard"):
        soft_nms(flat, scores[:2], classes[:2], method="hard")


@pytest.mark.parametrize(("ties", "count"), [(False, 2), (True, 3)])
@either
def test_limit_of_the_predictor(method: str, ties: bool, count: int) -> None:
    predictor = PaperFastRCNNOutputLayers(
        ShapeSpec(channels=4),
        box2box_transform=CaffeBox2BoxTransform((10, 10, 5, 5)),
        num_classes=2,
        test_nms_thresh=0.3,
        test_topk_per_image=2,
        keep_ties=ties,
        nms_method=method,
    )
    proposals = Instances((100, 500))
    proposals.proposal_boxes = Boxes(100.0 * torch.arange(4)[:, None] + BOXES[:1])
    logits = torch.tensor([[0.5, 0, 0.5], [0.2, 0, 0.8], [0.5, 0, 0.5], [0.5, 0, 0.5]]).log()
    (result,), (rows,) = predictor.inference((logits, torch.zeros(4, 8)), [proposals])
    assert len(result) == count and rows.tolist() == [0, 2, 3][:count]
    assert set(result.pred_classes.tolist()) == {0}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@either
def test_in_a_model(tiny_cfg, method: str, dtype: str) -> None:
    """Two images, one of them odd; the hard boxes are among the soft ones, with their scores."""
    torch.manual_seed(0)
    cfg = tiny_cfg(
        *("MODEL.ROI_HEADS.NMS_METHOD_TEST", method),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1e-4),
        *("MODEL.PAPER_RCNN.INFERENCE_DTYPE", dtype),
        *("TEST.DETECTIONS_PER_IMAGE", -1),
    )
    model = build_model(cfg).eval()
    batch = [make_input(96, 128, []), make_input(75, 101, [])]
    with torch.no_grad():
        soft = [x["instances"] for x in model(batch)]
        model.roi_heads.box_predictor.nms_method = "hard"
        hard = [x["instances"] for x in model(batch)]
    for few, many in zip(hard, soft, strict=True):
        assert 0 < len(few) < len(many)
        assert (many.scores[:-1] >= many.scores[1:]).all()
        assert torch.equal(few.pred_boxes.tensor[0], many.pred_boxes.tensor[0])


@either
def test_detections_know_their_proposals(tiny_cfg, method: str) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg("MODEL.ROI_HEADS.NMS_METHOD_TEST", method)).eval()
    with torch.no_grad():
        images, features = model.features([make_input(96, 128, [])])
        proposals = model.propose(images, features)
        (found,) = model.detect(images, features, proposals, with_features=True)
    of_class = found.scores_all[torch.arange(len(found)), found.pred_classes]
    assert len(found) and (found.scores <= of_class).all() and (found.scores < of_class).any()
    expected = proposals[0].proposal_boxes.tensor[found.proposal_index]
    assert torch.equal(found.proposal_boxes.tensor, expected)


@pytest.mark.filterwarnings("ignore")  # of the tracer
def test_what_cannot_be(tiny_cfg) -> None:
    with pytest.raises(UserError, match=r"NMS_METHOD_TEST is 'soft': use one of hard, linear"):
        build_model(tiny_cfg("MODEL.ROI_HEADS.NMS_METHOD_TEST", "soft"))
    model = build_model(tiny_cfg("MODEL.ROI_HEADS.NMS_METHOD_TEST", "linear")).eval()
    item = [{"image": make_input(96, 128, [])["image"]}]
    adapter = TracingAdapter(model, item, lambda model, x: model.inference(x, do_postprocess=False))
    with pytest.raises(UserError, match=r"linear', which cannot be exported: set it to hard"):
        torch.jit.trace(adapter.eval(), adapter.flattened_inputs, check_trace=False)


def test_select_detections_is_hard() -> None:
    kept = select_detections(
        BOXES, SCORES, torch.zeros(4, dtype=torch.int64), nms_thresh=0.3, topk=1
    )
    assert kept.tolist() == [0]

"""Sampling of RoIs, and the heads as a whole. Examples E10b, E10c (docs/worked_examples.md)."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from frcnn_plugin.modeling import CaffeROIHeads, InclusiveROIPooler
from tests.conftest import make_instances

SHAPE = {"conv5": ShapeSpec(channels=8, stride=16)}


AVAILABLE = [(10, 500), (100, 500), (0, 500), (40, 5)]


@pytest.mark.parametrize(
    ("batch", "sampled"),
    [
        (64, [(10, 54), (16, 48), (0, 64), (16, 5)]),  # E10b
        (128, [(10, 118), (32, 96), (0, 128), (32, 5)]),  # E10c
    ],
)
def test_sampling_e10b_e10c(tiny_cfg, batch: int, sampled: list[tuple[int, int]]) -> None:
    heads = build_roi_heads(tiny_cfg("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", batch), SHAPE)
    for (fg, bg), expected in zip(AVAILABLE, sampled, strict=True):
        matched_labels = torch.tensor([1] * fg + [0] * bg)
        _, classes = heads._sample_proposals(
            torch.zeros(fg + bg, dtype=torch.int64), matched_labels, torch.tensor([1])
        )
        assert ((classes == 1).sum(), (classes == 3).sum()) == expected


def proposals_with_iou(ious: list[float]) -> Instances:
    """Proposals of the given IoU with the ground truth (0, 0, 100, 100): its left part."""
    proposals = Instances((100, 100))
    boxes = [[0.0, 0.0, 100.0 * iou, 100.0] for iou in ious]
    proposals.proposal_boxes = Boxes(torch.tensor(boxes))
    proposals.objectness_logits = torch.zeros(len(ious))
    return proposals


@pytest.mark.parametrize(
    ("thresholds", "labels", "expected"),
    [
        ([0.5], [0, 1], {0.05: 3, 0.2: 3, 0.5: 1, 0.9: 1}),  # py-faster-rcnn: [0, .5)
        ([0.1, 0.5], [-1, 0, 1], {0.2: 3, 0.5: 1, 0.9: 1}),  # paper, MATLAB: [.1, .5)
    ],
)
def test_background_window(
    tiny_cfg, thresholds: list[float], labels: list[int], expected: dict[float, int]
) -> None:
    cfg = tiny_cfg(
        *("MODEL.ROI_HEADS.IOU_THRESHOLDS", thresholds),
        *("MODEL.ROI_HEADS.IOU_LABELS", labels),
        *("MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0),
        *("MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", False),
    )
    gt = make_instances((100, 100), [[0, 0, 100, 100]], [1])
    with EventStorage():
        (sampled,) = build_roi_heads(cfg, SHAPE).label_and_sample_proposals(
            [proposals_with_iou([0.05, 0.2, 0.5, 0.9])], [gt]
        )
    ious = [round(w, 2) for w in (sampled.proposal_boxes.tensor[:, 2] / 100).tolist()]
    classes = dict(zip(ious, sampled.gt_classes.tolist(), strict=True))
    assert classes == expected


def test_ground_truth_is_appended(tiny_cfg) -> None:
    gt = make_instances((100, 100), [[0, 0, 100, 100]], [2])
    with EventStorage():
        (sampled,) = build_roi_heads(tiny_cfg(), SHAPE).label_and_sample_proposals(
            [proposals_with_iou([0.2])], [gt]
        )
    assert [0, 0, 100, 100] in sampled.proposal_boxes.tensor.tolist()
    assert sorted(sampled.gt_classes.tolist()) == [2, 3]


@pytest.mark.parametrize("train", [True, False])
def test_no_proposals(tiny_cfg, train: bool) -> None:
    heads = build_roi_heads(tiny_cfg(), SHAPE).train(train)
    empty = Instances((64, 64))
    empty.proposal_boxes = Boxes(torch.zeros(0, 4))
    empty.objectness_logits = torch.zeros(0)
    features = {"conv5": torch.rand(1, 8, 4, 4, requires_grad=True)}
    gt = [make_instances((64, 64), [])] if train else None
    with EventStorage():
        instances, losses = heads(None, features, [empty], gt)
    if train:
        total = sum(losses.values())
        assert total.item() == 0
        total.backward()  # the graph is there, or several processes would wait forever
        assert heads.box_predictor.cls_score.weight.grad is not None
    else:
        assert len(instances[0]) == 0


def test_other_poolers_stay_detectron2s(tiny_cfg) -> None:
    heads = build_roi_heads(tiny_cfg("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"), SHAPE)
    assert isinstance(heads, CaffeROIHeads) and isinstance(heads.box_pooler, ROIPooler)
    assert isinstance(build_roi_heads(tiny_cfg(), SHAPE).box_pooler, InclusiveROIPooler)

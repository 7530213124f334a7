"""RPN head, labels, sampling, proposals. Checks E3d, E9*, E10, E23 (docs/checks.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import EventStorage

from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import PaperRPN, ScaledImageSize, SoftmaxRPNHead
from tests.conftest import make_instances
from tests.modeling.proposal_generator.rpn_parts import FixedAnchors, make_rpn


def labels_of(iou_rows: list[list[float]], **kwargs: Any) -> tuple[list[int], list[int]]:
    """Labels and matched ground truths for an IoU table, one row per anchor."""
    iou = torch.tensor(iou_rows).T  # (G, I)
    rpn = make_rpn(**kwargs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "frcnn_plugin.modeling.proposal_generator.rpn.pairwise_iou", lambda gt, anchors: iou
        )
        labels, matched = rpn.match_anchors(
            Boxes(torch.zeros(iou.shape[1], 4)), Boxes(torch.zeros(iou.shape[0], 4))
        )
    return labels.tolist(), matched.tolist()


# ---- labels -------------------------------------------------------------------------------


def test_labels_e9() -> None:
    labels, matched = labels_of([[0.75, 0.10], [0.65, 0.25], [0.20, 0.28], [0.05, 0.28], [0, 0]])
    assert labels == [1, -1, 1, 1, 0]
    assert matched == [0, 0, 1, 1, 0]


def test_thresholds_e9b() -> None:
    assert labels_of([[0.9], [0.7], [0.3], [0.2999]])[0] == [1, 1, -1, 0]


@pytest.mark.parametrize(("guard", "expected"), [(False, [1, 1, 1]), (True, [1, 0, 0])])
def test_gt_without_any_overlap_e9c(guard: bool, expected: list[int]) -> None:
    assert labels_of([[0.8, 0], [0.1, 0], [0, 0]], guard_zero_iou=guard)[0] == expected


def test_guard_keeps_the_indices_of_the_other_ground_truths() -> None:
    """Ground truth 0 touches nothing; anchor 0 still regresses to ground truth 2."""
    labels, matched = labels_of([[0, 0.1, 0.8], [0, 0.6, 0.2]])
    assert labels == [1, 1]
    assert matched == [2, 1]


def test_no_ground_truth_touches_any_anchor() -> None:
    assert labels_of([[0.0], [0.0]])[0] == [0, 0]


def test_anchor_regresses_to_its_own_best_e9d() -> None:
    labels, matched = labels_of([[0.5, 0.4], [0.1, 0.2]])
    assert labels == [1, 0]
    assert matched[0] == 0


def test_outside_anchors_are_dropped_before_matching_e9e() -> None:
    """IoU .60 (outside), .40, .10: the ground truth's best *inside* anchor is positive.

    Ground truth 0..20 x 0..20 (area 400). Anchor 0: -5..15 x 0..20: 300 / 500 = .6, outside.
    Anchor 1: 0..20 x 0..8: 160 / 400 = .4. Anchor 2: 0..20 x 0..2: 40 / 400 = .1.
    """
    anchors = Boxes(torch.tensor([[-5.0, 0, 15, 20], [0.0, 0, 20, 8], [0.0, 0, 20, 2]]))
    labels, _ = make_rpn().label_and_sample_anchors(
        [anchors], [make_instances((50, 50), [[0, 0, 20, 20]])]
    )
    assert labels[0].tolist() == [-1, 1, 0]


def test_anchor_flush_with_the_image_is_inside() -> None:
    anchors = Boxes(torch.tensor([[0.0, 0.0, 50.0, 50.0]]))
    labels, boxes = make_rpn().label_and_sample_anchors(
        [anchors], [make_instances((50, 50), [[0, 0, 50, 50]])]
    )
    assert labels[0].tolist() == [1]
    assert boxes[0].tolist() == [[0, 0, 50, 50]]


# ---- sampling -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("available", "sampled"),
    [
        ((20, 5000), (20, 236)),
        ((300, 5000), (128, 128)),
        ((3, 100), (3, 100)),
        ((200, 50), (128, 50)),
    ],
)
def test_sampling_e10(available: tuple[int, int], sampled: tuple[int, int]) -> None:
    torch.manual_seed(0)
    positives, negatives = available
    labels = torch.tensor([1] * positives + [0] * negatives + [-1] * 7, dtype=torch.int8)
    labels = make_rpn()._subsample_labels(labels)
    assert ((labels == 1).sum(), (labels == 0).sum()) == sampled


def test_image_without_objects_gives_negatives_only() -> None:
    anchors = Boxes(torch.tensor([[0.0, 0, 10, 10]] * 300 + [[-1.0, 0, 10, 10]]))
    labels, _ = make_rpn().label_and_sample_anchors([anchors], [make_instances((50, 50), [])])
    assert (labels[0] == 0).sum() == 256
    assert labels[0][-1] == -1


def test_image_smaller_than_all_anchors_trains_on_nothing() -> None:
    anchors = Boxes(torch.tensor([[-4.0, -4, 12, 12]]))
    gt = [make_instances((8, 8), [[0, 0, 8, 8]])]
    labels, boxes = make_rpn().label_and_sample_anchors([anchors], gt)
    logits = torch.zeros(1, 1, requires_grad=True)
    deltas = torch.zeros(1, 1, 4, requires_grad=True)
    with EventStorage():
        losses = make_rpn().losses([anchors], [logits], labels, [deltas], boxes)
    sum(losses.values()).backward()
    assert {k: v.item() for k, v in losses.items()} == {"loss_rpn_cls": 0, "loss_rpn_loc": 0}
    assert logits.grad is not None and logits.grad.abs().sum() == 0


# ---- head ---------------------------------------------------------------------------------


def test_head_layout_e3d() -> None:
    """A = 9: the object score of anchor 4 is channel 13, its background channel 4."""
    head = SoftmaxRPNHead(in_channels=2, num_anchors=9)
    with torch.no_grad():
        head.rpn_cls_score.weight.zero_()
        head.rpn_cls_score.bias[13] = 2.0
        head.rpn_cls_score.bias[4] = -1.0
        head.rpn_bbox_pred.weight.zero_()
        head.rpn_bbox_pred.bias.copy_(torch.arange(36.0))
        logits, deltas = head([torch.zeros(1, 2, 3, 5)])
    assert logits[0].shape == (1, 9, 3, 5)
    assert logits[0][0, :, 1, 1].tolist() == [0, 0, 0, 0, 3.0, 0, 0, 0, 0]
    assert deltas[0][0, 16:20, 0, 0].tolist() == [16, 17, 18, 19]  # dx, dy, dw, dh of anchor 4


def test_head_parameters_e23() -> None:
    head = SoftmaxRPNHead(in_channels=512, num_anchors=9)
    counts = {n: p.numel() for n, p in head.named_parameters()}
    assert counts == {
        "rpn_conv.weight": 2_359_296,
        "rpn_conv.bias": 512,
        "rpn_cls_score.weight": 9_216,
        "rpn_cls_score.bias": 18,
        "rpn_bbox_pred.weight": 18_432,
        "rpn_bbox_pred.bias": 36,
    }
    for name, parameter in head.named_parameters():
        if name.endswith("weight"):
            assert parameter.std().item() == pytest.approx(0.01, rel=0.05)
        else:
            assert parameter.abs().sum() == 0


def test_more_than_one_conv_is_refused(tiny_cfg) -> None:
    cfg = tiny_cfg("MODEL.RPN.CONV_DIMS", [8, 8])
    with pytest.raises(UserError, match=r"CONV_DIMS is \[8, 8\].*one 3x3 conv"):
        build_proposal_generator(cfg, {"conv5": ShapeSpec(channels=8, stride=16)})


# ---- proposals ----------------------------------------------------------------------------


def propose(
    rpn: PaperRPN, size: tuple[int, int], deltas: list[list[float]], logits: list[float]
) -> list[list[float]]:
    anchors = rpn.anchor_generator([])
    (result,) = rpn.predict_proposals(
        anchors, [torch.tensor([logits])], [torch.tensor([deltas])], [size]
    )
    return result.proposal_boxes.tensor.tolist()


def test_minimum_size_is_in_original_pixels() -> None:
    rpn = make_rpn(anchor_generator=FixedAnchors([[0, 0, 25, 31], [100, 0, 126, 31]])).eval()
    deltas, logits = [[0.0] * 4] * 2, [1.0, 0.5]
    kept = propose(rpn, ScaledImageSize((600, 800), 1.6), deltas, logits)
    assert kept == [[100, 0, 126, 31]]  # 25 < 16 * 1.6 <= 26
    assert len(propose(rpn, (600, 800), deltas, logits)) == 2  # scale 1


def test_hosts_minimum_size_is_applied_as_well() -> None:
    rpn = make_rpn(anchor_generator=FixedAnchors([[0, 0, 25, 31]]), min_box_size=30.0).eval()
    assert propose(rpn, (600, 800), [[0.0] * 4], [1.0]) == []


def test_all_boxes_may_go() -> None:
    rpn = make_rpn(anchor_generator=FixedAnchors([[0, 0, 4, 4]])).eval()
    assert propose(rpn, (600, 800), [[0.0] * 4], [1.0]) == []


def test_counts_differ_between_training_and_test() -> None:
    boxes = [[i * 100.0, 0.0, i * 100.0 + 50, 50.0] for i in range(6)]
    rpn = make_rpn(anchor_generator=FixedAnchors(boxes), post_nms_topk=(5, 3))
    deltas, logits = [[0.0] * 4] * 6, [float(i) for i in range(6)]
    assert len(propose(rpn.train(), (600, 800), deltas, logits)) == 5
    assert len(propose(rpn.eval(), (600, 800), deltas, logits)) == 3


def test_by_registry_name(tiny_cfg) -> None:
    torch.manual_seed(0)
    rpn = build_proposal_generator(tiny_cfg(), {"conv5": ShapeSpec(channels=8, stride=16)})
    assert isinstance(rpn, PaperRPN) and isinstance(rpn.rpn_head, SoftmaxRPNHead)
    images = ImageList(torch.zeros(2, 3, 96, 128), [(96, 128), (90, 100)])
    features = {"conv5": torch.rand(2, 8, 6, 8)}
    gt = [make_instances((96, 128), [[10, 10, 60, 60]]), make_instances((90, 100), [])]
    with EventStorage():
        proposals, losses = rpn(images, features, gt)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc"}
    assert len(proposals) == 2
    for p, (height, width) in zip(proposals, images.image_sizes, strict=True):
        boxes = p.proposal_boxes.tensor
        assert len(boxes) > 0 and not boxes.requires_grad
        assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        logits = p.objectness_logits
        assert torch.equal(logits, logits.sort(descending=True).values)

"""Decoding and losses. By hand, or examples E5*, E11d, E14b, E18, E28 (docs/worked_examples.md)."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import (
    CaffeBox2BoxTransform,
    PaperFastRCNNOutputLayers,
    ScaledImageSize,
)
from tests.modeling.parts import random_statistics


def make_predictor(**kwargs: object) -> PaperFastRCNNOutputLayers:
    options = {
        "box2box_transform": CaffeBox2BoxTransform((10, 10, 5, 5)),
        "num_classes": 2,
        "smooth_l1_beta": 1.0,
        "test_nms_thresh": 0.3,
        "test_score_thresh": 0.05,
    }
    return PaperFastRCNNOutputLayers(ShapeSpec(channels=4), **{**options, **kwargs})


def proposals(boxes: list[list[float]], scale: float) -> list[Instances]:
    result = Instances(ScaledImageSize((600, 800), scale))
    result.proposal_boxes = Boxes(torch.tensor(boxes))
    return [result]


@pytest.mark.parametrize(
    ("options", "scale", "expected"),
    [
        ({}, 1.6, [16, 16, 32, 48]),  # E5b: the proposal itself
        ({"decode_growth": 1.0}, 1.6, [16, 16, 33.6, 49.6]),  # one pixel of the original
        # Inclusive corners are divided: (16, 16, 31, 47) / 2 = (8, 8, 15.5, 23.5), plus the one
        # pixel of the continuous form, times 2.
        ({"decode_in_image": True}, 2.0, [16, 16, 33, 49]),
        # py-faster-rcnn: inclusive (8, 8, 16.5, 24.5) in the image, so (.., 17.5, 25.5) * 2.
        ({"decode_in_image": True, "decode_growth": 1.0}, 2.0, [16, 16, 35, 51]),
    ],
)
def test_decoding_of_zero_deltas(options: dict, scale: float, expected: list[float]) -> None:
    predictions = (torch.zeros(1, 3), torch.zeros(1, 8))
    given = proposals([[16.0, 16, 32, 48]], scale)
    (boxes,) = make_predictor(**options).predict_boxes(predictions, given)
    assert boxes.view(2, 4).tolist() == [pytest.approx(expected)] * 2


def test_inference_uses_strict_float32_nms_e14b() -> None:
    """Two boxes of IoU exactly .3 both stay; a score of exactly .05 does not."""
    predictor = make_predictor()
    boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 3.0], [50.0, 50.0, 60.0, 60.0]]
    logits = torch.tensor([[0.9, 0, 0.1], [0.8, 0, 0.2], [0.05, 0, 0.95]]).log()
    (result,), _ = predictor.inference((logits, torch.zeros(3, 8)), proposals(boxes, 1.0))
    assert result.scores.tolist() == pytest.approx([0.9, 0.8])


def test_boxes_outside_the_image_stay_one_pixel_wide() -> None:
    """Image 60x80, scale 10: proposals around x 795..799, one pixel right of it and far left."""
    predictor = make_predictor(decode_in_image=True, box2box_transform=CaffeBox2BoxTransform())
    deltas = torch.tensor([[9.0, 0, 0, 0] * 2, [-99.0, 0, 0, 0] * 2])
    (given,) = proposals([[700.0, 100.0, 800.0, 200.0]] * 2, 10.0)
    (boxes,) = predictor.predict_boxes((torch.zeros(2, 3), deltas), [given])
    # By hand: y from (100, 199) / 10 = 10, 19.9, one pixel more: 20.9, times 10.
    assert boxes[0, :4].tolist() == pytest.approx([790, 100, 800, 209])
    assert boxes[1, :4].tolist() == pytest.approx([0, 100, 10, 209])


def test_boxes_come_back_by_the_ratios_of_the_sides() -> None:
    """py's scale of 333x500 is 600 / 333; Detectron2 divides x by 901 / 500."""
    given = Instances(ScaledImageSize((600, 901), 600 / 333, (333, 500)))
    predictor = make_predictor(decode_in_image=True)
    # By hand: inclusive (0, 0, 900, 599) / 1.8018 = (.., 499.5, 332.445), one more, clipped to 500.
    for box, expected in (
        ([0.0, 0, 901, 600], [0, 0, 500, 333]),
        ([0.0, 0, 801, 501], [0, 0, 445, 278.5]),
    ):
        given.proposal_boxes = Boxes(torch.tensor([box]))
        (boxes,) = predictor.predict_boxes((torch.zeros(1, 3), torch.zeros(1, 8)), [given])
        image = boxes[0, :4] / torch.tensor([901 / 500, 600 / 333] * 2)
        assert image.tolist() == pytest.approx(expected, abs=1e-4)


def test_no_proposals() -> None:
    predictor = make_predictor(decode_in_image=True, decode_growth=1.0)
    empty = [proposals([[0.0] * 4], 1.6)[0][:0]]
    (boxes,) = predictor.predict_boxes((torch.zeros(0, 3), torch.zeros(0, 8)), empty)
    assert boxes.shape == (0, 8)


# ---- losses -------------------------------------------------------------------------------


SHAPE = {"conv5": ShapeSpec(channels=8, stride=16)}


def sampled_rois(num: int) -> Instances:
    """One foreground RoI of class 1, equal to its ground truth, and background."""
    rois = Instances((100, 100))
    rois.proposal_boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]] * num))
    rois.gt_boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]] * num))
    rois.gt_classes = torch.tensor([1] + [3] * (num - 1))
    return rois


def test_box_loss_is_divided_by_all_rois_e11d(tiny_cfg) -> None:
    predictor = build_roi_heads(tiny_cfg(), SHAPE).box_predictor
    deltas = torch.zeros(128, 3, 4)
    deltas[0, 1] = torch.tensor([0.05, -0.2, 0.0, 0.5])
    deltas.requires_grad_()
    scores = torch.zeros(128, 4, requires_grad=True)
    with EventStorage():
        losses = predictor.losses((scores, deltas.view(128, 12)), [sampled_rois(128)])
    assert losses["loss_box_reg"].item() == pytest.approx(0.00114258, abs=1e-7)
    sum(losses.values()).backward()
    # By hand, sigma 1: d / 128 on the ground-truth class of the foreground RoI, nothing elsewhere.
    assert deltas.grad is not None and scores.grad is not None
    expected = torch.zeros(128, 3, 4)
    expected[0, 1] = torch.tensor([0.05, -0.2, 0.0, 0.5]) / 128
    assert torch.allclose(deltas.grad, expected, atol=1e-8)
    # By hand: (softmax - onehot) / 128; four equal logits have softmax 1/4.
    onehot = torch.zeros(128, 4)
    onehot[0, 1] = onehot[1:, 3] = 1.0
    assert torch.allclose(scores.grad, (0.25 - onehot) / 128, atol=1e-8)


def test_new_layers_are_initialised_as_the_originals(tiny_cfg) -> None:
    predictor = build_roi_heads(tiny_cfg("MODEL.ROI_BOX_HEAD.FC_DIM", 2048), SHAPE).box_predictor
    assert predictor.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert predictor.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.05)


@pytest.mark.parametrize("foreground", [0, 5])
def test_losses_and_statistics_are_detectron2s(tiny_cfg, foreground: int) -> None:
    predictor = build_roi_heads(tiny_cfg(), SHAPE).box_predictor
    torch.manual_seed(0)
    rois = sampled_rois(20)
    rois.gt_classes = torch.tensor([i % 3 for i in range(foreground)] + [3] * (20 - foreground))
    rois.proposal_boxes.tensor[:, 2] += torch.arange(20.0)
    if not foreground:
        rois.remove("gt_boxes")
    predictions = torch.randn(20, 4), torch.randn(20, 12)
    with EventStorage() as expected_storage:
        expected = FastRCNNOutputLayers.losses(predictor, predictions, [rois])
    with EventStorage() as storage:
        actual = predictor.losses(predictions, [rois])
    assert {k: v.item() for k, v in actual.items()} == {k: v.item() for k, v in expected.items()}
    assert storage.latest() == expected_storage.latest() and len(storage.latest()) >= 1


def weighted_losses(
    predictor: PaperFastRCNNOutputLayers, weights: list[list[float] | None]
) -> dict[str, float]:
    """Losses of two images with two RoIs each: classes 0, background; 1, 1.

    By hand: logits (0, ln 2, ln 5) have probabilities 1/8, 2/8, 5/8. Deltas are off by (1, 0, 0, 0)
    from targets of 0, whose smooth L1 is .5.
    """
    images = []
    for classes, weight in zip(([0, 2], [1, 1]), weights, strict=True):
        rois = Instances((100, 100))
        rois.proposal_boxes = Boxes(torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 2))
        rois.gt_boxes, rois.gt_classes = rois.proposal_boxes, torch.tensor(classes)
        if weight is not None:
            rois.loss_weights = torch.tensor(weight)
        images.append(rois)
    predictions = torch.tensor([[1.0, 2.0, 5.0]] * 4).log(), torch.tensor([[1.0, 0, 0, 0] * 2] * 4)
    with EventStorage():
        losses = predictor.losses(predictions, images)
    for name, per_roi in predictor.losses_per_roi(predictions, images).items():
        assert per_roi.shape == (4,)
        assert per_roi.mean().item() == pytest.approx(losses[name].item())
    return {name: loss.item() for name, loss in losses.items()}


# Minus log of the probability of the true class, RoI by RoI.
CROSS_ENTROPIES = [math.log(8), math.log(8 / 5), math.log(4), math.log(4)]


@pytest.mark.parametrize(
    ("class_weights", "roi_weights", "cls", "box"),
    [
        ([], [None, None], [1, 1, 1, 1], [1, 0, 1, 1]),
        ([3, 0.5, 2], [None, None], [3, 2, 0.5, 0.5], [1, 0, 1, 1]),
        ([], [[2, 4], [0, 0.5]], [2, 4, 0, 0.5], [2, 0, 0, 0.5]),
        ([], [None, [0, 0.5]], [1, 1, 0, 0.5], [1, 0, 0, 0.5]),
        ([3, 0, 2], [[2, 4], None], [6, 8, 0, 0], [2, 0, 1, 1]),
    ],
)
@pytest.mark.parametrize("with_statistics", [False, True])
def test_weights_of_classes_and_rois(
    class_weights: list[float], roi_weights: list, cls: list, box: list, with_statistics: bool
) -> None:
    """Weights change the sums, never the divisor, which is the number of RoIs."""
    predictor = plain_predictor(class_weights=class_weights)
    if with_statistics:
        predictor.target_statistics.set(torch.zeros(2, 4), torch.ones(2, 4))
    losses = weighted_losses(predictor, roi_weights)
    expected = sum(w * e for w, e in zip(cls, CROSS_ENTROPIES, strict=True)) / 4
    assert losses["loss_cls"] == pytest.approx(expected, rel=1e-6)
    assert losses["loss_box_reg"] == pytest.approx(sum(0.5 * w for w in box) / 4, rel=1e-6)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
@pytest.mark.parametrize("with_statistics", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
def test_weights_of_one_change_nothing(kind: str, with_statistics: bool, agnostic: bool) -> None:
    predictor = plain_predictor(box_reg_loss_type=kind, cls_agnostic_bbox_reg=agnostic)
    rows = 1 if agnostic else 2
    if with_statistics:
        predictor.target_statistics.set(*random_statistics(rows))
    deltas = 0.1 * torch.randn(4, 4 * rows, generator=torch.Generator().manual_seed(0))
    boxes, gt = torch.tensor([PROPOSAL] * 4), torch.tensor([GT] * 4)
    classes = torch.tensor([1, 2, 0, 0])
    loss = predictor.box_reg_loss(boxes, gt, deltas, classes)
    ones = predictor.box_reg_loss(boxes, gt, deltas, classes, torch.ones(4))
    assert loss.item() == pytest.approx(ones.item(), rel=1e-6) and loss > 0
    # An independent sum: of each foreground RoI alone, which 4 divides instead of 1.
    weights = torch.tensor([0.5, 9.0, 2.0, 0.0])
    one_by_one = [
        predictor.box_reg_loss(boxes[:1], gt[:1], deltas[i : i + 1], classes[i : i + 1])
        for i in range(4)
    ]
    expected = (0.5 * one_by_one[0] + 2 * one_by_one[2]) / 4
    actual = predictor.box_reg_loss(boxes, gt, deltas, classes, weights)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)


def test_weights_without_rois() -> None:
    predictor = plain_predictor(class_weights=[1, 2, 3])
    empty = sampled_rois(1)[:0]
    empty.loss_weights = torch.zeros(0)
    with EventStorage():
        losses = predictor.losses((torch.zeros(0, 3), torch.zeros(0, 8)), [empty])
    assert [x.item() for x in losses.values()] == [0, 0]
    per_roi = predictor.losses_per_roi((torch.zeros(0, 3), torch.zeros(0, 8)), [empty])
    assert [x.shape for x in per_roi.values()] == [(0,), (0,)]


def test_class_weights_by_key_are_not_in_checkpoints(tiny_cfg) -> None:
    key = "MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS"
    predictor = build_roi_heads(tiny_cfg(key, [1, 2.5, 1, 0]), SHAPE).box_predictor
    assert predictor.class_weights.tolist() == [1, 2.5, 1, 0]
    assert not [name for name in predictor.state_dict() if "class_weights" in name]
    assert build_roi_heads(tiny_cfg(), SHAPE).box_predictor.class_weights is None


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, -1.0, 1.0], [1.0, math.nan, 1.0]])
def test_class_weights_that_cannot_be_used(weights: list[float]) -> None:
    with pytest.raises(UserError, match=r"CLASS_WEIGHTS is .* it needs 3 numbers of 0 or more"):
        make_predictor(class_weights=weights)


def test_weights_are_for_the_softmax_loss() -> None:
    with pytest.raises(UserError, match="CLASS_WEIGHTS is for the softmax loss"):
        make_predictor(class_weights=[1, 1, 1], use_sigmoid_ce=True)
    with pytest.raises(UserError, match="loss_weights of RoIs are for the softmax loss"):
        weighted_losses(make_predictor(use_sigmoid_ce=True), [[1, 1], None])


# ---- target statistics --------------------------------------------------------------------


# E5: proposal and ground truth, and the raw deltas between them.
PROPOSAL, GT = [0.0, 0.0, 10.0, 10.0], [1.0, 2.0, 13.0, 17.0]
E5 = [0.2, 0.45, 0.182322, 0.405465]


def plain_predictor(**kwargs: object) -> PaperFastRCNNOutputLayers:
    """Without box weights."""
    return make_predictor(**{"box2box_transform": CaffeBox2BoxTransform(), **kwargs})


def loss_of(
    predictor: FastRCNNOutputLayers, deltas: torch.Tensor, classes: list[int]
) -> torch.Tensor:
    rows = len(classes)
    return predictor.box_reg_loss(
        torch.tensor([PROPOSAL] * rows),
        torch.tensor([GT] * rows),
        deltas,
        torch.tensor(classes),
    )


def test_normalised_targets_e28() -> None:
    """Mean 0, deviations .1, .1, .2, .2: targets 2, 4.5, .911608, 2.027326, as by the weights."""
    predictor = plain_predictor()
    predictor.target_statistics.set(torch.zeros(2, 4), torch.tensor([[0.1, 0.1, 0.2, 0.2]] * 2))
    targets = torch.tensor([[2.0, 4.5, 0.911608, 2.027326] * 2])
    assert loss_of(predictor, targets, [1]).item() == pytest.approx(0, abs=1e-5)
    by_weights = make_predictor()
    deltas = torch.randn(3, 8)
    assert loss_of(predictor, deltas, [0, 1, 2]).item() == pytest.approx(
        loss_of(by_weights, deltas, [0, 1, 2]).item(), rel=1e-5
    )


def test_loss_and_gradient_by_hand() -> None:
    """Class 1 of 2, mean .1, deviation .5, three RoIs of which one is foreground.

    The target is (E5 - .1) / .5 = (.2, .7, .164644, .61093). Predicted is the target plus
    (.5, -.5, 2, 0). Smooth L1: .125 + .125 + 1.5 + 0 = 1.75, over 3 RoIs.
    """
    predictor = plain_predictor()
    predictor.target_statistics.set(
        torch.tensor([[9.0] * 4, [0.1] * 4]), torch.tensor([[9.0] * 4, [0.5] * 4])
    )
    deltas = torch.zeros(3, 8)
    deltas[1, 4:] = (torch.tensor(E5) - 0.1) / 0.5 + torch.tensor([0.5, -0.5, 2.0, 0.0])
    deltas.requires_grad_()
    loss = loss_of(predictor, deltas, [2, 1, -1])
    loss.backward()
    assert loss.item() == pytest.approx(1.75 / 3, abs=1e-5)
    assert deltas.grad is not None
    expected = torch.zeros(3, 8)
    expected[1, 4:] = torch.tensor([0.5, -0.5, 1, 0]) / 3
    assert torch.allclose(deltas.grad, expected, atol=1e-5)


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_without_statistics_it_is_the_loss_of_detectron2(loss_type: str, agnostic: bool) -> None:
    kwargs = {"box_reg_loss_type": loss_type, "cls_agnostic_bbox_reg": agnostic}
    stock = FastRCNNOutputLayers(
        ShapeSpec(channels=4),
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
        num_classes=2,
        smooth_l1_beta=1.0,
        **kwargs,
    )
    ours = make_predictor(**kwargs)
    deltas = torch.randn(4, 4 if agnostic else 8)
    classes = [0, 2, 1, -1]
    expected = loss_of(stock, deltas, classes)
    assert torch.equal(loss_of(ours, deltas, classes), expected)
    # Statistics that mean "stock" give the same by the other path.
    rows = ours.target_statistics.num_classes
    assert rows == (1 if agnostic else 2)
    ours.target_statistics.set(torch.zeros(rows, 4), torch.ones(rows, 4))
    assert loss_of(ours, deltas, classes).item() == pytest.approx(expected.item(), rel=1e-6)


def test_iou_losses_see_decoded_boxes() -> None:
    predictor = plain_predictor(box_reg_loss_type="giou")
    predictor.target_statistics.set(torch.full((2, 4), 0.1), torch.full((2, 4), 0.5))
    perfect = ((torch.tensor([E5]) - 0.1) / 0.5).repeat(1, 2)
    assert loss_of(predictor, perfect, [1]).item() == pytest.approx(0, abs=1e-4)


def test_no_foreground_keeps_the_graph() -> None:
    predictor = plain_predictor()
    predictor.target_statistics.set(*random_statistics(2))
    deltas = torch.zeros(2, 8, requires_grad=True)
    loss = loss_of(predictor, deltas, [2, 2])
    loss.backward()
    assert loss.item() == 0 and deltas.grad is not None and deltas.grad.abs().sum() == 0


@pytest.mark.parametrize("agnostic", [False, True])
def test_perfect_predictions_decode_to_the_ground_truth(agnostic: bool) -> None:
    predictor = plain_predictor(cls_agnostic_bbox_reg=agnostic)
    rows = predictor.target_statistics.num_classes
    mean, std = random_statistics(rows)
    predictor.target_statistics.set(mean, std)
    deltas = ((torch.tensor(E5) - mean) / std).view(1, -1)
    proposals = Instances((50, 50))
    proposals.proposal_boxes = Boxes(torch.tensor([PROPOSAL]))
    proposals.gt_classes = torch.tensor([1])
    predictions = (torch.zeros(1, 3), deltas)
    (boxes,) = predictor.predict_boxes(predictions, [proposals])
    assert boxes.flatten().tolist() == pytest.approx(GT * rows, abs=1e-4)
    (boxes,) = predictor.predict_boxes_for_gt_classes(predictions, [proposals])
    assert boxes.flatten().tolist() == pytest.approx(GT, abs=1e-4)

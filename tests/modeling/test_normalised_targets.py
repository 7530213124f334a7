"""Detectors that predict normalised box targets. Checks E5, E11c, E28 (docs/checks.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from frcnn_plugin.modeling import CaffeBox2BoxTransform, PaperFastRCNNOutputLayers, PaperRPN
from tests.conftest import make_input
from tests.modeling.proposal_generator.rpn_parts import make_rpn
from tests.modeling.random_statistics import K, random_statistics

# ---- the head -----------------------------------------------------------------------------------

# E5: proposal and ground truth whose raw deltas are (.2, .45, .182322, .405465).
PROPOSAL, GT = [0.0, 0.0, 10.0, 10.0], [1.0, 2.0, 13.0, 17.0]
E5 = [0.2, 0.45, 0.182322, 0.405465]


def make_predictor(**kwargs: Any) -> PaperFastRCNNOutputLayers:
    options: dict[str, Any] = {
        "box2box_transform": CaffeBox2BoxTransform(),
        "num_classes": 2,
        "smooth_l1_beta": 1.0,
    }
    return PaperFastRCNNOutputLayers(ShapeSpec(channels=4), **{**options, **kwargs})


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
    predictor = make_predictor()
    predictor.target_statistics.set(torch.zeros(2, 4), torch.tensor([[0.1, 0.1, 0.2, 0.2]] * 2))
    targets = torch.tensor([[2.0, 4.5, 0.911608, 2.027326] * 2])
    assert loss_of(predictor, targets, [1]).item() == pytest.approx(0, abs=1e-5)
    by_weights = make_predictor(box2box_transform=CaffeBox2BoxTransform((10, 10, 5, 5)))
    deltas = torch.randn(3, 8)
    assert loss_of(predictor, deltas, [0, 1, 2]).item() == pytest.approx(
        loss_of(by_weights, deltas, [0, 1, 2]).item(), rel=1e-5
    )


def test_loss_and_gradient_by_hand() -> None:
    """Class 1 of 2, mean .1, deviation .5, three RoIs of which one is foreground.

    The target is (E5 - .1) / .5 = (.2, .7, .164644, .61093). Predicted is the target plus
    (.5, -.5, 2, 0). Smooth L1: .125 + .125 + 1.5 + 0 = 1.75, over 3 RoIs.
    """
    predictor = make_predictor()
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
def test_without_statistics_it_is_the_loss_of_the_host(loss_type: str, agnostic: bool) -> None:
    kwargs = {"box_reg_loss_type": loss_type, "cls_agnostic_bbox_reg": agnostic}
    stock = FastRCNNOutputLayers(
        ShapeSpec(channels=4),
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
        num_classes=2,
        smooth_l1_beta=1.0,
        **kwargs,
    )
    ours = make_predictor(box2box_transform=CaffeBox2BoxTransform((10, 10, 5, 5)), **kwargs)
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
    predictor = make_predictor(box_reg_loss_type="giou")
    predictor.target_statistics.set(torch.full((2, 4), 0.1), torch.full((2, 4), 0.5))
    perfect = ((torch.tensor([E5]) - 0.1) / 0.5).repeat(1, 2)
    assert loss_of(predictor, perfect, [1]).item() == pytest.approx(0, abs=1e-4)


def test_no_foreground_keeps_the_graph() -> None:
    predictor = make_predictor()
    predictor.target_statistics.set(*random_statistics(2))
    deltas = torch.zeros(2, 8, requires_grad=True)
    loss = loss_of(predictor, deltas, [2, 2])
    loss.backward()
    assert loss.item() == 0 and deltas.grad is not None and deltas.grad.abs().sum() == 0


@pytest.mark.parametrize("agnostic", [False, True])
def test_perfect_predictions_decode_to_the_ground_truth(agnostic: bool) -> None:
    predictor = make_predictor(cls_agnostic_bbox_reg=agnostic)
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


# ---- the RPN ------------------------------------------------------------------------------------


def rpn_loss(rpn: PaperRPN, deltas: torch.Tensor) -> torch.Tensor:
    """Box loss of one positive and two negative anchors."""
    anchors = [Boxes(torch.tensor([PROPOSAL] * 3))]
    labels = [torch.tensor([1, 0, 0], dtype=torch.int8)]
    with EventStorage():
        losses = rpn.losses(
            anchors,
            [torch.zeros(1, 3)],
            labels,
            [deltas],
            # A ground truth of zeros, as where there is none: its log is -inf.
            [torch.tensor([GT, [0.0] * 4, [0.0] * 4])],
        )
    return losses["loss_rpn_loc"]


def test_rpn_loss_and_gradient_by_hand() -> None:
    """As in the head: 1.75 over 3 samples."""
    rpn = make_rpn(smooth_l1_beta=1.0)
    rpn.target_statistics.set(torch.full((1, 4), 0.1), torch.full((1, 4), 0.5))
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 0] = (torch.tensor(E5) - 0.1) / 0.5 + torch.tensor([0.5, -0.5, 2.0, 0.0])
    deltas.requires_grad_()
    loss = rpn_loss(rpn, deltas)
    loss.backward()
    assert loss.item() == pytest.approx(1.75 / 3, abs=1e-5)
    assert deltas.grad is not None
    expected = torch.zeros(1, 3, 4)
    expected[0, 0] = torch.tensor([0.5, -0.5, 1, 0]) / 3
    assert torch.allclose(deltas.grad, expected, atol=1e-5)


def test_rpn_without_statistics_is_unchanged() -> None:
    """The literal of E11c, one positive of three, differences (.05, -.2, 0, .5)."""
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 0] = torch.tensor(E5) + torch.tensor([0.05, -0.2, 0.0, 0.5])
    assert rpn_loss(make_rpn(), deltas).item() == pytest.approx(0.200046, abs=1e-5)


def test_rpn_decodes_whitened_predictions() -> None:
    rpn = make_rpn(min_size_image=0.0).eval()
    mean, std = random_statistics(1)
    rpn.target_statistics.set(mean, std)
    deltas = ((torch.tensor(E5) - mean) / std).view(1, 1, 4)
    (proposals,) = rpn.predict_proposals(
        [Boxes(torch.tensor([PROPOSAL]))], [torch.zeros(1, 1)], [deltas], [(50, 50)]
    )
    assert proposals.proposal_boxes.tensor.flatten().tolist() == pytest.approx(GT, abs=1e-4)


# ---- the whole detector -------------------------------------------------------------------------


def test_detector_with_folded_statistics_is_the_same_detector(tiny_cfg) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg()).eval()
    predictor, rpn = model.roi_heads.box_predictor, model.proposal_generator
    predictor.test_score_thresh = 0.0
    nn.init.normal_(predictor.bbox_pred.weight, std=0.2)
    nn.init.normal_(rpn.rpn_head.rpn_bbox_pred.weight, std=0.2)
    batch = [make_input(97, 131, [])]

    def boxes() -> torch.Tensor:
        with torch.no_grad():
            return model(batch)[0]["instances"].pred_boxes.tensor

    plain = boxes()
    # Larger than what bbox regression weights of 10, 10, 5, 5 stand for.
    predictor.target_statistics.set(*random_statistics(K))
    rpn.target_statistics.set(*random_statistics(1))
    normalised = boxes()
    assert normalised.shape != plain.shape or not torch.allclose(normalised, plain, atol=1e-2)

    predictor.target_statistics.fold(predictor.bbox_pred)
    rpn.target_statistics.fold(rpn.rpn_head.rpn_bbox_pred)
    assert torch.allclose(boxes(), normalised, atol=1e-3)


def test_training_with_statistics_reaches_every_parameter(tiny_cfg) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg()).train()
    model.roi_heads.box_predictor.target_statistics.set(*random_statistics(K))
    model.proposal_generator.target_statistics.set(*random_statistics(1))
    with EventStorage():
        losses = model([make_input(97, 131, [[10.0, 12.0, 60.0, 70.0]])])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name

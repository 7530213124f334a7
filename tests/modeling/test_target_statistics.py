"""Normalised box targets. Literals by hand, or checks E5, E18, E28 (docs/checks.md)."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import (
    CaffeBox2BoxTransform,
    PaperFastRCNNOutputLayers,
    PaperRPN,
    TargetStatistics,
)
from tests.conftest import make_input
from tests.modeling.test_rpn import make_rpn

K = 3


def random_statistics(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = 0.2 * torch.randn(rows, 4, generator=generator)
    return mean, 0.05 + torch.rand(rows, 4, generator=generator)


def random_layer(kind: str) -> tuple[nn.Linear | nn.Conv2d, torch.Tensor, int]:
    """A layer as at the end of training, an input, and the rows of its statistics."""
    torch.manual_seed(1)
    if kind == "linear":
        return nn.Linear(16, 4 * K), torch.randn(50, 16), K
    if kind == "agnostic":
        return nn.Linear(16, 4), torch.randn(50, 16), 1
    return nn.Conv2d(16, 4 * 9, 1), torch.randn(2, 16, 5, 7), 1


def stock_deltas(
    statistics: TargetStatistics, layer: nn.Module, x: torch.Tensor, rows: int
) -> torch.Tensor:
    """What boxes are decoded from, (R, rows * 4)."""
    out = layer(x)
    if out.dim() == 4:  # (N, 4A, H, W), channel 4a + j
        out = out.permute(0, 2, 3, 1)
    return statistics.denormalise(out.reshape(-1, 4 * rows))


# ---- the module ---------------------------------------------------------------------------------


def test_fold_e18() -> None:
    layer = nn.Linear(1, 4)
    nn.init.constant_(layer.weight, 0.5)
    nn.init.constant_(layer.bias, 0.3)
    statistics = TargetStatistics(1)
    statistics.set(torch.full((1, 4), 0.01), torch.full((1, 4), 0.2))
    statistics.fold(layer)
    assert layer.weight.flatten().tolist() == pytest.approx([0.1] * 4)
    assert layer.bias.tolist() == pytest.approx([0.07] * 4)
    assert not statistics.active


@pytest.mark.parametrize("kind", ["linear", "agnostic", "conv"])
def test_fold_and_unfold_keep_the_function(kind: str) -> None:
    layer, x, rows = random_layer(kind)
    statistics = TargetStatistics(rows)
    statistics.set(*random_statistics(rows))
    before = stock_deltas(statistics, layer, x, rows)

    statistics.fold(layer)
    assert torch.allclose(stock_deltas(statistics, layer, x, rows), before, atol=1e-6)

    statistics.unfold(layer, *random_statistics(rows, seed=1))
    assert statistics.active
    assert torch.allclose(stock_deltas(statistics, layer, x, rows), before, atol=1e-6)


def test_other_statistics_keep_the_function() -> None:
    """W *= s / s', b = (b s + m - m') / s'."""
    layer, x, _ = random_layer("linear")
    (mean, std), (new_mean, new_std) = random_statistics(K), random_statistics(K, seed=1)
    statistics = TargetStatistics(K)
    statistics.set(mean, std)
    before = stock_deltas(statistics, layer, x, K)
    weight = layer.weight * (std / new_std).view(-1, 1)
    bias = (layer.bias * std.flatten() + (mean - new_mean).flatten()) / new_std.flatten()

    statistics.unfold(layer, new_mean, new_std)
    assert torch.allclose(layer.weight, weight, atol=1e-6)
    assert torch.allclose(layer.bias, bias, atol=1e-6)
    assert torch.equal(statistics.mean, new_mean) and torch.equal(statistics.std, new_std)
    assert torch.allclose(stock_deltas(statistics, layer, x, K), before, atol=1e-6)


def test_fold_and_unfold_work_in_place() -> None:
    """The optimizer holds the parameters."""
    layer, _, _ = random_layer("linear")
    parameters = [(p, p.data_ptr()) for p in layer.parameters()]
    statistics = TargetStatistics(K)
    statistics.unfold(layer, *random_statistics(K))
    statistics.fold(layer)
    for parameter, (old, pointer) in zip(layer.parameters(), parameters, strict=True):
        assert parameter is old and parameter.data_ptr() == pointer
        assert parameter.requires_grad and parameter.is_leaf


def test_nothing_set_changes_nothing() -> None:
    statistics = TargetStatistics(K)
    deltas, classes = torch.randn(5, 4), torch.zeros(5, dtype=torch.int64)
    layer, _, _ = random_layer("linear")
    weight = layer.weight.clone()
    statistics.fold(layer)
    assert statistics.normalise(deltas, classes) is deltas
    assert statistics.denormalise(deltas) is deltas
    assert torch.equal(layer.weight, weight)
    assert not statistics.state_dict()


def test_normalise_takes_the_row_of_the_class() -> None:
    statistics = TargetStatistics(2)
    statistics.set(torch.tensor([[0.0] * 4, [1.0, 2, 3, 4]]), torch.tensor([[1.0] * 4, [2.0] * 4]))
    deltas = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1]])
    assert statistics.normalise(deltas, torch.tensor([1, 0])).tolist() == [
        [0, -0.5, -1, -1.5],
        [1, 1, 1, 1],
    ]
    assert statistics.denormalise(torch.ones(1, 8)).tolist() == [[1, 1, 1, 1, 3, 4, 5, 6]]


def test_statistics_are_copies() -> None:
    mean, std = random_statistics(1)
    statistics = TargetStatistics(1)
    statistics.set(mean, std)
    mean.zero_()
    assert statistics.mean is not None and statistics.mean.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("std", 0.0, "std of dh of class 1 is 0.0"),
        ("std", -1.0, "std of dh of class 1 is -1.0"),
        ("std", float("nan"), "std of dh of class 1 is nan"),
        ("mean", float("inf"), "mean of dh of class 1 is inf"),
    ],
)
def test_unusable_values(name: str, value: float, message: str) -> None:
    values = dict(zip(("mean", "std"), random_statistics(2), strict=True))
    values[name][1, 3] = value
    with pytest.raises(UserError, match=message):
        TargetStatistics(2).set(**values)
    layer = nn.Linear(2, 8)
    weight = layer.weight.clone()
    statistics = TargetStatistics(2)
    statistics.set(*random_statistics(2))
    with pytest.raises(UserError, match=message):
        statistics.unfold(layer, **values)
    assert statistics.active and torch.equal(layer.weight, weight)


def test_wrong_shapes() -> None:
    statistics = TargetStatistics(2)
    with pytest.raises(UserError, match=r"mean has shape \(3, 4\), not \(2, 4\)"):
        statistics.set(*random_statistics(3))
    statistics.set(*random_statistics(2))
    with pytest.raises(UserError, match="2 classes do not fit a layer of 12 channels with bias"):
        statistics.fold(nn.Linear(2, 12))
    with pytest.raises(UserError, match="without bias"):
        statistics.fold(nn.Linear(2, 8, bias=False))


# ---- checkpoints --------------------------------------------------------------------------------

HEAD = "roi_heads.box_predictor.target_statistics."


def head(model: nn.Module) -> TargetStatistics:
    return model.roi_heads.box_predictor.target_statistics


def save(model: nn.Module, folder: Path) -> str:
    DetectionCheckpointer(model, str(folder)).save("model")
    return str(folder / "model.pth")


def test_checkpoint_without_statistics_holds_stock_layers_only(tiny_cfg) -> None:
    """The names are those of the host's box predictor and of the RPN head."""
    keys = set(build_model(tiny_cfg()).state_dict())
    assert not {key for key in keys if "statistics" in key}
    ours = {k for k in keys if "box_predictor" in k}
    stock = {"cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias"}
    assert ours == {f"roi_heads.box_predictor.{name}" for name in stock}


def test_checkpoint_makes_statistics(tiny_cfg, tmp_path: Path, caplog) -> None:
    model, other = build_model(tiny_cfg()), build_model(tiny_cfg())
    mean, std = random_statistics(K)
    head(model).set(mean, std)
    model.proposal_generator.target_statistics.set(*random_statistics(1))
    path = save(model, tmp_path)
    assert {HEAD + "mean", HEAD + "std"} < set(torch.load(path)["model"])

    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(other).load(path)
    # torch has warnings of its own, once per process.
    assert not [r for r in caplog.records if not r.name.startswith("torch")]
    assert torch.equal(head(other).mean, mean) and torch.equal(head(other).std, std)
    assert other.proposal_generator.target_statistics.active
    other.load_state_dict(model.state_dict(), strict=True)


def test_checkpoint_replaces_statistics(tiny_cfg, tmp_path: Path) -> None:
    model, other = build_model(tiny_cfg()), build_model(tiny_cfg())
    head(model).set(*random_statistics(K))
    head(other).set(*random_statistics(K, seed=1))
    DetectionCheckpointer(other).load(save(model, tmp_path))
    assert torch.equal(head(other).mean, head(model).mean)


def test_finished_checkpoint_clears_statistics(tiny_cfg, tmp_path: Path, caplog) -> None:
    model, other = build_model(tiny_cfg()), build_model(tiny_cfg())
    head(other).set(*random_statistics(K))
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(other).load(save(model, tmp_path))
    assert not caplog.records
    assert not head(other).active
    assert set(other.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("active", [False, True])
def test_checkpoint_of_another_number_of_classes(
    tiny_cfg, tmp_path: Path, caplog, active: bool
) -> None:
    """As the host does with weights: left out, with a warning that names them."""
    model, other = build_model(tiny_cfg()), build_model(tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 2))
    head(model).set(*random_statistics(K))
    if active:
        head(other).set(*random_statistics(2))
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(other).load(save(model, tmp_path))
    assert HEAD in caplog.text and "(3, 4)" in caplog.text
    assert not head(other).active
    with pytest.raises(RuntimeError, match="mean"):
        other.load_state_dict(model.state_dict(), strict=True)


def test_damaged_statistics_are_an_error(tiny_cfg, tmp_path: Path) -> None:
    model = build_model(tiny_cfg())
    head(model).set(*random_statistics(K))
    head(model).std[1, 2] = 0.0
    with pytest.raises(RuntimeError, match="std of dw of class 1 is 0"):
        DetectionCheckpointer(build_model(tiny_cfg())).load(save(model, tmp_path))


def test_half_of_the_statistics_is_unexpected() -> None:
    with pytest.raises(RuntimeError, match="Unexpected key"):
        TargetStatistics(1).load_state_dict({"mean": torch.zeros(1, 4)})


def test_copies_are_independent(tiny_cfg) -> None:
    model = build_model(tiny_cfg())
    rpn = copy.deepcopy(model).proposal_generator
    rpn.target_statistics.set(*random_statistics(1))
    assert rpn.box2box_transform.statistics is rpn.target_statistics
    assert not model.proposal_generator.target_statistics.active


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
    head(model).set(*random_statistics(K))
    model.proposal_generator.target_statistics.set(*random_statistics(1))
    with EventStorage():
        losses = model([make_input(97, 131, [[10.0, 12.0, 60.0, 70.0]])])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_statistics_live_where_the_model_is() -> None:
    source = TargetStatistics(1)
    source.set(*random_statistics(1))
    statistics = TargetStatistics(1).cuda()
    statistics.load_state_dict(source.state_dict())
    assert statistics.mean is not None and statistics.mean.is_cuda
    layer = nn.Linear(2, 4).cuda()
    statistics.fold(layer)
    statistics.unfold(layer, *random_statistics(1))
    assert statistics.std is not None and statistics.std.is_cuda

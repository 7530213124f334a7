"""The module that normalises box targets. By hand, or example E18 (docs/worked_examples.md)."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch import nn

from frcnn_plugin.checkpoint import AtomicCheckpointer
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import TargetStatistics, fold_target_statistics
from tests.modeling.parts import K, random_statistics


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
    assert torch.equal(statistics.normalise(deltas, classes), deltas)
    deltas = torch.randn(5, 4 * K)
    assert torch.equal(statistics.denormalise(deltas), deltas)
    assert torch.equal(layer.weight, weight)


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


# ---- checkpoints, and copies of a model ---------------------------------------------------


HEAD = "roi_heads.box_predictor.target_statistics."


def head(model: nn.Module) -> TargetStatistics:
    return model.roi_heads.box_predictor.target_statistics


def save(model: nn.Module, folder: Path) -> str:
    DetectionCheckpointer(model, str(folder)).save("model")
    return str(folder / "model.pth")


def test_checkpoint_without_statistics_holds_stock_layers_only(tiny_cfg, tmp_path: Path) -> None:
    """The names are those of Detectron2's box predictor and of the RPN head."""
    model = build_model(tiny_cfg())
    AtomicCheckpointer(model, str(tmp_path)).save("model")
    keys = set(torch.load(tmp_path / "model.pth")["model"])
    assert not {key for key in keys if "statistics" in key}
    ours = {k for k in keys if "box_predictor" in k}
    stock = {"cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias"}
    assert ours == {f"roi_heads.box_predictor.{name}" for name in stock}
    model.load_state_dict(torch.load(tmp_path / "model.pth")["model"], strict=True)


@pytest.mark.parametrize("copied", ["new dict", "in place"])
def test_teacher_that_copies_by_its_own_names(tiny_cfg, copied: str) -> None:
    """The loop of semi-supervised projects: the student was given statistics, its teacher not."""
    student, teacher = build_model(tiny_cfg()).eval(), build_model(tiny_cfg()).eval()
    head(student).set(*random_statistics(K))
    student.proposal_generator.target_statistics.set(*random_statistics(1))
    source = student.state_dict()
    if copied == "new dict":
        teacher.load_state_dict({k: 0.0 * v + source[k] for k, v in teacher.state_dict().items()})
    else:
        for name, value in teacher.state_dict().items():
            value.copy_(source[name])
    deltas = torch.randn(5, 4 * K)
    assert torch.equal(head(teacher).denormalise(deltas), head(student).denormalise(deltas))
    image = {"image": torch.randint(0, 255, (3, 64, 80)).float(), "height": 64, "width": 80}
    with torch.no_grad():
        ours, theirs = student([image])[0]["instances"], teacher([image])[0]["instances"]
    assert len(ours) > 0
    assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)


def test_part_of_the_weights_leaves_the_statistics_of_others() -> None:
    """What is loaded are weights of another module: the layer and its statistics stay."""
    model = nn.ModuleDict({"a": nn.Linear(1, 1), "b": TargetStatistics(1)})
    model["b"].set(*random_statistics(1))
    model.load_state_dict({"a.weight": torch.ones(1, 1)}, strict=False)
    assert model["b"].active


def test_fold_of_a_model_keeps_what_it_detects(tiny_cfg) -> None:
    """And its weights then mean the same to Detectron2's own layers."""
    model = build_model(tiny_cfg()).eval()
    head(model).set(*random_statistics(K))
    model.proposal_generator.target_statistics.set(*random_statistics(1))
    image = {"image": torch.randint(0, 255, (3, 64, 80)).float(), "height": 64, "width": 80}
    with torch.no_grad():
        before = model([image])[0]["instances"].pred_boxes.tensor
        fold_target_statistics(model)
        after = model([image])[0]["instances"].pred_boxes.tensor
    assert len(before) > 0
    torch.testing.assert_close(after, before, atol=1e-2, rtol=0)
    assert not head(model).active
    assert not model.proposal_generator.target_statistics.active


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


@pytest.mark.parametrize("saved", [True, False])
def test_checkpoint_replaces_or_clears_statistics(
    tiny_cfg, tmp_path: Path, caplog, saved: bool
) -> None:
    model, other = build_model(tiny_cfg()), build_model(tiny_cfg())
    if saved:
        head(model).set(*random_statistics(K))
    head(other).set(*random_statistics(K, seed=1))
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(other).load(save(model, tmp_path))
    assert not caplog.records
    assert head(other).active == saved
    if saved:
        assert torch.equal(head(other).mean, head(model).mean)
    assert set(other.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("load", ["program", "Detectron2"])
def test_stock_weights_clear_statistics(tiny_cfg, tmp_path: Path, load: str) -> None:
    """Detectron2's own layers have none; weights of other modules leave them as they are."""
    model = build_model(tiny_cfg())
    rpn = model.proposal_generator.target_statistics
    rpn.set(*random_statistics(1))
    head(model).set(*random_statistics(K))
    weights = {k: v for k, v in model.state_dict().items() if "target_statistics" not in k}
    others = {k: v for k, v in weights.items() if k.startswith("backbone.")}
    for part, active in ((others, True), (weights, False)):
        torch.save({"model": part}, tmp_path / "stock.pth")
        if load == "program":
            model.load_state_dict(part, strict=not active)
        else:
            DetectionCheckpointer(model).load(str(tmp_path / "stock.pth"))
        assert head(model).active == rpn.active == active


@pytest.mark.parametrize("active", [False, True])
def test_checkpoint_of_another_number_of_classes(
    tiny_cfg, tmp_path: Path, caplog, active: bool
) -> None:
    """As Detectron2 does with weights: left out, with a warning that names them."""
    model, other = build_model(tiny_cfg()), build_model(tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 2))
    head(model).set(*random_statistics(K))
    if active:
        head(other).set(*random_statistics(2))
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(other).load(save(model, tmp_path))
    assert HEAD in caplog.text and "(3, 4)" in caplog.text
    assert head(other).active == active  # as its weights, which stay
    with pytest.raises(RuntimeError, match="mean"):
        other.load_state_dict(model.state_dict(), strict=True)


def test_damaged_statistics_are_an_error(tiny_cfg, tmp_path: Path) -> None:
    model = build_model(tiny_cfg())
    head(model).set(*random_statistics(K))
    head(model).std[1, 2] = 0.0
    with pytest.raises(RuntimeError, match="std of dw of class 1 is 0"):
        DetectionCheckpointer(build_model(tiny_cfg())).load(save(model, tmp_path))


def test_half_of_the_statistics_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="mean and std belong together"):
        TargetStatistics(1).load_state_dict({"mean": torch.zeros(1, 4)}, strict=False)


def test_copies_are_independent(tiny_cfg) -> None:
    model = build_model(tiny_cfg())
    rpn = copy.deepcopy(model).proposal_generator
    rpn.target_statistics.set(*random_statistics(1))
    assert rpn.box2box_transform.statistics is rpn.target_statistics
    assert not model.proposal_generator.target_statistics.active

"""Target statistics in checkpoints, and in copies of a model."""

from __future__ import annotations

import copy
import logging
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch import nn

from frcnn_plugin.modeling import TargetStatistics
from tests.modeling.random_statistics import K, random_statistics

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

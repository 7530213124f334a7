"""Weights that do not fit stop the run; some that do are enough for a start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from frcnn_plugin.engine.checkpointer import AtomicCheckpointer
from frcnn_plugin.engine.evaluate import evaluate_checkpoint
from frcnn_plugin.errors import UserError


def save(path: Path, names: list[str]) -> str:
    torch.save({"model": {name: torch.ones(4, 3, 3, 3) for name in names}}, path)
    return str(path)


def test_weights_of_another_network(tiny_cfg, tmp_path: Path) -> None:
    """Names as torchvision's VGG16 has them."""
    path = save(tmp_path / "vgg16.pth", ["features.0.weight", "features.2.weight"])
    checkpointer = AtomicCheckpointer(build_model(tiny_cfg()))
    with pytest.raises(UserError, match=r"0 of the 26 weights of backbone .* features.0.weight"):
        checkpointer.load(path)


def test_right_names_of_the_wrong_width(tiny_cfg, tmp_path: Path) -> None:
    path = save(tmp_path / "wide.pth", ["backbone.conv1.conv1_1.weight"])
    model = build_model(tiny_cfg("MODEL.VGG.CHANNELS", [5, 4, 8, 8, 8]))
    with pytest.raises(UserError, match=r"needed are backbone.conv1.conv1_1.weight"):
        AtomicCheckpointer(model).load(path)


def test_backbone_alone_is_enough(tiny_cfg, tmp_path: Path) -> None:
    path = save(tmp_path / "imagenet.pth", ["backbone.conv1.conv1_1.weight"])
    model = build_model(tiny_cfg())
    AtomicCheckpointer(model).load(path)
    assert (model.backbone.conv1.conv1_1.weight == 1).all()


def test_backbone_alone_cannot_be_evaluated(tiny_cfg, tmp_path: Path) -> None:
    """`--eval-only` with an ImageNet file."""
    cfg = tiny_cfg(
        *("MODEL.WEIGHTS", save(tmp_path / "imagenet.pth", ["backbone.conv1.conv1_1.weight"])),
        *("OUTPUT_DIR", str(tmp_path)),
    )
    with pytest.raises(UserError, match=r"weights of roi_heads .* cannot be evaluated"):
        evaluate_checkpoint(cfg)

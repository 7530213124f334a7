"""The order of the causes, judged from the data."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from frcnn_plugin.engine.guards.anomaly import StepRecord, build_dump, likely_causes
from tests.conftest import make_input


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(2, 2), nn.Linear(2, 2)


class Trainer:
    def __init__(self, model: nn.Module, rate: float) -> None:
        biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
        weights = [p for n, p in model.named_parameters() if n.endswith("weight")]
        groups = [{"params": weights}, {"params": biases, "lr": 2 * rate}]
        self.optimizer = torch.optim.SGD(groups, lr=rate)


@pytest.fixture
def causes(tiny_cfg):
    def judge(*opts: Any, boxes=((0.0, 0.0, 20.0, 20.0),), images: int = 1, frozen=False):
        cfg = tiny_cfg("MODEL.WEIGHTS", "vgg16.pth", *opts)
        model = Net()
        model.backbone.requires_grad_(not frozen)
        batch = [make_input(60, 80, [list(box) for box in boxes])] * images
        trainer = Trainer(model, cfg.SOLVER.BASE_LR)
        return likely_causes(cfg, model, batch, build_dump(model, trainer, StepRecord(batch), 7))

    return judge


def test_nothing_speaks_for_any(causes) -> None:
    found = causes(images=2)
    assert found[0].startswith(
        "the learning rate: 0.001 with 2 images per iteration; the originals' for that batch is "
        "0.001. Not too high, but try SOLVER.BASE_LR 0.0001, or SOLVER.CLIP_GRADIENTS.ENABLED True"
    )
    assert found[1].startswith(
        "preprocessing that does not belong to the weights: MODEL.PIXEL_MEAN"
    )
    assert found[2].startswith("weights that do not fit: MODEL.WEIGHTS is vgg16.pth")
    assert found[3] == (
        "degenerate boxes: not seen, all 2 ground-truth boxes of the batch are sound"
    )


@pytest.mark.parametrize(
    "box",
    [
        (5.0, 5.0, 5.0, 20.0),
        (5.0, 20.0, 30.0, 5.0),
        (5.0, 5.0, 5.5, 20.0),
        (math.nan, 0.0, 9.0, 9.0),
        (0.0, 0.0, 65535.0, 9.0),
        (-40.0, 0.0, 9.0, 9.0),
    ],
)
def test_degenerate_boxes_come_first(causes, box) -> None:
    found = causes("SOLVER.BASE_LR", 1.0, boxes=[(0.0, 0.0, 20.0, 20.0), box])
    assert found[0].startswith("degenerate ground-truth boxes in this batch")
    assert f"0.jpg ({', '.join(f'{v:.1f}' for v in box)})" in found[0]
    assert found[0].count("0.jpg") == 1
    assert found[1].startswith("the learning rate: 1 with 1 image per iteration")


@pytest.mark.parametrize(
    ("rate", "images", "usual"), [(0.02, 2, 0.001), (0.02, 4, 0.002), (0.02, 16, 0.008)]
)
def test_the_rate_for_the_batch(causes, rate: float, images: int, usual: float) -> None:
    """0.001 for up to two images, in proportion beyond."""
    assert causes("SOLVER.BASE_LR", rate, images=images)[0] == (
        f"the learning rate: {rate} with {images} images per iteration; the originals' for that "
        f"batch is {usual}. Type: SOLVER.BASE_LR {usual}"
    )


def test_a_rate_in_proportion_is_not_blamed(causes) -> None:
    assert "Not too high" in causes("SOLVER.BASE_LR", 0.008, images=16)[0]


def test_a_random_frozen_backbone(causes) -> None:
    opts = ["MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", 2]
    assert causes(*opts, frozen=True)[0] == (
        "MODEL.WEIGHTS is empty and 2 tensors of the backbone are frozen at random numbers "
        "(MODEL.BACKBONE.FREEZE_AT 2). Give MODEL.WEIGHTS, or MODEL.BACKBONE.FREEZE_AT 0"
    )
    assert "starts from random numbers" in causes("MODEL.WEIGHTS", "")[0]


def test_preprocessing_for_pixels_of_0_to_1(causes) -> None:
    """255 / 0.2 = 1275."""
    opts = ["MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0], "MODEL.PIXEL_STD", [0.2, 0.2, 0.2]]
    assert causes(*opts)[0].startswith("preprocessing: the network's input reaches 1275, far above")


def test_mixed_precision_is_named(causes) -> None:
    assert causes("SOLVER.AMP.ENABLED", True)[0].startswith("mixed precision: a number larger")


def test_a_batch_without_boxes(causes) -> None:
    assert "all 0 ground-truth boxes" in causes(boxes=[])[-1]

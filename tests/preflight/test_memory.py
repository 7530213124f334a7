"""The estimate of memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from frcnn_plugin import get_config_file
from frcnn_plugin.preflight import memory
from frcnn_plugin.preflight.memory import (
    _activations,
    estimate,
    free_ram,
    images_at_once,
    largest_image,
)
from tests.preflight.conftest import only


class Backbone(nn.Sequential):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"last": super().forward(x)}


def test_activations_by_hand() -> None:
    """Two images of 8x4: frozen 2 channels, 3 channels in place, pooled to 4x2, 5 channels."""
    layers = [nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    backbone = Backbone(*layers, nn.Conv2d(3, 5, 1)).to("meta")
    backbone[0].requires_grad_(False)
    kept, largest, channels = _activations(SimpleNamespace(backbone=backbone), (8, 4), 2)
    assert kept == 2 * (3 * 32 * 4 + 3 * 8 * 12 + 5 * 8 * 4)
    assert largest == 2 * 3 * 32 * 4
    assert channels == 5


def test_training_takes_more_than_testing(plan) -> None:
    run = plan()
    need = [
        estimate(run.model, run.model_cfg, (320, 224), 1, training=training)
        for training in (False, True)
    ]
    parameters = sum(p.numel() for p in run.model.parameters())
    assert need[1] - need[0] > 8 * parameters
    assert need[0] > 4 * parameters


def test_frozen_layers_take_less(plan) -> None:
    run, frozen = plan(), plan("MODEL.BACKBONE.FREEZE_AT", "2")
    need = [estimate(r.model, r.model_cfg, (320, 224), 1, training=True) for r in (run, frozen)]
    assert need[1] < need[0]


def test_largest_image(plan) -> None:
    """100x80 and 50x100 to a shorter side of 60: 75x60 and 60x120, which 100 limits to 50x100."""
    run = plan(
        *("INPUT.MIN_SIZE_TRAIN", "(60,)"), *("INPUT.MAX_SIZE_TRAIN", "100"),
        *("INPUT.MIN_SIZE_TEST", "30"), *("INPUT.MAX_SIZE_TEST", "90"),
    )  # fmt: skip
    run._loaded["shapes_trainval"] = [{"width": 100, "height": 80}, {"width": 50, "height": 100}]
    assert largest_image(run) == (50, 100)
    run._loaded["shapes_trainval"] = []
    assert largest_image(run) == (100, 60)
    run.eval_only = True
    run._loaded["shapes_test"] = [{"width": 100, "height": 80}]
    assert largest_image(run) == (38, 30)


def test_images_at_once(plan) -> None:
    """One by one or together, their activations wait for the same backward pass."""
    for one_by_one in ("True", "False"):
        opts = ["MODEL.PAPER_RCNN.ONE_BY_ONE", one_by_one, "SOLVER.IMS_PER_BATCH", "4"]
        assert images_at_once(plan(*opts)) == 4
        assert images_at_once(plan(*opts, num_processes=2)) == 4  # the batch is scaled to 8
    assert images_at_once(plan(config=get_config_file("demo/vgg16_shapes.yaml"))) == 2


def test_too_little_memory(find, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_ram", lambda: 2**28)
    message = only(find(), "memory", "warning")
    assert "but only 0.2 GiB of RAM are free" in message
    assert "lower INPUT.MIN_SIZE_TRAIN (now (224,)) or SOLVER.IMS_PER_BATCH" in message
    message = only([f for f in find(num_processes=2) if f.subject == "memory"], "memory", "warning")
    assert "(2 processes)" in message and "or --num-gpus" in message


def test_free_memory_is_plausible() -> None:
    free = free_ram()
    assert free is None or 2**24 < free < 2**50

"""Which passes of the model ask its store for features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from frcnn_plugin.modeling import PaperRCNN
from tests.conftest import make_input


def asked(model: PaperRCNN, batch: list[dict[str, Any]]) -> int:
    """How many images go through the store."""
    calls = []

    def store(image: torch.Tensor, compute: Any) -> Any:
        calls.append(image)
        return compute()

    model.feature_store = store
    for x in batch:
        x["proposals"] = Instances(x["image"].shape[-2:])
        x["proposals"].proposal_boxes = x["instances"].gt_boxes
        x["proposals"].objectness_logits = torch.zeros(len(x["instances"]))
    with EventStorage():
        model(batch)
    return len(calls)


@pytest.mark.parametrize(
    ("phase", "frozen", "one_by_one", "images", "expected"),
    [
        ("rpn", True, False, 1, 1),
        ("fast_rcnn", True, False, 1, 1),
        ("rpn", True, True, 2, 2),
        ("fast_rcnn", True, False, 2, 0),  # padded together
        ("rpn", False, False, 1, 0),
        ("joint", True, False, 1, 0),
    ],
)
def test_when_the_store_is_asked(
    one_by_one_model: PaperRCNN,
    phase: str,
    frozen: bool,
    one_by_one: bool,
    images: int,
    expected: int,
) -> None:
    one_by_one_model.set_phase(phase)
    one_by_one_model.one_by_one = one_by_one
    one_by_one_model.backbone.requires_grad_(not frozen)
    batch = [make_input(96, 128 - 16 * i, [[10, 10, 60, 60]], seed=i) for i in range(images)]
    assert asked(one_by_one_model, batch) == expected


def test_running_the_model_asks_no_store(one_by_one_model: PaperRCNN) -> None:
    one_by_one_model.set_phase("rpn")
    one_by_one_model.backbone.requires_grad_(False)
    assert asked(one_by_one_model.eval(), [make_input(96, 128, [[10, 10, 60, 60]])]) == 0

"""VIS_PERIOD: pictures of ground truth and proposals, in every phase, through the event storage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from tests.conftest import make_input

HEIGHT, WIDTH = 96, 128
BOX = [40.0, 20.0, 100.0, 80.0]
NAME = "Left: GT bounding boxes;  Right: Predicted proposals"


def batch(count: int = 2) -> list[dict[str, Any]]:
    """Grey images of different sizes, each with a proposal on the left half."""
    entries = []
    for index in range(count):
        entry = make_input(HEIGHT + 3 * index, WIDTH, [BOX])
        entry["image"] = torch.full_like(entry["image"], 128.0)
        proposals = Instances((HEIGHT + 3 * index, WIDTH))
        proposals.proposal_boxes = Boxes(torch.tensor([[2.0, 4.0, 30.0, 60.0]]))
        proposals.objectness_logits = torch.zeros(1)
        entries.append({**entry, "proposals": proposals})
    return entries


def pictures(tiny_cfg: Any, iterations: int, *opts: Any) -> list[tuple[str, Any, int]]:
    torch.manual_seed(0)
    model = build_model(tiny_cfg(*opts)).train()
    with EventStorage() as storage:
        for _ in range(iterations):
            losses = model(batch())
            assert all(torch.isfinite(v) for v in losses.values())
            storage.step()
        return list(storage._vis_data)


@pytest.fixture(autouse=True)
def white_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectron2 draws in random colours, grey now and then."""
    monkeypatch.setattr(
        "detectron2.utils.visualizer.random_color", lambda **kwargs: np.array([1.0, 1.0, 1.0])
    )


def touched(picture: np.ndarray) -> list[int]:
    """First and last row and column that are not grey, of a (3, H, W) picture."""
    rows, columns = np.nonzero(np.abs(picture.astype(int) - 128).max(axis=0) > 12)
    return [columns.min(), rows.min(), columns.max(), rows.max()]


@pytest.mark.parametrize("phase", ["joint", "rpn", "fast_rcnn"])
@pytest.mark.parametrize("one_by_one", [True, False])
def test_one_picture_per_period(tiny_cfg, phase: str, one_by_one: bool) -> None:
    opts = ["MODEL.PAPER_RCNN.PHASE", phase, "MODEL.PAPER_RCNN.ONE_BY_ONE", one_by_one]
    found = pictures(tiny_cfg, 5, "VIS_PERIOD", 2, *opts)
    assert [(name, iteration) for name, _, iteration in found] == [(NAME, 0), (NAME, 2), (NAME, 4)]
    for _, picture, _ in found:
        assert picture.shape == (3, HEIGHT, 2 * WIDTH)
        left, right = picture[:, :, :WIDTH], picture[:, :, WIDTH:]
        # Lines and their blur take a few pixels.
        assert touched(left) == pytest.approx(BOX, abs=4)
        assert np.abs(right.astype(int) - 128).max() > 12
        if phase == "fast_rcnn":
            assert touched(right) == pytest.approx([2, 4, 30, 60], abs=4)


@pytest.mark.parametrize("phase", ["joint", "rpn", "fast_rcnn"])
def test_none_by_default(tiny_cfg, phase: str) -> None:
    assert pictures(tiny_cfg, 2, "MODEL.PAPER_RCNN.PHASE", phase) == []


def test_drawing_changes_no_loss(tiny_cfg) -> None:
    """The RPN selects proposals for the picture, and only then."""
    values = []
    for period in (0, 1):
        torch.manual_seed(0)
        model = build_model(tiny_cfg("VIS_PERIOD", period, "MODEL.PAPER_RCNN.PHASE", "rpn")).train()
        torch.manual_seed(1)
        with EventStorage():
            values.append({k: v.item() for k, v in model(batch()).items()})
        assert model.proposal_generator.select_in_training == bool(period)
    assert values[0] == values[1]


def test_an_image_without_objects(tiny_cfg) -> None:
    model = build_model(tiny_cfg("VIS_PERIOD", 1, "MODEL.PAPER_RCNN.PHASE", "rpn")).train()
    with EventStorage() as storage:
        model([make_input(HEIGHT, WIDTH, [])])
        assert len(storage._vis_data) == 1

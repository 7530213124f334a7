"""What Tables 2 and 10 of the paper compare with: random scores, bare anchors, dense windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import EventStorage

from frcnn_plugin.modeling import DenseWindows, clip_inclusive
from tests.conftest import make_input
from tests.modeling.parts import FixedAnchors, make_rpn

SIZE = (200, 300)


def proposals(
    boxes: torch.Tensor, scores: torch.Tensor, deltas: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Proposals of one image from anchors, all selected that are large enough."""
    rpn = make_rpn(nms_thresh=1.0, pre_nms_topk=(-1, -1), post_nms_topk=(1000, 1000), **options)
    rpn.eval()
    (found,) = rpn.predict_proposals([Boxes(boxes)], [scores[None]], [deltas[None]], [SIZE])
    return found.proposal_boxes.tensor, found.objectness_logits


@pytest.fixture
def anchors() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(200, 2, generator=generator) * 150
    return torch.cat([corners, corners + 40], dim=1)


def test_random_scores(anchors: torch.Tensor) -> None:
    """Every box is as likely as any other, whatever was learnt; the same in every run."""
    scores, deltas = torch.arange(200.0), torch.zeros(200, 4)
    learned, _ = proposals(anchors, scores, deltas)
    torch.testing.assert_close(learned, clip_inclusive(anchors, SIZE).flip(0))
    torch.manual_seed(1)
    first, logits = proposals(anchors, scores, deltas, random_scores=True)
    torch.manual_seed(2)
    again, _ = proposals(anchors, scores, deltas, random_scores=True)
    assert torch.equal(first, again)
    assert not torch.equal(first, learned)
    assert torch.equal(first.unique(dim=0), learned.unique(dim=0))
    assert torch.equal(logits, logits.sort(descending=True).values)
    other_seed, _ = proposals(anchors, scores, deltas, random_scores=True, seed=4)
    other_image, _ = proposals(anchors, scores + 1, deltas, random_scores=True)
    assert not torch.equal(first, other_seed) and not torch.equal(first, other_image)
    # Means over many images, with a deviation of 1 / sqrt(12 * 300).
    drawn = [make_rpn()._random_scores(torch.full((3,), float(image))) for image in range(300)]
    assert (torch.stack(drawn).mean(dim=0) - 0.5).abs().max() < 0.08


def test_random_scores_keep_out_what_is_not_finite(anchors: torch.Tensor) -> None:
    scores = torch.arange(200.0)
    scores[:50] = float("nan")
    found, _ = proposals(anchors, scores, torch.zeros(200, 4), random_scores=True)
    assert len(found) == 150


def test_anchors_themselves(anchors: torch.Tensor) -> None:
    deltas = torch.full((200, 4), 0.2)
    scores = torch.arange(200.0)
    moved, _ = proposals(anchors, scores, deltas)
    bare, _ = proposals(anchors, scores, deltas, regress=False)
    assert torch.equal(bare, clip_inclusive(anchors, SIZE).flip(0))
    assert not torch.equal(moved, bare)


def test_dense_windows() -> None:
    """All anchors, clipped; those are left out of which too little is inside, at any scale."""
    boxes = [[-20.0, -20, 100, 100], [-100, 0, 10, 50], [10, 10, 26, 30]]
    windows = DenseWindows(in_features=["conv5"], anchor_generator=FixedAnchors(boxes))
    images = ImageList(torch.zeros(2, 3, *SIZE), [SIZE, (40, 60)])
    (first, second), losses = windows(images, {"conv5": torch.zeros(2, 1, 2, 2)})
    assert losses == {}
    assert first.proposal_boxes.tensor.tolist() == [[0, 0, 100, 100], [10, 10, 26, 30]]
    assert second.proposal_boxes.tensor.tolist() == [[0, 0, 60, 40], [10, 10, 26, 30]]
    assert first.objectness_logits.tolist() == [0, 0]


@pytest.mark.parametrize("meta", ["PaperRCNN", "GeneralizedRCNN"])
def test_one_stage_detector(tiny_cfg: Any, meta: str) -> None:
    """It trains and detects, on images with and without objects."""
    torch.manual_seed(0)
    cfg = tiny_cfg("MODEL.PROPOSAL_GENERATOR.NAME", "DenseWindows", "MODEL.META_ARCHITECTURE", meta)
    model = build_model(cfg).train()
    batch = [make_input(97, 131, [[10.0, 12.0, 60.0, 70.0]]), make_input(131, 160, [], seed=1)]
    with EventStorage():
        losses = model(batch)
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    model.eval()
    with torch.no_grad():
        assert [x["instances"].image_size for x in model(batch)] == [(97, 131), (131, 160)]

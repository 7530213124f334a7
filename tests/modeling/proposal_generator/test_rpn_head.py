"""The head of the RPN. Examples E3d, E12, E23 (docs/worked_examples.md)."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import build_proposal_generator

from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import SoftmaxRPNHead


def test_head_layout_e3d() -> None:
    """A = 9: the object score of anchor 4 is channel 13, its background channel 4."""
    head = SoftmaxRPNHead(in_channels=2, num_anchors=9)
    with torch.no_grad():
        head.rpn_cls_score.weight.zero_()
        head.rpn_cls_score.bias[13] = 2.0
        head.rpn_cls_score.bias[4] = -1.0
        head.rpn_bbox_pred.weight.zero_()
        head.rpn_bbox_pred.bias.copy_(torch.arange(36.0))
        logits, deltas = head([torch.zeros(1, 2, 3, 5)])
    assert logits[0].shape == (1, 9, 3, 5)
    assert logits[0][0, :, 1, 1].tolist() == [0, 0, 0, 0, 3.0, 0, 0, 0, 0]
    assert deltas[0][0, 16:20, 0, 0].tolist() == [16, 17, 18, 19]  # dx, dy, dw, dh of anchor 4


def test_head_parameters_e23() -> None:
    head = SoftmaxRPNHead(in_channels=512, num_anchors=9)
    counts = {n: p.numel() for n, p in head.named_parameters()}
    assert counts == {
        "rpn_conv.weight": 2_359_296,
        "rpn_conv.bias": 512,
        "rpn_cls_score.weight": 9_216,
        "rpn_cls_score.bias": 18,
        "rpn_bbox_pred.weight": 18_432,
        "rpn_bbox_pred.bias": 36,
    }
    for name, parameter in head.named_parameters():
        if name.endswith("weight"):
            assert parameter.std().item() == pytest.approx(0.01, rel=0.05)
        else:
            assert parameter.abs().sum() == 0


def test_more_than_one_conv_is_refused(tiny_cfg) -> None:
    cfg = tiny_cfg("MODEL.RPN.CONV_DIMS", [8, 8])
    with pytest.raises(UserError, match=r"CONV_DIMS is \[8, 8\].*one 3x3 conv"):
        build_proposal_generator(cfg, {"conv5": ShapeSpec(channels=8, stride=16)})


def test_margin_moves_as_with_a_softmax_e12() -> None:
    """One step of lr .1 on z = (.2, .5), positive: the margin grows by .085111."""
    pair = torch.tensor([0.2, 0.5], requires_grad=True)
    logit = pair[1] - pair[0]
    assert logit.sigmoid().item() == pytest.approx(0.574443, abs=1e-6)
    torch.nn.functional.binary_cross_entropy_with_logits(logit, torch.tensor(1.0)).backward()
    assert pair.grad is not None
    moved = -0.1 * (pair.grad[1] - pair.grad[0])
    assert moved.item() == pytest.approx(0.085111, abs=1e-6)

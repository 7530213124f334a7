"""fc6, fc7, dropout. Example E25 (docs/worked_examples.md)."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_roi_heads

from frcnn_plugin.modeling import FC6FC7Head, UnscaledDropout

SHAPE = {"conv5": ShapeSpec(channels=8, stride=16)}


def test_dropout_scaling_e25() -> None:
    torch.manual_seed(0)
    x = torch.full((1000,), 3.0)
    scaled, unscaled = torch.nn.Dropout(0.5), UnscaledDropout(0.5)
    assert set(scaled.train()(x).tolist()) == {0.0, 6.0}
    assert set(scaled.eval()(x).tolist()) == {3.0}
    assert set(unscaled.train()(x).tolist()) == {0.0, 3.0}
    assert set(unscaled.eval()(x).tolist()) == {1.5}


def test_fc6_takes_channels_first() -> None:
    """One weight at channel 1, row 0, column 2 of a (2, 3, 4) input is column 12 + 2 of fc6."""
    head = FC6FC7Head(ShapeSpec(channels=2, height=3, width=4), fc_dim=5, dropout=0.0)
    x = torch.zeros(1, 2, 3, 4)
    x[0, 1, 0, 2] = 1.0
    assert torch.equal(head.fc6(x.flatten(1))[0], head.fc6.weight[:, 14] + head.fc6.bias)
    assert (
        head(x).shape == (1, 5) and head(x[:0]).shape == (0, 5) and head.output_shape.channels == 5
    )


def test_dropout_follows_the_config(tiny_cfg) -> None:
    heads = build_roi_heads(tiny_cfg("MODEL.ROI_BOX_HEAD.DROPOUT_SCALE_TRAIN", False), SHAPE)
    assert isinstance(heads.box_head.drop6, UnscaledDropout)
    assert isinstance(build_roi_heads(tiny_cfg(), SHAPE).box_head.drop7, torch.nn.Dropout)

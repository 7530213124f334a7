"""Predicted sizes of feature maps against real ones."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BasicStem, ResNet

from frcnn_plugin.modeling import VGG16, ZF, backbone_feature_sizes

CHANNELS = (2, 2, 2, 2, 2)


@pytest.mark.parametrize("backbone_class", [VGG16, ZF])
@pytest.mark.parametrize("size", [(600, 1000), (1, 17), (97, 131), (601, 16)])
def test_size_is_that_of_the_features(backbone_class: type, size: tuple[int, int]) -> None:
    backbone = backbone_class(channels=CHANNELS, out_features=["conv3", "conv5"])
    features = backbone(torch.zeros(1, 3, *size))
    expected = [tuple(features[name].shape[2:]) for name in ("conv5", "conv3")]
    assert backbone_feature_sizes(backbone, ["conv5", "conv3"])(*size) == expected
    assert all(p.device.type == "cpu" for p in backbone.parameters())


def test_600x1000() -> None:
    """Check E2 (docs/checks.md): 38 x 63 with VGG16, 39 x 64 with ZF."""
    for backbone, expected in ((VGG16, (38, 63)), (ZF, (39, 64))):
        assert backbone_feature_sizes(backbone(channels=CHANNELS), ["conv5"])(600, 1000) == [
            expected
        ]


def test_images_are_padded_as_the_backbone_asks() -> None:
    class Padded(ResNet):
        size_divisibility = 32

    stages = ResNet.make_default_stages(18)[:1]
    backbone = Padded(BasicStem(3, 64, "FrozenBN"), stages, out_features=["res2"])
    assert isinstance(backbone.output_shape()["res2"], ShapeSpec)
    assert backbone_feature_sizes(backbone, ["res2"])(33, 64) == [(16, 16)]

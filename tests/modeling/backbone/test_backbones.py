"""VGG16 and ZF. Expected sizes and values: examples E2, E16, E24 (docs/worked_examples.md)."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from torch import nn

from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import VGG16, ZF, WithinChannelLRN, backbone_feature_sizes

NARROW = [2, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("height", "width", "vgg", "zf"),
    [
        (600, 1000, (38, 63), (39, 64)),  # E2
        (600, 800, (38, 50), (39, 51)),  # E2b
        (600, 901, (38, 57), (39, 57)),  # E2c
        (224, 224, (14, 14), (15, 15)),  # E2d
    ],
)
def test_conv5_size_e2(height: int, width: int, vgg: tuple[int, int], zf: tuple[int, int]) -> None:
    x = torch.zeros(1, 3, height, width)
    for net, expected in ((VGG16(channels=NARROW), vgg), (ZF(channels=NARROW), zf)):
        with torch.no_grad():
            assert net(x)["conv5"].shape[-2:] == expected
        assert backbone_feature_sizes(net, ["conv5"])(height, width) == [expected]


def test_within_channel_lrn_e16() -> None:
    y = WithinChannelLRN()(torch.full((1, 1, 4, 4), 100.0))[0, 0]
    assert y[0, 0].item() == pytest.approx(86.027513, abs=1e-4)  # corner
    assert y[0, 1].item() == pytest.approx(80.592745, abs=1e-4)  # edge
    assert y[1, 1].item() == pytest.approx(73.778795, abs=1e-4)  # interior


def test_within_channel_lrn_keeps_channels_apart() -> None:
    x = torch.zeros(1, 2, 3, 3)
    x[0, 0] = 100.0
    x[0, 1] = 1.0
    alone = WithinChannelLRN()(x[:, 1:])
    assert torch.equal(WithinChannelLRN()(x)[:, 1:], alone)


@pytest.mark.parametrize(("backbone", "field"), [(VGG16, 196), (ZF, 139)])
def test_receptive_field_e24(backbone: type, field: int) -> None:
    kernel_and_stride = [
        (_first(m.kernel_size), _first(m.stride))
        for m in backbone(channels=NARROW).modules()
        if isinstance(m, (nn.Conv2d, nn.MaxPool2d, WithinChannelLRN)) and hasattr(m, "stride")
    ]
    size, step = 1, 1
    for kernel, stride in kernel_and_stride:
        size += (kernel - 1) * step
        step *= stride
    assert (size, step) == (field, 16)


def _first(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def test_number_of_parameters() -> None:
    """VGG16: sum over its layer table. ZF, by hand, with the biases.

    96*3*49+96, 256*96*25+256, 384*256*9+384, 384*384*9+384, 256*384*9+256.
    """
    assert sum(p.numel() for p in VGG16().parameters()) == 14_714_688
    assert sum(p.numel() for p in ZF().parameters()) == (14208 + 614656 + 885120 + 1327488 + 884992)


def test_layers_have_caffe_names() -> None:
    assert {"conv1.conv1_1.weight", "conv3.conv3_3.bias"} <= VGG16().state_dict().keys()
    assert {"conv1.conv1.weight", "conv5.conv5.bias"} <= ZF().state_dict().keys()


@pytest.mark.parametrize("backbone", [VGG16, ZF])
@pytest.mark.parametrize("freeze_at", range(6))
def test_freeze_at_counts_blocks(backbone: type, freeze_at: int) -> None:
    model = backbone(channels=NARROW, freeze_at=freeze_at)
    frozen = {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    trained = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert frozen == {f"conv{i}" for i in range(1, freeze_at + 1)}
    assert trained == {f"conv{i}" for i in range(freeze_at + 1, 6)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_at": -1}, r"FREEZE_AT is -1.* use 0 .* to 5"),
        ({"freeze_at": 6}, r"FREEZE_AT is 6.* use 0 .* to 5"),
        ({"out_features": ["conv6"]}, r"OUT_FEATURES \['conv6'\] must name .* conv1, conv2"),
    ],
)
def test_mistakes(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        VGG16(**options)


@pytest.mark.parametrize("backbone", [VGG16, ZF])
def test_features_match_output_shape(backbone: type) -> None:
    names = ["conv2", "conv3", "conv5"]
    model = backbone(channels=[2, 3, 4, 5, 6], out_features=names)
    # An odd size: every pooling rounds up.
    features = model(torch.rand(2, 3, 97, 131))
    expected = [tuple(f.shape[2:]) for f in features.values()]
    assert backbone_feature_sizes(model, names)(97, 131) == expected
    assert all(p.device.type == "cpu" for p in model.parameters())
    shapes = model.output_shape()
    assert list(features) == list(shapes) == names
    for name, feature in features.items():
        assert feature.shape[1] == shapes[name].channels
        assert (feature >= 0).all()  # after a ReLU
        if backbone is VGG16:
            expected = [-(-side // shapes[name].stride) for side in (97, 131)]
            assert list(feature.shape[-2:]) == expected


def test_blocks_after_the_last_feature_are_not_built() -> None:
    model = VGG16(out_features=["conv3"])
    assert not any(n.startswith(("conv4", "conv5")) for n, _ in model.named_modules())
    assert model.output_shape() == {"conv3": ShapeSpec(channels=256, stride=4)}


def test_from_scratch_activations_neither_vanish_nor_explode() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        out = VGG16(channels=[16, 32, 64, 64, 64])(torch.randn(1, 3, 64, 64))["conv5"]
    assert 0.05 < out.std() < 20


@pytest.mark.parametrize("name", ["VGG16", "ZF"])
def test_by_registry_name(tiny_cfg, name: str) -> None:
    model = build_backbone(tiny_cfg("MODEL.BACKBONE.NAME", name))
    assert type(model).__name__ == name
    assert model.output_shape() == {"conv5": ShapeSpec(channels=8, stride=16)}


@pytest.mark.parametrize("size", [(250, 37), (100, 8), (7, 9)])
def test_conv1_in_strips_is_the_same(size: tuple[int, int], monkeypatch) -> None:
    """Strips of 100 rows: three, one, less than one."""
    torch.manual_seed(0)
    net = VGG16(channels=(4, 4, 4, 4, 4), out_features=("conv2", "conv5"))
    x = torch.rand(2, 3, *size)
    calls = []
    stock = VGG16._conv1_pool1
    monkeypatch.setattr(VGG16, "_conv1_pool1", lambda *a: calls.append(1) or stock(*a))
    with torch.no_grad():
        strips = net(x)
    assert calls
    whole = net(x)  # its gradient is wanted
    assert len(calls) == 1
    for name in strips:
        assert torch.allclose(strips[name], whole[name], rtol=1e-6, atol=1e-7)


def test_conv1_in_strips_while_the_rest_trains() -> None:
    net = VGG16(channels=(4, 4, 4, 4, 4), freeze_at=2)
    assert net._runs_in_strips(torch.rand(1, 3, 8, 8))
    assert not net._runs_in_strips(torch.rand(1, 3, 8, 8, requires_grad=True))
    seen = []
    net.conv1[0].register_forward_hook(lambda m, i, out: seen.append(tuple(out.shape)))
    with torch.no_grad():
        net(torch.rand(1, 3, 230, 8))
    assert seen == [(1, 4, 230, 8)]  # a hook gets the whole map
    for kept in (("conv1", "conv2"), ("conv1",)):
        first = VGG16(channels=(4, 4, 4, 4, 4), out_features=kept)
        with torch.no_grad():
            assert not first._runs_in_strips(torch.rand(1, 3, 8, 8))
            assert set(first(torch.rand(1, 3, 8, 8))) == set(kept)


def test_images_are_padded_as_the_backbone_asks() -> None:
    class Padded(ResNet):
        size_divisibility = 32

    stages = ResNet.make_default_stages(18)[:1]
    backbone = Padded(BasicStem(3, 64, "FrozenBN"), stages, out_features=["res2"])
    assert isinstance(backbone.output_shape()["res2"], ShapeSpec)
    assert backbone_feature_sizes(backbone, ["res2"])(33, 64) == [(16, 16)]

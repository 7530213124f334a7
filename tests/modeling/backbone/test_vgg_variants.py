"""VGG16 with a conv5 of stride 8, with normalisation, and under a feature pyramid."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from frcnn_plugin.checkpoint.checkpointer import AtomicCheckpointer
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import VGG16, backbone_feature_sizes
from tests.conftest import make_input

NARROW = [4, 4, 4, 8, 8]


@pytest.mark.parametrize("size", [(97, 131), (96, 128), (31, 512), (7, 9)])
def test_dilated_conv5_contains_the_plain_one(size: tuple[int, int]) -> None:
    """Even and odd sizes: Caffe's rounding up, and the border of the map."""
    torch.manual_seed(0)
    plain = VGG16(channels=NARROW)
    dense = VGG16(channels=NARROW, conv5_dilation=2, out_features=["conv4", "conv5"])
    dense.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, *size)
    expected = plain(x)["conv5"]
    found = dense(x)
    assert found["conv5"].shape == found["conv4"].shape
    torch.testing.assert_close(found["conv5"][:, :, ::2, ::2], expected)
    assert dense.output_shape()["conv5"].stride == 8
    sizes = [tuple(-(-side // 8) for side in size)]
    assert backbone_feature_sizes(dense, ["conv5"])(*size) == sizes


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_cell_sees_196_pixels(dilation: int) -> None:
    """All weights positive: the gradient is not zero where a cell looks. Both have the cell."""
    net = VGG16(channels=[2] * 5, conv5_dilation=dilation)
    for p in net.parameters():
        nn.init.constant_(p, 0.1)
    x = torch.ones(1, 3, 512, 512, requires_grad=True)
    cell = 16 * dilation
    net(x)["conv5"][0, 0, cell, cell].backward()
    seen = x.grad[0, 0].abs().sum(0).nonzero()
    # Max pooling hands the gradient to one of two equal cells, so up to 15 pixels are not marked.
    assert 196 - 15 <= int(seen.max() - seen.min()) + 1 <= 196


def test_dilated_convolutions_are_not_computed_by_winograd() -> None:
    net = VGG16(channels=[4, 4, 4, 128, 128], conv5_dilation=2).eval()
    x = torch.rand(1, 3, 200, 200)
    with torch.no_grad():
        expected = net(x)["conv5"]
        for m in net.conv5:
            m.winograd = True
        assert torch.equal(net(x)["conv5"], expected)


def test_frozen_blocks_have_frozen_statistics() -> None:
    net = VGG16(channels=NARROW, norm="BN", freeze_at=2).train()
    kinds = {n: type(m).__name__ for n, m in net.named_modules() if n.startswith("conv3.bn")}
    assert set(kinds.values()) == {"BatchNorm2d"}
    assert isinstance(net.conv2.bn2_1, FrozenBatchNorm2d)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net(torch.rand(2, 3, 40, 40))["conv5"].sum().backward()
    after = net.state_dict()
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"conv3", "conv4", "conv5"}


def test_statistics_are_those_of_whole_maps() -> None:
    torch.manual_seed(0)
    net = VGG16(channels=NARROW, norm="BN")
    x = torch.rand(1, 3, 230, 8)
    with torch.no_grad():
        assert not net.train()._runs_in_strips(x)
        net(x)  # statistics that are not 0 and 1
        assert net.eval()._runs_in_strips(x)
        strips = net(x)["conv5"]
    torch.testing.assert_close(strips, net(x)["conv5"])


FPN = [
    *("MODEL.BACKBONE.NAME", "build_vgg16_fpn_backbone"),
    *("MODEL.FPN.IN_FEATURES", ["conv3", "conv4", "conv5"]),
    *("MODEL.FPN.OUT_CHANNELS", 8),
    *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
    *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4"]),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[8], [16], [32], [64], [128]]),
]
STOCK = [
    *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"),
    *("MODEL.PROPOSAL_GENERATOR.NAME", "RPN"),
    *("MODEL.RPN.HEAD_NAME", "StandardRPNHead"),
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
    *("MODEL.ROI_BOX_HEAD.NUM_FC", 1),
]


def test_pyramid_strides_and_sizes(tiny_cfg) -> None:
    net = build_backbone(tiny_cfg(*FPN))
    shapes = net.output_shape()
    assert {n: s.stride for n, s in shapes.items()} == {f"p{i}": 2**i for i in range(2, 7)}
    assert net.size_divisibility == 16
    # 600x1000 is padded to 608x1008.
    expected = [(152, 252), (76, 126), (38, 63), (19, 32), (10, 16)]
    assert backbone_feature_sizes(net, list(shapes))(600, 1000) == expected
    x = torch.rand(1, 3, 32, 48)
    features = net(x)
    assert torch.equal(features["p5"], features["p4"][:, :, ::2, ::2])


@pytest.mark.parametrize("parts", [[], STOCK], ids=["ours", "stock"])
def test_pyramid_in_a_model(tiny_cfg, parts: list, tmp_path) -> None:
    """Two sizes in a batch, an image without objects, no proposals; saved and loaded."""
    cfg = tiny_cfg(*FPN, *parts)
    torch.manual_seed(0)
    model = build_model(cfg)
    inputs = [make_input(97, 131, [[20.0, 20.0, 60.0, 70.0]]), make_input(64, 80, [], seed=1)]
    with EventStorage():
        losses = model.train()(inputs)
    sum(losses.values()).backward()
    lateral = model.backbone.fpn_lateral2.weight.grad
    assert lateral is not None and lateral.abs().sum() > 0
    with torch.no_grad():
        found = model.eval()(inputs)
        images = model.preprocess_image(inputs)
        none = Instances((97, 131), proposal_boxes=Boxes(torch.zeros(0, 4)))
        features = model.backbone(images.tensor)
        assert len(model.roi_heads(images, features, [none, none], None)[0][0]) == 0
    AtomicCheckpointer(model, str(tmp_path)).save("model")
    again = build_model(cfg).eval()
    AtomicCheckpointer(again).load(str(tmp_path / "model.pth"))
    with torch.no_grad():
        for a, b in zip(found, again(inputs), strict=True):
            assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)


def test_weights_of_the_plain_network_find_their_place(tiny_cfg, tmp_path) -> None:
    plain = build_model(tiny_cfg())
    AtomicCheckpointer(plain, str(tmp_path)).save("plain")
    model = build_model(tiny_cfg(*FPN))
    AtomicCheckpointer(model).load(str(tmp_path / "plain.pth"))
    expected = plain.backbone.state_dict()
    found = model.backbone.bottom_up.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize(
    "names", [[], ["conv3", "conv5"], ["conv5", "conv4"]], ids=["none", "gap", "order"]
)
def test_features_of_a_pyramid_are_neighbours(tiny_cfg, names: list[str]) -> None:
    with pytest.raises(UserError, match=r"MODEL\.FPN\.IN_FEATURES is .*such as \[conv3, conv4"):
        build_backbone(tiny_cfg(*FPN, "MODEL.FPN.IN_FEATURES", names))


def test_pyramid_needs_stride_16(tiny_cfg) -> None:
    with pytest.raises(UserError, match="CONV5_DILATION 1"):
        build_backbone(tiny_cfg(*FPN, "MODEL.PAPER_VGG.CONV5_DILATION", 2))


def test_normalisation_of_weights_and_model_must_agree(tiny_cfg, tmp_path) -> None:
    norm = ("MODEL.PAPER_VGG.NORM", "FrozenBN")
    for name, opts in (("plain", ()), ("norm", norm)):
        AtomicCheckpointer(build_model(tiny_cfg(*opts)), str(tmp_path)).save(name)
    cfg = tiny_cfg(*norm)
    with pytest.raises(UserError, match=r"0 of 13 normalisations .* set MODEL\.PAPER_VGG\.NORM"):
        AtomicCheckpointer(build_model(cfg), cfg=cfg).load(str(tmp_path / "plain.pth"))
    with pytest.raises(UserError, match=r"set MODEL\.PAPER_VGG\.NORM FrozenBN"):
        AtomicCheckpointer(build_model(tiny_cfg())).load(str(tmp_path / "norm.pth"))
    AtomicCheckpointer(build_model(cfg), cfg=cfg).load(str(tmp_path / "norm.pth"))

"""HyperNet: the joined features, the proposal network on boxes, the head; as parts and together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import EventStorage
from torch.nn import functional as F
from torchvision.ops import roi_pool

from frcnn_plugin import get_config_file
from frcnn_plugin.checkpoint import AtomicCheckpointer, write_caffemodel
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.errors import UserError
from frcnn_plugin.four_step.stages import STAGES
from frcnn_plugin.four_step.weights import begin_stage
from frcnn_plugin.modeling import (
    VGG16,
    HyperBoxHead,
    HyperRPN,
    HyperRPNHead,
    HyperVGG16,
    backbone_feature_sizes,
)
from frcnn_plugin.modeling.proposal_generator import hyper_rpn
from frcnn_plugin.visualization.inspection import BoxRules
from tests.checkpoint import networks
from tests.conftest import make_input, make_instances
from tests.modeling.test_in_stock_models import OUR_RPN, STOCK_HEAD, VGG, stock_cfg

HYPER = [
    *("MODEL.BACKBONE.NAME", "HyperVGG16"),
    *("MODEL.HYPER.CHANNELS", 6),
    *("MODEL.PROPOSAL_GENERATOR.NAME", "HyperRPN"),
    *("MODEL.RPN.IOU_THRESHOLDS", [0.3, 0.45]),
    *("MODEL.ROI_HEADS.IN_FEATURES", ["hyper"]),
    *("MODEL.ROI_BOX_HEAD.NAME", "HyperBoxHead"),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", 9),
]
NARROW = (4, 4, 6, 6, 6)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# ---- features -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "cells"),
    [
        ((600, 1000), (150, 250)),
        ((600, 901), (150, 226)),
        ((375, 500), (94, 125)),
        ((333, 500), (84, 125)),
        ((1, 17), (1, 5)),
    ],
)
def test_size_of_the_joined_map(size: tuple[int, int], cells: tuple[int, int]) -> None:
    backbone = HyperVGG16(channels=NARROW)
    assert backbone_feature_sizes(backbone, ["hyper"])(*size) == [cells]
    assert backbone.output_shape()["hyper"] == ShapeSpec(channels=126, stride=4)
    assert backbone.output_shape()["conv5"] == ShapeSpec(channels=6, stride=16)


def test_numbers_of_parameters() -> None:
    with torch.device("meta"):
        backbone = HyperVGG16()
        convs = {name: parameters(layers.conv) for name, layers in backbone.hyper.items()}
        head, box_head = HyperRPNHead(126, 1 / 4), HyperBoxHead(ShapeSpec(126, 7, 7))
    assert convs == {"conv1": 67_242, "conv3": 268_842, "conv5": 537_642}
    assert parameters(backbone.hyper["conv5"].up) == 512 * 8 * 8
    layers = (head.rpn_conv, head.rpn_fc, head.rpn_cls_score, head.rpn_bbox_pred)
    assert [parameters(layer) for layer in layers] == [4_540, 173_312, 514, 1_028]
    assert parameters(box_head.conv) == 71_505


@pytest.mark.parametrize("size", [(33, 50), (211, 37)])
@pytest.mark.parametrize("freeze_at", [0, 2])
def test_features_by_the_definition(size: tuple[int, int], freeze_at: int) -> None:
    """conv1 pooled 4x4, conv3, conv5 enlarged and cut; conv1 in strips or as a whole."""
    torch.manual_seed(0)
    names = [f"conv{i}" for i in range(1, 6)]
    hyper = HyperVGG16(channels=NARROW, in_features=names, hyper_channels=3, freeze_at=freeze_at)
    plain = VGG16(channels=NARROW, out_features=names)
    plain.load_state_dict(hyper.state_dict(), strict=False)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = plain(x)
        rows, columns = maps["conv3"].shape[-2:]
        maps["conv1"] = F.max_pool2d(maps["conv1"], 4, 4, ceil_mode=True)
        maps["conv2"] = F.max_pool2d(maps["conv2"], 2, 2, ceil_mode=True)
        parts = []
        for name in names:
            layers = hyper.hyper[name]
            y = maps[name]
            if name in ("conv4", "conv5"):
                weight, factor = layers.up.deconv.weight, {"conv4": 2, "conv5": 4}[name]
                margin = (8 - factor) // 2
                y = F.conv_transpose2d(y, weight, None, factor, margin, groups=y.shape[1])
                assert y.shape[-2:] == tuple(factor * side for side in maps[name].shape[-2:])
            y = F.relu(F.conv2d(y, layers.conv.weight, layers.conv.bias, padding=2))
            squares = F.pad(y * y, (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
            parts.append((y / (1 + 1e-4 / 5 * squares) ** 0.75)[..., :rows, :columns])
        expected = torch.cat(parts, dim=1)
        torch.testing.assert_close(hyper(x)["hyper"], expected)
    torch.testing.assert_close(hyper(x)["hyper"], expected)  # with a gradient
    assert torch.equal(hyper(x)["conv5"], plain(x)["conv5"])


def test_upsampling_starts_as_bilinear_interpolation() -> None:
    for per_channel in (True, False):
        up = HyperVGG16(channels=NARROW, deconv_per_channel=per_channel).hyper["conv5"].up
        x = torch.arange(12.0).view(1, 1, 3, 4).repeat(1, 6, 1, 1)
        wanted = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
        inner = (..., slice(2, -2), slice(2, -2))  # at the border the original sees zeros
        torch.testing.assert_close(up(x)[inner], wanted[inner])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_features": ["conv1"]}, "OUT_FEATURES .* names conv1"),
        ({"in_features": ["conv6"]}, "MODEL.HYPER.IN_FEATURES is"),
        ({"norm": "BN"}, "MODEL.HYPER.NORM is 'BN'"),
        ({"deconv_kernel": 7}, "MODEL.HYPER.DECONV_KERNEL is 7: it must be even"),
        ({"conv5_dilation": 2}, "MODEL.PAPER_VGG.CONV5_DILATION is 2, but HyperVGG16"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HyperVGG16(channels=NARROW, **arguments)


def test_normalisation_of_vgg16_is_refused(tiny_cfg) -> None:
    with pytest.raises(UserError, match="NORM is 'FrozenBN', which HyperVGG16"):
        build_model(tiny_cfg(*HYPER, "MODEL.PAPER_VGG.NORM", "FrozenBN"))


# ---- proposal network -----------------------------------------------------------------------


def random_boxes(count: int) -> Boxes:
    corners = torch.rand(count, 2) * 100 - 20
    return Boxes(torch.cat([corners, corners + 10 + torch.rand(count, 2) * 90], dim=1))


@pytest.mark.parametrize("conv_first", [True, False])
def test_head_by_the_definition(conv_first: bool, monkeypatch) -> None:
    monkeypatch.setattr(hyper_rpn, "_MOST_ANCHORS", 7)  # several chunks, the last one smaller
    torch.manual_seed(0)
    head = HyperRPNHead(5, 1 / 4, fc_dim=16, conv_first=conv_first)
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.3)
    features, boxes = torch.randn(2, 5, 24, 31), random_boxes(17)

    def conv(x: torch.Tensor) -> torch.Tensor:
        return F.relu(F.conv2d(x, head.rpn_conv.weight, head.rpn_conv.bias, padding=1))

    rois = torch.cat([boxes.tensor[:, :2], boxes.tensor[:, 2:] - 1], dim=1)
    pooled = roi_pool(conv(features) if conv_first else features, [rois, rois], 13, 1 / 4)
    x = F.relu(head.rpn_fc((pooled if conv_first else conv(pooled)).flatten(1)))
    scores = head.rpn_cls_score(x)
    logits, deltas = head.predict_all(head.prepare(features), boxes)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(logits.flatten(), scores[:, 1] - scores[:, 0], **close)
    torch.testing.assert_close(deltas.flatten(0, 1), head.rpn_bbox_pred(x), **close)


def rpn_cfg(tiny_cfg: Callable[..., CfgNode], *opts: Any) -> CfgNode:
    return tiny_cfg(*HYPER, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 32, *opts)


def test_gradient_is_that_of_all_anchors(tiny_cfg) -> None:
    torch.manual_seed(0)
    cfg = rpn_cfg(tiny_cfg)
    shapes = {"hyper": ShapeSpec(channels=18, stride=4), "conv5": ShapeSpec(8, stride=16)}
    rpn = HyperRPN(**HyperRPN.from_config(cfg, shapes)).train()
    for p in rpn.parameters():
        torch.nn.init.normal_(p, std=0.1)
    features = {"hyper": torch.randn(2, 18, 33, 41), "conv5": torch.empty(2, 8, 9, 11)}
    sizes = [(131, 162), (100, 150)]
    images = ImageList(torch.empty(2, 3, 131, 162), sizes)
    targets = [make_instances(sizes[0], [[20, 20, 90, 80]]), make_instances(sizes[1], [])]
    with EventStorage():
        torch.manual_seed(1)
        proposals, losses = rpn(images, features, targets)
        sum(losses.values()).backward()
        found = {n: p.grad for n, p in rpn.named_parameters()}
        rpn.zero_grad()
        torch.manual_seed(1)
        anchors = rpn.anchor_generator([features["conv5"]])
        labels, boxes = rpn.label_and_sample_anchors(anchors, targets)
        logits, deltas = rpn.rpn_head(rpn.rpn_head.prepare(features["hyper"]), [anchors[0]] * 2)
        expected = rpn.losses(anchors, [logits.view(2, -1)], labels, [deltas.view(2, -1, 4)], boxes)
        sum(expected.values()).backward()
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)
    for name, p in rpn.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name
        torch.testing.assert_close(found[name], p.grad)
    assert len(proposals) == 2 and not proposals[0].proposal_boxes.tensor.requires_grad
    # Alone in training, it selects nothing and pools the mini-batch only.
    rpn.select_in_training = False
    with EventStorage():
        torch.manual_seed(1)
        alone, again = rpn(images, features, targets)
    assert alone == []
    assert all(torch.equal(again[name], loss) for name, loss in losses.items())
    with pytest.raises(FloatingPointError, match="NaN"), EventStorage():
        rpn(images, {**features, "hyper": features["hyper"] * float("nan")}, targets)


def test_candidates_of_the_config() -> None:
    cfg = setup_cfg(get_config_file("extensions/hypernet_vgg16_voc.yaml"), ["MODEL.DEVICE", "cpu"])
    rules = BoxRules(cfg)
    assert rules.grid((600, 1000)) == (38, 63, 12)
    assert len(rules.anchors((600, 1000))) == 28_728
    assert rules.pooled_feature == ("hyper", 4)
    assert rules.rpn.anchor_matcher.thresholds[1:-1] == [0.3, 0.45]
    assert rules.rpn.loss_weight["loss_rpn_loc"] == 3.0


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.BACKBONE.NAME", "VGG16"], "POOL_FEATURE names 'hyper', but MODEL.BACKBONE.NAME V"),
        (["MODEL.RPN.IN_FEATURES", ["conv5", "hyper"]], "the anchors of HyperRPN lie on one map"),
        (["MODEL.RPN.IN_FEATURES", ["conv4"]], "MODEL.RPN.IN_FEATURES names 'conv4'"),
    ],
)
def test_wrong_configs(tiny_cfg, opts: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_model(tiny_cfg(*HYPER, "MODEL.ROI_HEADS.IN_FEATURES", ["conv5"], *opts))


# ---- all together ---------------------------------------------------------------------------

BATCHES = {
    "two odd sizes": [
        make_input(97, 131, [[10.0, 12.0, 60.0, 70.0]]),
        make_input(131, 161, [[20.0, 30.0, 90.0, 120.0]], seed=1),
    ],
    "an empty image": [make_input(97, 131, [])],
    "no anchor inside": [make_input(20, 30, [[2.0, 2.0, 20.0, 18.0]])],
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["MODEL.HYPER_RPN.CONV_FIRST", False, "MODEL.PAPER_RCNN.ONE_BY_ONE", True],
        ["SOLVER.AMP.ENABLED", True, "MODEL.PAPER_RCNN.INFERENCE_DTYPE", "bfloat16"],
        ["MODEL.ROI_HEADS.NUM_CLASSES", 1, "MODEL.HYPER.NORM", "", "MODEL.HYPER.RELU", False],
    ],
    ids=["SP", "pooled first, one by one", "bfloat16", "one class"],
)
def test_step_and_inference(tiny_cfg, batch: list[dict[str, Any]], opts: list[Any]) -> None:
    torch.manual_seed(0)
    model = build_model(rpn_cfg(tiny_cfg, *opts)).train()
    with EventStorage():
        losses = model(batch)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    # DistributedDataParallel waits for all.
    lacking = [name for name, p in model.named_parameters() if p.grad is None]
    assert lacking == [] and all(p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        for item, output in zip(batch, model(batch), strict=True):
            boxes = output["instances"].pred_boxes.tensor
            assert boxes.dtype == torch.float32
            assert (boxes >= 0).all() and (boxes[:, 2] <= item["width"]).all()
        _, features = model.features(batch)
        none = [Boxes(torch.zeros(0, 4))] * len(batch)
        head = model.proposal_generator.rpn_head
        assert head(head.prepare(features["hyper"]), none)[1].shape == (0, 4)


def test_autocast_keeps_no_weights_without_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older versions of torch would train on the weights that were cast for all anchors."""
    events: list[str] = []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: events.append("cleared"))
    head = HyperRPNHead(2, 0.25, resolution=2, fc_dim=4)
    head.rpn_fc.register_forward_hook(lambda *_: events.append("cast"))
    boxes = Boxes(torch.tensor([[0.0, 0, 8, 8]]))
    with torch.autocast("cpu", torch.bfloat16):
        prepared = head.prepare(torch.ones(1, 2, 4, 4))
        head.predict_all(prepared, boxes)
        head(prepared, [boxes])
        assert events == ["cast", "cleared", "cast"]


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.BACKBONE.NAME", "HyperVGG16", "MODEL.HYPER.CHANNELS", 4],
        [*HYPER[:6], *OUR_RPN[2:]],
        [*HYPER[:6], *HYPER[8:]],
    ],
    ids=["backbone", "RPN", "head"],
)
def test_each_part_in_a_stock_model(opts: list[Any]) -> None:
    torch.manual_seed(0)
    model = build_model(stock_cfg([*VGG, *STOCK_HEAD, *opts])).train()
    with EventStorage():
        losses = model(BATCHES["two odd sizes"])
    sum(losses.values()).backward()
    model.eval()
    with torch.no_grad():
        assert len(model(BATCHES["two odd sizes"])) == 2


def test_imagenet_weights(tiny_cfg, tmp_path: Path, caplog) -> None:
    narrow = ["MODEL.PAPER_VGG.CHANNELS", [4] * 5]
    layers = networks.vgg16()
    path = tmp_path / "vgg16.caffemodel"
    write_caffemodel(path, layers)
    cfg = tiny_cfg(*HYPER, *narrow)
    model = build_model(cfg)
    AtomicCheckpointer(model, cfg=cfg).load(str(path))
    assert model.backbone.conv5.conv5_3.weight.tolist() == layers["conv5_3"][0].tolist()
    lacking = {k: v for k, v in model.state_dict().items() if "conv4_2" not in k}
    torch.save({"model": lacking}, tmp_path / "lacking.pth")
    with pytest.raises(UserError, match="HyperVGG16: 12 of 13 conv layers found"):
        AtomicCheckpointer(build_model(cfg), cfg=cfg).load(str(tmp_path / "lacking.pth"))
    # A checkpoint brings back all of it.
    AtomicCheckpointer(model, str(tmp_path), cfg=cfg).save("all")
    other = build_model(cfg)
    AtomicCheckpointer(other, cfg=cfg, evaluating=True).load(str(tmp_path / "all.pth"))
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_stage_3_draws_the_head_anew(tiny_cfg, tmp_path: Path) -> None:
    model = build_model(tiny_cfg(*HYPER))
    for p in model.parameters():
        torch.nn.init.constant_(p, 1.0)
    begin_stage(model, STAGES[2], tmp_path, seed=1)
    drawn = {name for name, p in model.named_parameters() if not (p == 1).all()}
    layers = ("rpn_conv", "rpn_fc", "rpn_cls_score", "rpn_bbox_pred")
    assert drawn == {
        f"proposal_generator.rpn_head.{layer}.{kind}"
        for layer in layers
        for kind in ("weight", "bias")
    }
    assert model.proposal_generator.rpn_head.rpn_fc.weight.std().item() == pytest.approx(0.01, 0.1)

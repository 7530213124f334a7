"""Each component alone, by registry name, inside models of Detectron2."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from frcnn_plugin import add_frcnn_config
from tests.conftest import make_input

STOCK = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"),
    *("MODEL.MASK_ON", False),
    *("MODEL.ROI_HEADS.NUM_CLASSES", 3),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64]]),
    *("MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.BACKBONE.FREEZE_AT", 0),
]
VGG = [
    *("MODEL.BACKBONE.NAME", "VGG16"),
    *("MODEL.PAPER_VGG.CHANNELS", [4, 4, 8, 8, 8]),
    *("MODEL.RPN.IN_FEATURES", ["conv5"]),
    *("MODEL.ROI_HEADS.IN_FEATURES", ["conv5"]),
]
STOCK_HEAD = [
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
    *("MODEL.ROI_BOX_HEAD.NUM_FC", 1),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
]
OUR_RPN = [
    *("MODEL.PROPOSAL_GENERATOR.NAME", "PaperRPN"),
    *("MODEL.RPN.HEAD_NAME", "SoftmaxRPNHead"),
    *("MODEL.ANCHOR_GENERATOR.NAME", "CaffeAnchorGenerator"),
    *("MODEL.RPN.BOUNDARY_THRESH", 0),
    *("MODEL.RPN.CONV_DIMS", [16]),
]
OUR_HEADS = [
    *("MODEL.ROI_HEADS.NAME", "CaffeROIHeads"),
    *("MODEL.ROI_BOX_HEAD.NAME", "FC6FC7Head"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7),
]
RESNET_C4 = [*("MODEL.RESNETS.OUT_FEATURES", ["res4"])]

CASES: dict[str, list[Any]] = {
    "VGG16 under stock RPN and heads": [*VGG, *STOCK_HEAD],
    "ZF under stock RPN and heads": [
        *VGG,
        *STOCK_HEAD,
        *("MODEL.BACKBONE.NAME", "ZF"),
        *("MODEL.PAPER_ZF.CHANNELS", [4, 4, 8, 8, 8]),
    ],
    "PaperRPN on ResNet-C4": [*RESNET_C4, *OUR_RPN, *STOCK_HEAD],
    "CaffeROIHeads on ResNet-C4": [*RESNET_C4, *OUR_HEADS],
    "CaffeCascadeROIHeads on ResNet-C4": [
        *RESNET_C4,
        *OUR_HEADS,
        *("MODEL.ROI_HEADS.NAME", "CaffeCascadeROIHeads"),
        *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    ],
    "CaffeROIHeads on VGG16": [*VGG, *OUR_HEADS],
    "hard RoIs and soft suppression on ResNet-C4": [
        *RESNET_C4,
        *OUR_HEADS,
        *("MODEL.ROI_HEADS.SAMPLING", "hard"),
        *("MODEL.ROI_HEADS.NMS_METHOD_TEST", "gaussian"),
    ],
    "PaperRPN and CaffeROIHeads on ResNet-C4": [*RESNET_C4, *OUR_RPN, *OUR_HEADS],
    "PaperRPN over two VGG16 features": [
        *VGG,
        *OUR_RPN,
        *STOCK_HEAD,
        *("MODEL.PAPER_VGG.CHANNELS", [4, 4, 8, 8, 8]),
        *("MODEL.PAPER_VGG.OUT_FEATURES", ["conv4", "conv5"]),
        *("MODEL.RPN.IN_FEATURES", ["conv4", "conv5"]),
    ],
}


def stock_cfg(opts: list[Any]) -> CfgNode:
    cfg = get_cfg()
    add_frcnn_config(cfg)
    cfg.merge_from_list([*STOCK, *opts])
    return cfg


@pytest.mark.parametrize("opts", CASES.values(), ids=CASES.keys())
def test_training_step_and_inference(opts: list[Any]) -> None:
    torch.manual_seed(0)
    model = build_model(stock_cfg(opts)).train()
    batch = [
        make_input(97, 131, [[10.0, 12.0, 60.0, 70.0]]),
        make_input(131, 160, [], seed=1),
    ]
    with EventStorage():
        losses = model(batch)
    names = {re.sub(r"_head\d", "", name) for name in losses}
    assert names == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    loss = sum(losses.values())
    assert torch.isfinite(loss)
    loss.backward()
    model.eval()
    with torch.no_grad():
        assert [x["instances"].image_size for x in model(batch)] == [(97, 131), (131, 160)]


def test_detectron2s_defaults_stay_as_they_are() -> None:
    before = get_cfg().dump()
    add_frcnn_config(get_cfg())
    assert get_cfg().dump() == before


def test_our_keys_are_neutral() -> None:
    """With our keys added, a stock config builds the same model."""
    cfg, extended = get_cfg(), get_cfg()
    add_frcnn_config(extended)
    for node in (cfg, extended):
        node.merge_from_list([*STOCK, *RESNET_C4])
    models = []
    for node in (cfg, extended):
        torch.manual_seed(0)
        models.append(build_model(node))
    assert str(models[0]) == str(models[1])


def test_adding_the_keys_twice_keeps_values() -> None:
    cfg = get_cfg()
    add_frcnn_config(cfg)
    cfg.MODEL.PAPER_VGG.CHANNELS = [1, 2, 3, 4, 5]
    add_frcnn_config(cfg)
    assert cfg.MODEL.PAPER_VGG.CHANNELS == [1, 2, 3, 4, 5]

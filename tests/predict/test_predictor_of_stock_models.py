"""A predictor of Detectron2's own models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from frcnn_plugin.errors import UserError
from frcnn_plugin.predict import FasterRCNNPredictor
from tests.predict.saved_detectors import assert_same
from tests.random_detector import squares


def stock_cfg(*opts: object) -> CfgNode:
    """A stock Detectron2 model, as small as it gets: no key of ours is used."""
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 50, "MODEL.ROI_HEADS.NUM_CLASSES", 3),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
            *("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 96, *opts),
        ]
    )
    return cfg


def saved(folder: Path, cfg: CfgNode) -> tuple[Path, str]:
    """Weights of its model, and the config file that they need: nothing of Detectron2's has one."""
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "stock.pth")
    (folder / "stock.yaml").write_text(cfg.dump())
    return folder / "stock.pth", str(folder / "stock.yaml")


ONE_LAYER = (
    *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead"),
    *("MODEL.ROI_BOX_HEAD.NUM_FC", 1, "MODEL.ROI_BOX_HEAD.FC_DIM", 9),
)


@pytest.mark.parametrize(
    ("opts", "width"),
    [
        ((), 128),  # Res5ROIHeads
        (("MODEL.ROI_HEADS.NAME", "StandardROIHeads", *ONE_LAYER), 9),
    ],
)
def test_stock_models(tmp_path: Path, opts: tuple, width: int) -> None:
    predictor = FasterRCNNPredictor(*saved(tmp_path, stock_cfg(*opts)), score_threshold=0.0)
    image = squares(60, 90)
    detected = predictor(image, features=True)
    assert_same(detected, predictor(image))
    assert len(detected) and detected.fc7.shape[1] == width
    given = predictor.extract(image, detected.proposal_boxes.tensor)
    torch.testing.assert_close(given.fc7, detected.fc7, rtol=1e-3, atol=1e-3)


def test_heads_without_one_feature_vector(tmp_path: Path) -> None:
    agnostic = ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)
    cfg = stock_cfg("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", *agnostic, *ONE_LAYER)
    predictor = FasterRCNNPredictor(*saved(tmp_path, cfg))
    predictor(squares(60, 90))
    with pytest.raises(UserError, match=r"CascadeROIHeads has not one feature vector per box: f"):
        predictor(squares(60, 90), features=True)


def test_another_family(tmp_path: Path) -> None:
    cfg = stock_cfg(
        *("MODEL.META_ARCHITECTURE", "RetinaNet"),
        *("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"]),
        *("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone"),
        *("MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"], "MODEL.RETINANET.NUM_CONVS", 1),
        *("MODEL.FPN.OUT_CHANNELS", 8, "MODEL.RETINANET.NUM_CLASSES", 3),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64], [128], [256], [512]]),
    )
    path, config = saved(tmp_path, cfg)
    with pytest.raises(UserError, match=r"RetinaNet has neither proposals nor ROI heads: a model"):
        FasterRCNNPredictor(path, config)

"""The demo's detector on generated shapes, with narrow layers and random weights."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.modeling import build_model

from frcnn_plugin import get_config_file
from frcnn_plugin.engine import setup_cfg

DEMO = get_config_file("demo/vgg16_shapes_joint.yaml")
SMALL = [
    *("MODEL.PAPER_VGG.CHANNELS", "[4,4,8,8,8]"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.DEVICE", "cpu"),
]


def random_weights(folder: Path) -> str:
    """Save the detector; return the checkpoint's path."""
    torch.manual_seed(0)
    torch.save({"model": build_model(setup_cfg(DEMO, SMALL)).state_dict()}, folder / "model.pth")
    return str(folder / "model.pth")

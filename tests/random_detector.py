"""Detectors that find something everywhere, and pictures with something on them, without data."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model


def random_detector(cfg: CfgNode) -> torch.nn.Module:
    """A model whose random weights are large enough that scores and boxes differ by place."""
    torch.manual_seed(0)
    model = build_model(cfg)
    for name, p in model.named_parameters():
        if p.dim() > 1:
            torch.nn.init.kaiming_normal_(p)
        if "pred" in name or "cls_score" in name:
            p.data.mul_(0.2)
    return model.eval()


def squares(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 of coloured squares, large enough to survive resizing."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((10, 10, 1), dtype=np.uint8))[:height, :width]

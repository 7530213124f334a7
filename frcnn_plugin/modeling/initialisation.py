"""Random weights as Caffe's Gaussian filler draws them (filler.hpp)."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def redraw(
    layer: nn.Conv2d | nn.Linear, std: float, generator: torch.Generator | None = None
) -> None:
    """Fill the weight from N(0, ``std``), not truncated, and the bias with 0, in place.

    Args:
        layer: with a bias.
        std: standard deviation.
        generator: of the CPU, so that all devices and processes draw the same; torch's global one
            if None.
    """
    assert layer.bias is not None
    layer.weight.copy_(torch.empty(layer.weight.shape).normal_(0.0, std, generator=generator))
    layer.bias.zero_()

"""The Zeiler-Fergus network, the paper's fast backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn
from torch.nn import functional as F

from ...host import register
from ...layers.conv3x3 import Conv3x3
from .caffe_backbone import CaffeBackbone


class WithinChannelLRN(nn.Module):
    """Caffe's local response normalisation with ``norm_region: WITHIN_CHANNEL``.

    ``y = x * (1 + alpha * mean(x^2))^-beta``, the mean over a square window of the same channel,
    zero-padded and always divided by the full window. ``torch.nn.LocalResponseNorm`` sums across
    channels instead and does not fit ZF.

    Source: Caffe lrn_layer.cpp.
    """

    def __init__(self, size: int = 3, alpha: float = 5e-5, beta: float = 0.75) -> None:
        """Set the constants; ``size`` is the odd side of the window in cells."""
        super().__init__()
        self.size = size
        self.alpha = alpha
        self.beta = beta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x`` (N, C, H, W); the shape stays."""
        energy = F.avg_pool2d(x * x, self.size, stride=1, padding=self.size // 2)
        return x * (1 + self.alpha * energy).pow(-self.beta)

    def extra_repr(self) -> str:
        """Return the constants for ``print(model)``."""
        return f"size={self.size}, alpha={self.alpha}, beta={self.beta}"


@register(BACKBONE_REGISTRY)
class ZF(CaffeBackbone):
    """Five convolutions as blocks ``conv1`` .. ``conv5``, strides 2, 8, 16, 16, 16.

    The normalisation and pooling after conv1 and conv2 belong to the next block, so that every
    feature is the output of a ReLU. Pooling rounds up; a 600x1000 image gives a 39x64 ``conv5``.

    Source: py-faster-rcnn models/pascal_voc/ZF, the authors' ZF prototxts.
    """

    config_node = "PAPER_ZF"

    @configurable
    def __init__(
        self,
        *,
        in_channels: int = 3,
        channels: Sequence[int] = (96, 256, 384, 384, 256),
        out_features: Sequence[str] = ("conv5",),
        freeze_at: int = 0,
    ) -> None:
        """Build the layers with random weights.

        Args:
            in_channels: channels of the image.
            channels: output channels of conv1..conv5.
            out_features: names of the returned features, any of conv1..conv5.
            freeze_at: number of leading blocks that do not train, 0 to 5 (paper: 0).
        """
        c1, c2, c3, c4, c5 = channels

        def norm_pool(i: int) -> list[tuple[str, nn.Module]]:
            return [
                (f"norm{i}", WithinChannelLRN()),
                (f"pool{i}", nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)),
            ]

        def conv(i: int, before: int, width: int, k: int, s: int) -> list[tuple[str, nn.Module]]:
            layer: nn.Module
            if (k, s) == (3, 1):
                layer = Conv3x3(before, width)
            else:
                layer = nn.Conv2d(before, width, kernel_size=k, stride=s, padding=k // 2)
            return [(f"conv{i}", layer), (f"relu{i}", nn.ReLU())]

        blocks = {
            "conv1": conv(1, in_channels, c1, 7, 2),
            "conv2": norm_pool(1) + conv(2, c1, c2, 5, 2),
            "conv3": norm_pool(2) + conv(3, c2, c3, 3, 1),
            "conv4": conv(4, c3, c4, 3, 1),
            "conv5": conv(5, c4, c5, 3, 1),
        }
        super().__init__(blocks, channels, (2, 8, 16, 16, 16), out_features, freeze_at)

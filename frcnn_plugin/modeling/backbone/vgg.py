"""VGG16 without its classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn

from ...host import register
from ...layers.conv3x3 import Conv3x3
from .caffe_backbone import CaffeBackbone

# Convolutions per block, conv1_1..conv5_3.
_CONVS_PER_BLOCK = (2, 2, 3, 3, 3)

_STRIP = 100  # rows of conv1 that are computed at a time; even, as pooling takes two at a time


@register(BACKBONE_REGISTRY)
class VGG16(CaffeBackbone):
    """The 13 convolutions of VGG16 as blocks ``conv1`` .. ``conv5``, strides 1, 2, 4, 8, 16.

    Differs from torchvision's VGG16: pooling rounds *up* (Caffe), so a 600x1000 image gives a
    38x63 ``conv5`` instead of 37x62, and pool5 is left out (RoI pooling takes its place).

    Layers have Caffe's names: the weight of conv3_2 is ``conv3.conv3_2.weight``.

    Source: py-faster-rcnn models/pascal_voc/VGG16; Caffe pooling_layer.cpp.
    """

    config_node = "PAPER_VGG"

    @configurable
    def __init__(
        self,
        *,
        in_channels: int = 3,
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        out_features: Sequence[str] = ("conv5",),
        freeze_at: int = 0,
    ) -> None:
        """Build the layers with random weights.

        Args:
            in_channels: channels of the image.
            channels: output channels of the five blocks.
            out_features: names of the returned features, any of conv1..conv5. Blocks after the
                last one are not built.
            freeze_at: number of leading blocks that do not train, 0 to 5 (paper: 2).
        """
        blocks: dict[str, list[tuple[str, nn.Module]]] = {}
        for i, (convs, width) in enumerate(zip(_CONVS_PER_BLOCK, channels, strict=True), start=1):
            layers = blocks[f"conv{i}"] = []
            if i > 1:
                layers.append((f"pool{i - 1}", nn.MaxPool2d(2, 2, ceil_mode=True)))
            for j in range(1, convs + 1):
                layers.append((f"conv{i}_{j}", Conv3x3(in_channels, width)))
                layers.append((f"relu{i}_{j}", nn.ReLU(inplace=True)))
                in_channels = width
        super().__init__(blocks, channels, (1, 2, 4, 8, 16), out_features, freeze_at)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images to ``{"conv5": (N, 512, ceil(H/16), ceil(W/16)), ...}``."""
        if not self._runs_in_strips(x):
            return self._run(x)
        return self._run(self._conv1_pool1(x), skip=len(self.conv1) + 1)

    def _runs_in_strips(self, x: torch.Tensor) -> bool:
        """Tell whether to compute conv1 in strips: on a CPU, if nothing needs its whole map."""
        trains = torch.is_grad_enabled() and (
            x.requires_grad or any(p.requires_grad for p in self.conv1.parameters())
        )
        kept = "conv1" in self._kept or "conv2" not in self.block_names
        layers = [*self.conv1, *(self.conv2[:1] if not kept else ())]
        watched = any(m._forward_hooks or m._forward_pre_hooks for m in layers)
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        return x.device.type == "cpu" and not (trains or kept or watched or traced)

    def _conv1_pool1(self, x: torch.Tensor) -> torch.Tensor:
        """Compute conv1 and its pooling, some rows at a time.

        The whole conv1 of a 600x1000 image takes 300 MB, the peak of inference. A row of its output
        depends on the two rows of the image above and below it; with these in every strip, the
        numbers are the same.
        """
        height = x.shape[2]
        pooled = []
        for first in range(0, height, _STRIP):
            last = min(height, first + _STRIP)
            top = max(0, first - 2)
            strip = self.conv1(x[:, :, top : last + 2])
            pooled.append(self.conv2[0](strip[:, :, first - top : last - top]))
        return torch.cat(pooled, dim=2)

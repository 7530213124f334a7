"""VGG16 without its classifier, alone and under a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import UserError
from ...host import register
from ...layers.conv3x3 import Conv3x3
from ...layers.packed import is_traced
from .caffe_backbone import CaffeBackbone, is_watched, needs_gradient, steps_of

# Convolutions per block, conv1_1..conv5_3.
_CONVS_PER_BLOCK = (2, 2, 3, 3, 3)

_STRIP = 100  # rows of conv1 that are computed at a time; even, as pooling takes two at a time


@register(BACKBONE_REGISTRY)
class VGG16(CaffeBackbone):
    """The 13 convolutions of VGG16 as blocks ``conv1`` .. ``conv5``, strides 1, 2, 4, 8, 16.

    Differs from torchvision's VGG16: pooling rounds *up* (Caffe), so a 600x1000 image gives a
    38x63 ``conv5`` instead of 37x62, and pool5 is left out (RoI pooling takes its place).

    Layers have Caffe's names: the weight of conv3_2 is ``conv3.conv3_2.weight``, that of a
    normalisation after it ``conv3.bn3_2.weight``.

    With ``conv5_dilation`` 2, ``conv5`` has stride 8 and the size of ``conv4``: pool4 moves by one
    cell instead of two, and the convolutions of conv5 skip every second cell. ImageNet's weights
    stay right: the cells of even rows and columns are those of stride 16, and all see 196 pixels,
    as those do.

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
        conv5_dilation: int = 1,
        norm: str = "",
    ) -> None:
        """Build the layers with random weights.

        Args:
            in_channels: channels of the image.
            channels: output channels of the five blocks.
            out_features: names of the returned features, any of conv1..conv5. Blocks after the
                last one are not built.
            freeze_at: number of leading blocks that do not train, 0 to 5 (paper: 2). Their
                normalisations are frozen, too.
            conv5_dilation: 1 (original), or 2 for a conv5 of stride 8.
            norm: Detectron2's name of a normalisation after each convolution, such as "FrozenBN";
                "": none (original).

        Raises:
            UserError: another dilation.
        """
        if conv5_dilation not in (1, 2):
            raise UserError(f"MODEL.PAPER_VGG.CONV5_DILATION is {conv5_dilation}: use 1 or 2")
        blocks: dict[str, list[tuple[str, nn.Module]]] = {}
        for i, (convs, width) in enumerate(zip(_CONVS_PER_BLOCK, channels, strict=True), start=1):
            layers = blocks[f"conv{i}"] = []
            dilation = conv5_dilation if i == 5 else 1
            if i > 1:
                pool = nn.MaxPool2d(2, 2, ceil_mode=True) if dilation == 1 else _DensePool(2, 1, 1)
                layers.append((f"pool{i - 1}", pool))
            for j in range(1, convs + 1):
                layers.append((f"conv{i}_{j}", Conv3x3(in_channels, width, dilation)))
                if norm:
                    layers.append((f"bn{i}_{j}", get_norm(norm, width)))
                layers.append((f"relu{i}_{j}", nn.ReLU(inplace=True)))
                in_channels = width
        strides = (1, 2, 4, 8, 16 // conv5_dilation)
        super().__init__(blocks, channels, strides, out_features, freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read the arguments from ``MODEL.PAPER_VGG`` and ``MODEL.BACKBONE.FREEZE_AT``."""
        ret = super().from_config(cfg, input_shape)
        ret["conv5_dilation"] = cfg.MODEL.PAPER_VGG.CONV5_DILATION
        ret["norm"] = cfg.MODEL.PAPER_VGG.NORM
        return ret

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images to ``{"conv5": (N, 512, ceil(H/16), ceil(W/16)), ...}``."""
        if not self._runs_in_strips(x):
            return self._run(x)
        return self._run(self._conv1_pool1(x), skip=len(self.conv1) + 1)

    def _runs_in_strips(self, x: torch.Tensor) -> bool:
        """Tell whether to compute conv1 in strips: on a CPU, if nothing needs its whole map."""
        kept = "conv1" in self._kept or "conv2" not in self.block_names
        layers = [*self.conv1, *(self.conv2[:1] if not kept else ())]
        watched = any(map(is_watched, layers))
        # A normalisation that takes statistics takes them of whole maps.
        fixed = all(
            isinstance(m, (nn.Conv2d, nn.ReLU, FrozenBatchNorm2d))
            or (isinstance(m, _BatchNorm) and not m.training)
            for m in self.conv1
        )
        plain = fixed and not (kept or watched or is_traced() or needs_gradient(x, self.conv1))
        return x.device.type == "cpu" and plain

    @torch.no_grad()
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
            strip = x[:, :, top : last + 2]
            for step in steps_of(list(self.conv1)):
                strip = step(strip)
            pooled.append(self.conv2[0](strip[:, :, first - top : last - top]))
        return torch.cat(pooled, dim=2)


class _DensePool(nn.MaxPool2d):
    """A 2x2 max pooling that moves by one cell and keeps the size of the map.

    At even rows and columns it is Caffe's pooling of stride 2, whose last window, too, is cut off.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Padded by one cell on all sides, of which only those below and to the right are wanted.
        return super().forward(x)[:, :, 1:, 1:]


class LastLevelsMaxPool(nn.Module):
    """Coarser maps of a pyramid, for the largest anchors: every second cell of the last one.

    Detectron2's ``LastLevelMaxPool`` adds one, to "p5" only; VGG16's pyramid ends with "p4".
    """

    def __init__(self, in_feature: str, num_levels: int = 2) -> None:
        """Name the last map of the pyramid, and set how many follow."""
        super().__init__()
        self.in_feature = in_feature
        self.num_levels = num_levels

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (N, C, H, W) to maps of half the size, a quarter, ..."""
        maps = []
        for _ in range(self.num_levels):
            x = F.max_pool2d(x, kernel_size=1, stride=2)
            maps.append(x)
        return maps


@register(BACKBONE_REGISTRY)
def build_vgg16_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's feature pyramid on VGG16, for our heads and Detectron2's own.

    ``MODEL.FPN.IN_FEATURES ["conv3", "conv4", "conv5"]`` gives "p2", "p3" and "p4" (strides 4, 8
    and 16), and "p5" and "p6" as every second cell of the map before. Images are padded to
    multiples of the last of the three strides: Caffe's rounding up then changes nothing, and maps
    fit on each other.

    Raises:
        UserError: the features are not neighbours of doubling strides, in this order.
    """
    names = list(cfg.MODEL.FPN.IN_FEATURES)
    arguments = VGG16.from_config(cfg, input_shape)
    bottom_up = VGG16(**{**arguments, "out_features": names or ["conv5"]})
    strides = [bottom_up.output_shape()[name].stride for name in names]
    if not names or strides != [strides[0] * 2**i for i in range(len(names))]:
        raise UserError(
            f"MODEL.FPN.IN_FEATURES is {names}, with strides {strides}: a pyramid needs doubling "
            "ones, such as [conv3, conv4, conv5] with MODEL.PAPER_VGG.CONV5_DILATION 1"
        )
    last = f"p{strides[-1].bit_length() - 1}"
    return FPN(
        bottom_up=bottom_up,
        in_features=names,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelsMaxPool(last),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )

"""HyperNet's features: maps of several blocks of VGG16, brought to stride 4 and joined."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn
from torch.nn import functional as F

from ...errors import UserError
from ...host import register
from .vgg import VGG16

_STRIDE = 4  # of the joined map
_STRIDES = {"conv1": 1, "conv2": 2, "conv3": 4, "conv4": 8, "conv5": 16}


class Upsampling(nn.Module):
    """A transposed convolution that makes a map exactly ``factor`` times as large.

    It starts as bilinear interpolation, the usual filler of such layers in Caffe, and is trained.
    """

    def __init__(self, channels: int, factor: int, kernel_size: int, per_channel: bool) -> None:
        """Build the layer without bias.

        Args:
            channels: of the map; the output has as many.
            factor: 2 or 4.
            kernel_size: factor, or an even number more, so that a side n becomes factor * n.
            per_channel: one filter per channel; False: every output sees all channels.
        """
        super().__init__()
        margin = kernel_size - factor
        if margin < 0 or margin % 2:
            raise UserError(
                f"MODEL.HYPER.DECONV_KERNEL is {kernel_size}: it must be even, and {factor} or "
                f"more, to make a map exactly {factor} times as large"
            )
        groups = channels if per_channel else 1
        self.deconv = nn.ConvTranspose2d(
            channels, channels, kernel_size, factor, margin // 2, groups=groups, bias=False
        )
        # The triangle of bilinear interpolation, cut off by a kernel below twice the factor.
        distance = torch.arange(kernel_size) - (kernel_size - 1) / 2
        line = (1 - distance.abs() / factor).clamp(min=0)
        with torch.no_grad():
            self.deconv.weight.zero_()
            own = torch.arange(channels)
            self.deconv.weight[own, 0 if per_channel else own] = line[:, None] * line

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C, factor * H, factor * W)."""
        y: torch.Tensor = self.deconv(x)
        return y


@register(BACKBONE_REGISTRY)
class HyperVGG16(VGG16):
    """VGG16 that also returns "hyper", the joined map of HyperNet at stride 4.

    Maps of smaller strides are max-pooled, those of larger ones go through a transposed
    convolution and are cut to size at the right and at the bottom. Each is then compressed by a
    convolution and normalised, so that none outweighs the others, and all are concatenated. A
    600x1000 image gives 126 channels of 150x250.

    The 13 convolutions have VGG16's names, and ``freeze_at`` counts its blocks; the hyper layers
    train wherever the backbone does.

    Source: HyperNet, arXiv 1604.00600, of which no code was published: docs/family.md says what is
    a choice of ours.
    """

    @configurable
    def __init__(
        self,
        *,
        out_features: Sequence[str] = ("conv5",),
        in_features: Sequence[str] = ("conv1", "conv3", "conv5"),
        hyper_channels: int = 42,
        kernel_size: int = 5,
        relu: bool = True,
        norm: str = "LRN",
        lrn: Sequence[float] = (5, 1e-4, 0.75),
        deconv_kernel: int = 8,
        deconv_per_channel: bool = True,
        **kwargs: object,
    ) -> None:
        """Build the layers with random weights.

        Args:
            out_features: blocks that are returned beside "hyper", any of conv2..conv5.
            in_features: blocks that are joined, in this order.
            hyper_channels: channels of each after compression.
            kernel_size: odd side of the compressing convolutions.
            relu: whether a ReLU follows them.
            norm: "LRN", local response normalisation across channels, or "".
            lrn: its size in channels, alpha and beta.
            deconv_kernel: side of the transposed convolutions; see :class:`Upsampling`.
            deconv_per_channel: see :class:`Upsampling`.
            kwargs: further arguments of :class:`VGG16`.

        Raises:
            UserError: an argument is out of range, conv1 is to be returned, or conv5 is dilated.
        """
        if kwargs.get("conv5_dilation", 1) != 1:
            raise UserError(
                f"MODEL.PAPER_VGG.CONV5_DILATION is {kwargs['conv5_dilation']}, but HyperVGG16 "
                "enlarges a conv5 of stride 16: set it to 1, or MODEL.BACKBONE.NAME VGG16"
            )
        if "conv1" in out_features:
            raise UserError(
                f"HyperVGG16: MODEL.PAPER_VGG.OUT_FEATURES {list(out_features)} names conv1, which "
                "it keeps pooled only: use any of conv2, conv3, conv4, conv5"
            )
        if norm not in ("LRN", ""):
            raise UserError(f"MODEL.HYPER.NORM is '{norm}': use 'LRN' or ''")
        unknown = [name for name in in_features if name not in _STRIDES]
        if unknown or not in_features:
            raise UserError(
                f"MODEL.HYPER.IN_FEATURES is {list(in_features)}: name one or more of "
                f"{', '.join(_STRIDES)}"
            )
        # conv1 is not among them: where all are frozen it is computed in strips, never as a whole.
        kept = [name for name in _STRIDES if name in (*in_features, *out_features)]
        kept = [name for name in kept if name != "conv1"] or ["conv2"]
        super().__init__(out_features=kept, **kwargs)
        self.in_features = list(in_features)
        channels = {name: getattr(self, name)[-2].out_channels for name in self.block_names}
        self.hyper = nn.ModuleDict()
        for name in in_features:
            layers = nn.Sequential()
            if (factor := _STRIDES[name] // _STRIDE) > 1:
                up = Upsampling(channels[name], factor, deconv_kernel, deconv_per_channel)
                layers.add_module("up", up)
            conv = nn.Conv2d(channels[name], hyper_channels, kernel_size, padding=kernel_size // 2)
            nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            layers.add_module("conv", conv)
            if relu:
                layers.add_module("relu", nn.ReLU(inplace=True))
            if norm:
                layers.add_module("norm", nn.LocalResponseNorm(int(lrn[0]), lrn[1], lrn[2], k=1.0))
            self.hyper[name] = layers
        self._out_features = ["hyper", *out_features]
        self._out_feature_channels = {"hyper": hyper_channels * len(in_features)} | {
            name: channels[name] for name in out_features
        }
        self._out_feature_strides = {"hyper": _STRIDE} | {n: _STRIDES[n] for n in out_features}

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read VGG16's arguments, and those of the hyper layers from ``MODEL.HYPER``.

        Raises:
            UserError: VGG16's own normalisation is wanted, which there is none of here.
        """
        ret = super().from_config(cfg, input_shape)
        if ret["norm"]:
            raise UserError(
                f"MODEL.PAPER_VGG.NORM is '{ret['norm']}', which HyperVGG16 does not have: set it "
                'to "", or MODEL.BACKBONE.NAME VGG16'
            )
        node = cfg.MODEL.HYPER
        return {
            **ret,
            "in_features": node.IN_FEATURES,
            "hyper_channels": node.CHANNELS,
            "kernel_size": node.KERNEL,
            "relu": node.RELU,
            "norm": node.NORM,
            "lrn": node.LRN,
            "deconv_kernel": node.DECONV_KERNEL,
            "deconv_per_channel": node.DECONV_PER_CHANNEL,
        }

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images to ``{"hyper": (N, 126, ceil(H/4), ceil(W/4)), ...}``."""
        # Not -(-side // 4): ONNX rounds that towards 0.
        rows, columns = ((side + _STRIDE - 1) // _STRIDE for side in x.shape[2:])
        features = super().forward(x)
        maps = []
        for name in self.in_features:
            y = features[name]
            if name == "conv2":
                y = F.max_pool2d(y, 2, 2, ceil_mode=True)
            # What is too much: ceil(H/16) * 4 >= ceil(H/4), and so at stride 8.
            maps.append(self.hyper[name](y)[..., :rows, :columns])
        outputs = {"hyper": torch.cat(maps, dim=1)}
        return outputs | {name: features[name] for name in self._out_features[1:]}

    def _run(self, x: torch.Tensor, skip: int = 0) -> dict[str, torch.Tensor]:
        if "conv1" not in self.in_features:
            return super()._run(x, skip)
        # Pooling 2x2 twice is pooling 4x4, rounded up or not, and VGG16 does the first anyway.
        if skip == 0:
            for layer in (*self.conv1, self.conv2[0]):
                x = layer(x)
        pooled = F.max_pool2d(x, 2, 2, ceil_mode=True)
        return {"conv1": pooled} | super()._run(x, len(self.conv1) + 1)

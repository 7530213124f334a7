"""The two sibling layers of the paper's region proposal network.

Shape shorthand in this module: N images in the batch, A anchors per cell (9).
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from torch import nn
from torch.nn import functional as F

from ...errors import UserError
from ...host import register
from ...layers.conv3x3 import Conv3x3


@register(RPN_HEAD_REGISTRY)
class SoftmaxRPNHead(nn.Module):
    """3x3 conv, then a two-way softmax classifier and a box regressor per anchor.

    The classifier has 2A channels in Caffe's order: background of anchors 0..A-1, then object of
    anchors 0..A-1. The head returns ``object - background``, one logit per anchor, so that it
    fits any RPN: the sigmoid cross entropy of that difference *is* the softmax cross entropy, in
    value and in gradient, while both weight vectors keep training (a head with one logit would
    learn half as fast, example E12).

    Source: paper section 3.1 and footnote 4; py-faster-rcnn and MATLAB prototxts.
    """

    @configurable
    def __init__(
        self, *, in_channels: int, num_anchors: int, conv_channels: int = -1, box_dim: int = 4
    ) -> None:
        """Build the layers with N(0, 0.01) weights and zero biases.

        Args:
            in_channels: channels of the feature map.
            num_anchors: A.
            conv_channels: width of the 3x3 conv; -1: ``in_channels`` (512 VGG16, 256 ZF).
            box_dim: numbers per box; 4.
        """
        super().__init__()
        width = in_channels if conv_channels == -1 else conv_channels
        self.rpn_conv = Conv3x3(in_channels, width)
        self.rpn_cls_score = nn.Conv2d(width, 2 * num_anchors, kernel_size=1)
        self.rpn_bbox_pred = nn.Conv2d(width, box_dim * num_anchors, kernel_size=1)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, N(0, 0.01), biases 0, in place; see :func:`redraw`."""
        for layer in (self.rpn_conv, self.rpn_cls_score, self.rpn_bbox_pred):
            redraw(layer, 0.01, generator)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, object]:
        """Read the arguments; ``MODEL.RPN.CONV_DIMS`` is the width of the 3x3 conv.

        Raises:
            UserError: more than one conv is asked for.
        """
        ret = StandardRPNHead.from_config(cfg, input_shape)
        dims = ret.pop("conv_dims")
        if len(dims) != 1:
            raise UserError(
                f"MODEL.RPN.CONV_DIMS is {dims}, but SoftmaxRPNHead has one 3x3 conv: "
                "give one number, or -1 for as many channels as the feature map"
            )
        return {**ret, "conv_channels": dims[0]}

    def forward(
        self, features: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Predict objectness and deltas.

        Args:
            features: feature maps, each (N, C, H, W).

        Returns:
            logits ``object - background``, each (N, A, H, W), and deltas, each (N, A*4, H, W),
            channel 4a + j being delta j of anchor a.
        """
        pred_objectness_logits = []
        pred_anchor_deltas = []
        for x in features:
            t = F.relu(self.rpn_conv(x))
            background, foreground = self.rpn_cls_score(t).chunk(2, dim=1)
            # In float32: reduced precision would lose most of the difference of close numbers.
            pred_objectness_logits.append(foreground.float() - background.float())
            pred_anchor_deltas.append(self.rpn_bbox_pred(t))
        return pred_objectness_logits, pred_anchor_deltas


@torch.no_grad()
def redraw(
    layer: nn.Conv2d | nn.Linear, std: float, generator: torch.Generator | None = None
) -> None:
    """Fill the weight from N(0, ``std``), not truncated, and the bias with 0, in place.

    Draws on the CPU, so that all devices and processes get the same; by torch's global generator
    if None is given.

    Source: Caffe filler.hpp (GaussianFiller).
    """
    assert layer.bias is not None
    layer.weight.copy_(torch.empty(layer.weight.shape).normal_(0.0, std, generator=generator))
    layer.bias.zero_()

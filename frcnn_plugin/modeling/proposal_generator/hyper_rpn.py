"""HyperNet's proposal network: an RPN that pools each of its anchors.

Shape shorthand in this module: N images in the batch, R anchors of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes
from torch import nn
from torch.nn import functional as F

from ...errors import UserError
from ...host import register
from ..roi_heads.poolers import build_pooler
from .rpn import PaperRPN
from .rpn_head import redraw

# Anchors that are pooled at a time without gradient, and the bytes they take then, at most.
_MOST_ANCHORS, _MOST_BYTES = 8192, 2**27


class HyperRPNHead(nn.Module):
    """RoI pooling of boxes, a 3x3 conv to few channels, a fully connected layer, score and deltas.

    The score is that of a two-way softmax, as in
    :class:`~frcnn_plugin.modeling.SoftmaxRPNHead`. A ReLU follows both hidden layers.

    Source: HyperNet, arXiv 1604.00600.
    """

    def __init__(
        self,
        in_channels: int,
        scale: float,
        *,
        resolution: int = 13,
        conv_dim: int = 4,
        fc_dim: int = 256,
        conv_first: bool = True,
    ) -> None:
        """Build the layers with N(0, 0.01) weights and zero biases.

        Args:
            in_channels: channels of the map.
            scale: cells of the map per pixel.
            resolution: bins per side of the RoI max pooling.
            conv_dim: channels of the 3x3 conv.
            fc_dim: width of the fully connected layer.
            conv_first: convolve the map before pooling (HyperNet-SP), or each pooled box.
        """
        super().__init__()
        self.conv_first = conv_first
        self.resolution = resolution
        self.pooler = build_pooler("ROIPool", resolution, [scale])
        self.rpn_conv = nn.Conv2d(in_channels, conv_dim, kernel_size=3, padding=1)
        self.rpn_fc = nn.Linear(conv_dim * resolution**2, fc_dim)
        self.rpn_cls_score = nn.Linear(fc_dim, 2)  # background, object
        self.rpn_bbox_pred = nn.Linear(fc_dim, 4)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, N(0, 0.01), biases 0, in place; see :func:`redraw`."""
        for layer in (self.rpn_conv, self.rpn_fc, self.rpn_cls_score, self.rpn_bbox_pred):
            redraw(layer, 0.01, generator)

    def prepare(self, features: torch.Tensor) -> torch.Tensor:
        """Return the map that boxes are pooled from: with ``conv_first``, the convolved one."""
        return F.relu(self.rpn_conv(features)) if self.conv_first else features

    def forward(
        self, prepared: torch.Tensor, boxes: list[Boxes]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict objectness and deltas of boxes.

        Args:
            prepared: (N, C, H, W), from :meth:`prepare`.
            boxes: per image, continuous XYXY in network-input pixels; B over all images.

        Returns:
            logits ``object - background`` (B,) and deltas (B, 4), float32.
        """
        x = self.pooler([prepared], boxes)
        if not self.conv_first:
            x = F.relu(self.rpn_conv(x))
        x = F.relu(self.rpn_fc(x.flatten(1)))
        background, foreground = self.rpn_cls_score(x).float().unbind(1)
        return foreground - background, self.rpn_bbox_pred(x).float()

    @torch.no_grad()
    def predict_all(
        self, prepared: torch.Tensor, boxes: Boxes
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict for the same boxes (R, 4) on every image: logits (N, R), deltas (N, R, 4)."""
        # In chunks: 28,728 boxes of 13x13 cells of all 126 channels would take 2.4 GB.
        bytes_per_box = 4 * prepared.shape[1] * self.resolution**2
        size = min(_MOST_ANCHORS, max(1, _MOST_BYTES // bytes_per_box))
        chunks = [boxes[i : i + size] for i in range(0, len(boxes), size)]
        if torch.jit.is_tracing():  # it would fix their number
            chunks = [boxes]
        images = prepared.split(1)
        outputs = [[self(image, [chunk]) for chunk in chunks] for image in images]
        logits, deltas = (
            torch.stack([torch.cat([chunk[k] for chunk in image]) for image in outputs])
            for k in (0, 1)
        )
        # Not every version of torch does so itself: autocast would hand the weights that it cast
        # here, without gradients, to the pass that learns.
        torch.clear_autocast_cache()
        return logits, deltas


@register(PROPOSAL_GENERATOR_REGISTRY)
class HyperRPN(PaperRPN):
    """The RPN with a head that looks at each anchor as a detector does, and not at each cell.

    Labels, losses and selection are :class:`PaperRPN`'s; anchors lie on the cells of one coarse
    map, 28,728 in a 600x1000 image with four sizes. In training only the anchors of the mini-batch
    have a gradient, and the others are computed only if proposals are selected.

    Source: HyperNet, arXiv 1604.00600; what its candidate boxes are is a choice of ours.
    """

    box_gradient = False  # what it predicts of other anchors than the mini-batch is constant

    @configurable
    def __init__(self, *, pool_feature: str = "hyper", **kwargs: Any) -> None:
        """Set the map.

        Args:
            pool_feature: the map at which anchors are pooled.
            kwargs: arguments of :class:`PaperRPN`; ``head`` is a :class:`HyperRPNHead`, and
                ``in_features`` names the one map on whose cells the anchors lie.

        Raises:
            UserError: ``in_features`` names several.
        """
        super().__init__(**kwargs)
        self.pool_feature = pool_feature
        _check_one(self.in_features)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Read PaperRPN's arguments, and the head from ``MODEL.HYPER_RPN``.

        Raises:
            UserError: the backbone does not return the map that is pooled, or no anchors' map.
        """
        node, names = cfg.MODEL.HYPER_RPN, cfg.MODEL.RPN.IN_FEATURES
        for key, name in (
            ("MODEL.HYPER_RPN.POOL_FEATURE", node.POOL_FEATURE),
            *(("MODEL.RPN.IN_FEATURES", name) for name in names),
        ):
            if name not in input_shape:
                raise UserError(
                    f"{key} names '{name}', but MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} "
                    f"returns {', '.join(input_shape)}: set MODEL.BACKBONE.NAME HyperVGG16, or "
                    f"name one of these"
                )
        _check_one(names)  # before Detectron2 builds a head for them, which this one replaces
        ret = super().from_config(cfg, input_shape)
        shape = input_shape[node.POOL_FEATURE]
        assert shape.channels and shape.stride, shape
        ret["pool_feature"] = node.POOL_FEATURE
        ret["head"] = HyperRPNHead(
            shape.channels,
            1 / shape.stride,
            resolution=node.POOLER_RESOLUTION,
            conv_dim=node.CONV_DIM,
            fc_dim=node.FC_DIM,
            conv_first=node.CONV_FIRST,
        )
        return ret

    def head_inputs(self, features: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """Return the map that anchors are pooled from, (N, C, H, W)."""
        return [self.rpn_head.prepare(features[self.pool_feature])]

    def predict_anchors(
        self, inputs: list[torch.Tensor], anchors: list[Boxes]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Predict for all anchors, without gradients; zeros while nothing reads proposals."""
        (prepared,) = inputs
        if not self.training or self.select_in_training:
            logits, deltas = self.rpn_head.predict_all(prepared, anchors[0])
        else:
            logits = torch.zeros(len(prepared), len(anchors[0]), device=prepared.device)
            deltas = logits[..., None].repeat(1, 1, 4)
        return [logits], [deltas]

    def predict_sampled(
        self,
        inputs: list[torch.Tensor],
        anchors: list[Boxes],
        labels: list[torch.Tensor],
        logits: list[torch.Tensor],
        deltas: list[torch.Tensor],
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Predict for the mini-batch with gradients, in place of what was predicted without."""
        sampled = torch.stack(labels) >= 0
        scores, offsets = self.rpn_head(inputs[0], [anchors[0][image] for image in sampled])
        where = sampled.nonzero(as_tuple=True)
        return [logits[0].index_put(where, scores)], [deltas[0].index_put(where, offsets)]


def _check_one(in_features: Sequence[str]) -> None:
    if len(in_features) != 1:
        raise UserError(
            f"MODEL.RPN.IN_FEATURES is {list(in_features)}, but the anchors of HyperRPN lie on one "
            'map: set for example MODEL.RPN.IN_FEATURES ["conv5"]'
        )

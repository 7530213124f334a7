"""Sliding windows as proposals: a one-stage detector, as the paper's Table 10 compares with."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from ...host import register
from ..box_ops import clip_inclusive
from ..image_size import image_scale


@register(PROPOSAL_GENERATOR_REGISTRY)
class DenseWindows(nn.Module):
    """Proposes every anchor, clipped to the image: about 20,000, none better than another.

    There is nothing to learn. A detector on it predicts classes and boxes straight from sliding
    windows of a few sizes and shapes, as OverFeat does.
    """

    @configurable
    def __init__(
        self, *, in_features: list[str], anchor_generator: nn.Module, min_size_image: float = 16.0
    ) -> None:
        """Set the parts.

        Args:
            in_features: names of the feature maps, in the order of the generator's sizes.
            anchor_generator: makes the windows, one Boxes per map.
            min_size_image: smallest side of a clipped window, original-image pixels.
        """
        super().__init__()
        self.in_features = in_features
        self.anchor_generator = anchor_generator
        self.min_size_image = min_size_image

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Read the arguments of :meth:`__init__`; the windows are ``MODEL.ANCHOR_GENERATOR``'s."""
        names = list(cfg.MODEL.RPN.IN_FEATURES)
        return {
            "in_features": names,
            "anchor_generator": build_anchor_generator(cfg, [input_shape[f] for f in names]),
            "min_size_image": cfg.MODEL.RPN.MIN_SIZE_IMAGE,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        gt_instances: list[Instances] | None = None,
        **switches: Any,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Return the windows of each image, all with the logit 0, and no losses.

        Args:
            images: only their sizes are used.
            features: only the sizes of the maps are used, each (N, C, H, W).
            gt_instances: not used.
            switches: those of :class:`~frcnn_plugin.modeling.PaperRPN`, not used.
        """
        maps = [features[name] for name in self.in_features]
        windows = Boxes.cat(self.anchor_generator(maps)).tensor
        proposals = []
        for size in images.image_sizes:
            boxes = clip_inclusive(windows, size)
            least = self.min_size_image * image_scale(size)
            sides = boxes[:, 2:] - boxes[:, :2]
            boxes = boxes[((sides >= least) & (sides > 0)).all(dim=1)]
            proposals.append(
                Instances(
                    size, proposal_boxes=Boxes(boxes), objectness_logits=boxes.new_zeros(len(boxes))
                )
            )
        return proposals, {}

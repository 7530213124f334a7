"""Features of several scales of each image, and the choice of a scale for each RoI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.structures import Boxes
from torch import nn
from torch.nn import functional as F

from ..errors import UserError

KEY = "MODEL.PAPER_RCNN.PYRAMID"


def pyramid_problems(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Name the parts that do not know ``MODEL.PAPER_RCNN.PYRAMID``, if it is set, with the fix."""
    factors, model = list(cfg.MODEL.PAPER_RCNN.PYRAMID), cfg.MODEL
    for key, name, registry, usable in (
        ("META_ARCHITECTURE", model.META_ARCHITECTURE, META_ARCH_REGISTRY, "PaperRCNN"),
        ("ROI_HEADS.NAME", model.ROI_HEADS.NAME, ROI_HEADS_REGISTRY, "CaffeROIHeads"),
    ):
        if factors and not getattr(registry.get(name), "takes_pyramid", False):
            yield (
                f"{KEY} is {factors}, which MODEL.{key} {name} does not know",
                f'Type {KEY} "[]", or MODEL.{key} {usable}',
            )


def check_pyramid(cfg: CfgNode) -> list[float]:
    """Return ``MODEL.PAPER_RCNN.PYRAMID``, or raise a UserError: a part does not know it."""
    for problem, fix in pyramid_problems(cfg):
        raise UserError(f"{problem}. {fix}")
    return list(cfg.MODEL.PAPER_RCNN.PYRAMID)


def pyramid_features(
    model: Any,
    batched_inputs: list[dict[str, Any]],
    features: dict[str, torch.Tensor],
    factors: Sequence[float],
) -> dict[str, torch.Tensor]:
    """Compute the maps of images, (3, H, W), resized by each of the factors to whole pixels.

    They are resized one by one, bilinearly, before they are padded to the largest of the batch.
    ``features`` of factor 1 are given: name -> (N, C, H', W'). All are returned, by the names of
    :func:`level_names`. A UserError says that the model is being traced, which would fix the sizes.
    """
    if torch.jit.is_tracing():
        raise UserError(f'{KEY} cannot be traced, as images of other sizes differ: set it to "[]"')
    levels: dict[str, torch.Tensor] = {}
    for factor in factors:
        maps = features
        if factor != 1:
            images = [x["image"].to(model.device)[None].float() for x in batched_inputs]
            sizes = [[max(round(side * factor), 1) for side in x.shape[-2:]] for x in images]
            inputs = [
                {"image": F.interpolate(x, size, mode="bilinear", align_corners=False)[0]}
                for x, size in zip(images, sizes, strict=True)
            ]
            maps = model.backbone(model.preprocess_image(inputs).tensor)
        levels |= dict(zip(level_names(maps, [factor]), maps.values(), strict=True))
    return levels


def level_names(names: Iterable[str], factors: Sequence[float]) -> list[str]:
    """Name the feature maps of a pyramid, factor by factor."""
    return [f"{name}@{factor:g}" for factor in factors for name in names]


class PyramidPooler(nn.Module):
    """Pools each RoI at the scale at which its area is closest to 224 x 224 pixels.

    Of two scales that are equally close, the first is taken.

    Source: SPPnet; Fast R-CNN lib/fast_rcnn/test.py, ``_project_im_rois``.
    """

    def __init__(self, pooler: nn.Module, factors: Sequence[float]) -> None:
        """Take a pooler of one scale, and the factors of the network input's sides."""
        super().__init__()
        self.pooler = pooler
        self.factors = tuple(factors)
        self.box_gradient = getattr(pooler, "box_gradient", False)

    def levels(self, boxes: torch.Tensor) -> torch.Tensor:
        """Return the index of the scale for each of ``boxes``, (R, 4) -> (R,) int64."""
        sides = boxes[:, 2:] - boxes[:, :2]
        areas = sides.prod(dim=1, keepdim=True) * boxes.new_tensor(self.factors) ** 2
        return (areas - 224**2).abs().argmin(dim=1)

    def forward(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Pool the maps of the first scale, then those of the next, each (N, C, H, W), at boxes.

        ``boxes``, R over all images, are continuous XYXY in pixels of the network input; returns
        (R, C, output size, output size) in their order.
        """
        levels = [self.levels(b.tensor) for b in boxes]
        of_all = torch.cat(levels)
        maps = len(features) // len(self.factors)
        outputs = torch.empty(0)
        for level, factor in enumerate(self.factors):
            pairs = zip(boxes, levels, strict=True)
            chosen = [Boxes(b.tensor[of_image == level] * factor) for b, of_image in pairs]
            pooled = self.pooler(features[level * maps : (level + 1) * maps], chosen)
            if level == 0:
                outputs = pooled.new_empty(len(of_all), *pooled.shape[1:])
            outputs[of_all == level] = pooled
        return outputs


def pool_from_pyramid(arguments: dict[str, Any], cfg: CfgNode) -> None:
    """Let the box pooler among the arguments of ROI heads, in place, pool from the pyramid."""
    if factors := check_pyramid(cfg):
        arguments["box_pooler"] = PyramidPooler(arguments["box_pooler"], factors)
        arguments["box_in_features"] = level_names(arguments["box_in_features"], factors)

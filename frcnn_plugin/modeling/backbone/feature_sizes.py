"""Sizes of feature maps, without computing the features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from detectron2.modeling.backbone import Backbone


def backbone_feature_sizes(
    backbone: Backbone, in_features: Sequence[str]
) -> Callable[[int, int], list[tuple[int, int]]]:
    """A function that says how large a backbone's feature maps are.

    Args:
        backbone: for images of 3 channels; its own rounding and padding count.
        in_features: names of the feature maps.

    Returns:
        maps the (height, width) of an image, alone in its batch, to the (height, width) of each
        feature map, in a few milliseconds.
    """
    tensors = [*backbone.named_parameters(), *backbone.named_buffers()]
    shapes = {name: tensor.to("meta") for name, tensor in tensors}
    step = max(backbone.size_divisibility, 1)

    @torch.no_grad()
    def feature_sizes(height: int, width: int) -> list[tuple[int, int]]:
        padded = [-(-side // step) * step for side in (height, width)]
        image = torch.empty(1, 3, *padded, device="meta")
        features = torch.func.functional_call(backbone, shapes, (image,))
        return [tuple(features[name].shape[-2:]) for name in in_features]

    return feature_sizes

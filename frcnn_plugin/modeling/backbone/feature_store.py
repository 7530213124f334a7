"""Feature maps that are kept from one epoch to the next, while the backbone does not train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

Features = dict[str, torch.Tensor]


class FeatureStore(Protocol):
    """What :attr:`PaperRCNN.feature_store` may be; the one that writes files is in `engine`."""

    def __call__(self, image: torch.Tensor, compute: Callable[[], Features]) -> Features:
        """The feature maps of one image.

        Args:
            image: (3, H, W) as the data loader made it: uint8, or float32; on any device.
            compute: gives the features, on the model's device, without a gradient.

        Returns:
            what ``compute`` returns or, to the bit and in the same memory layout, returned for the
            same pixels before.
        """


def backbone_features(
    model: Any, batched_inputs: Sequence[Mapping[str, Any]], images: torch.Tensor
) -> Features:
    """The features of a training batch, from the model's store where that can have them.

    That is an image alone in its batch, while nothing of the backbone trains. Several images are
    padded to a common size, so what comes out for one of them depends on the others.

    Args:
        model: has a ``backbone`` and a ``feature_store``, which may be None.
        batched_inputs: as the data loader made them, with "image".
        images: (N, 3, H, W), preprocessed.
    """
    backbone: nn.Module = model.backbone
    store: FeatureStore | None = model.feature_store
    if (
        store is None
        or len(batched_inputs) > 1
        or any(p.requires_grad for p in backbone.parameters())
    ):
        features: Features = backbone(images)
        return features
    return store(batched_inputs[0]["image"], lambda: backbone(images))

"""What VGG16 and ZF share: blocks in a row, selectable outputs, freezing by block."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from torch import nn

from ...errors import UserError


class CaffeBackbone(Backbone):
    """A chain of blocks named ``conv1``, ``conv2``, ..., each a feature that can be returned."""

    def __init__(
        self,
        blocks: OrderedDict[str, nn.Sequential],
        shapes: dict[str, ShapeSpec],
        out_features: Sequence[str],
        freeze_at: int,
    ) -> None:
        """Take over the blocks up to the last one asked for.

        Args:
            blocks: name -> module, in order; each maps (N, C, H, W) to (N, C', H', W').
            shapes: name -> channels and stride of that block's output.
            out_features: names of the blocks to return.
            freeze_at: number of leading blocks whose parameters get no gradient.

        Raises:
            UserError: unknown feature, or ``freeze_at`` outside 0..number of blocks.
        """
        super().__init__()
        unknown = [f for f in out_features if f not in blocks]
        if unknown or not out_features:
            raise UserError(
                f"{type(self).__name__}: OUT_FEATURES {list(out_features)} must name one or more "
                f"of {', '.join(blocks)}"
            )
        if not 0 <= freeze_at <= len(blocks):
            raise UserError(
                f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but {type(self).__name__} has "
                f"{len(blocks)} blocks: use 0 (nothing frozen) to {len(blocks)} (all frozen)"
            )
        self._out_features = list(out_features)
        self._out_feature_channels = {f: shapes[f].channels for f in out_features}
        self._out_feature_strides = {f: shapes[f].stride for f in out_features}

        names = list(blocks)
        last = max(names.index(f) for f in out_features)
        self.block_names = names[: last + 1]
        for name in self.block_names:
            self.add_module(name, blocks[name])
        self._init_weights()
        for name in self.block_names[:freeze_at]:
            for parameter in getattr(self, name).parameters():
                parameter.requires_grad_(False)

    def _init_weights(self) -> None:
        # For training from scratch only (the originals start from ImageNet weights): keeps the
        # variance of ReLU activations, without which a 13-layer plain network does not start.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run the blocks in order.

        Args:
            x: images, (N, in_channels, H, W), float.

        Returns:
            feature name -> (N, channels, H', W').
        """
        return self._run(x)

    def _run(self, x: torch.Tensor, skip: int = 0) -> dict[str, torch.Tensor]:
        """Compute the features from ``x``, to which ``skip`` layers have been applied already."""
        outputs: dict[str, torch.Tensor] = {}
        for name in self.block_names:
            # Layer by layer: called as a whole, a block would run while this frame still holds its
            # input, which is the largest feature map there is.
            for layer in getattr(self, name):
                if skip > 0:
                    skip -= 1
                else:
                    x = layer(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs


def backbone_feature_sizes(
    backbone: Backbone, in_features: Sequence[str]
) -> Callable[[int, int], list[tuple[int, int]]]:
    """Make a function that says how large a backbone's feature maps are, without computing them.

    Args:
        backbone: any of Detectron2, for images of 3 channels; its own rounding and padding count.
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

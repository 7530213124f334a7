"""What VGG16 and ZF share: blocks in a row, selectable outputs, freezing by block."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling.backbone import Backbone
from torch import nn
from torch.nn.modules import module as torch_module

from ...errors import UserError
from ...layers.conv3x3 import Conv3x3


class CaffeBackbone(Backbone):
    """A chain of blocks named ``conv1``, ``conv2``, ..., each a feature that can be returned.

    Attributes:
        config_node: name of the network's keys under ``MODEL``.
    """

    config_node: str

    def __init__(
        self,
        blocks: Mapping[str, list[tuple[str, nn.Module]]],
        channels: Sequence[int],
        strides: Sequence[int],
        out_features: Sequence[str],
        freeze_at: int,
    ) -> None:
        """Take the blocks up to the last one asked for.

        Args:
            blocks: name -> named layers, in order; each maps (N, C, H, W) to (N, C', H', W').
            channels: output channels of each block.
            strides: stride of each block's output, in pixels of the image.
            out_features: names of the blocks to return.
            freeze_at: number of leading blocks whose parameters get no gradient.

        Raises:
            UserError: unknown feature, or ``freeze_at`` outside 0..number of blocks.
        """
        super().__init__()
        names = list(blocks)
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
        indices = [names.index(f) for f in out_features]
        # Detectron2's Backbone makes output_shape() of these three.
        self._out_features = list(out_features)
        self._out_feature_channels = {names[i]: channels[i] for i in indices}
        self._out_feature_strides = {names[i]: strides[i] for i in indices}

        self._kept = set(out_features)  # subclasses may make other features of them

        self.block_names = names[: max(indices) + 1]
        for name in self.block_names:
            self.add_module(name, nn.Sequential(OrderedDict(blocks[name])))
        self._init_weights()
        for name in self.block_names[:freeze_at]:
            block = getattr(self, name)
            block.requires_grad_(False)
            # Also their running statistics; a block without normalisation stays as it is.
            FrozenBatchNorm2d.convert_frozen_batchnorm(block)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read the arguments from the network's own keys and ``MODEL.BACKBONE.FREEZE_AT``."""
        node = cfg.MODEL[cls.config_node]
        return {
            "in_channels": input_shape.channels,
            "channels": node.CHANNELS,
            "out_features": node.OUT_FEATURES,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        }

    def _init_weights(self) -> None:
        # For training from scratch only (the originals start from ImageNet weights): keeps the
        # variance of ReLU activations, without which a 13-layer plain network does not start.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map images, (N, in_channels, H, W), to feature name -> (N, channels, H', W')."""
        return self._run(x)

    def _run(self, x: torch.Tensor, skip: int = 0) -> dict[str, torch.Tensor]:
        """Compute the features of ``x``, which has passed the first ``skip`` layers already."""
        outputs: dict[str, torch.Tensor] = {}
        for name in self.block_names:
            layers = list(getattr(self, name))
            # Layer by layer: if a block were called as a whole, this frame would keep its input,
            # the largest feature map of all, alive while the block runs.
            with torch.set_grad_enabled(needs_gradient(x, layers)):
                for step in steps_of(layers[skip:]):
                    x = step(x)
            skip = max(0, skip - len(layers))
            if name in self._kept:
                outputs[name] = x
        return outputs


def needs_gradient(x: torch.Tensor, layers: Iterable[nn.Module]) -> bool:
    """Tell whether there is a gradient to compute for the input or a parameter of some layers.

    A hook may want one for what it returns instead of a frozen layer's result.
    """
    return torch.is_grad_enabled() and (
        x.requires_grad
        or any(is_watched(layer) for layer in layers)
        or any(p.requires_grad for layer in layers for p in layer.parameters())
    )


def steps_of(layers: Sequence[nn.Module]) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Yield the layers in order, a 3x3 convolution and the ReLU after it as one where possible.

    That is without gradients, and where no hook looks between the two.
    """
    joined = False
    for layer, after in zip_longest(layers, layers[1:]):
        if joined:  # with the one before
            joined = False
            continue
        joined = (
            isinstance(layer, Conv3x3)
            and type(layer).forward is Conv3x3.forward  # and nobody has replaced it
            and "forward" not in vars(layer)
            and type(after) is nn.ReLU
            and not (torch.is_grad_enabled() or is_watched(layer) or is_watched(after))
        )
        yield partial(layer, relu=True) if joined else layer


def is_watched(layer: nn.Module) -> bool:
    """Tell whether somebody's hook wants to see what goes into a layer or comes out of it."""
    everywhere = torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks
    return bool(layer._forward_hooks or layer._forward_pre_hooks or everywhere)


def backbone_feature_sizes(
    backbone: Backbone, in_features: Sequence[str], channels: int = 3
) -> Callable[[int, int], list[tuple[int, int]]]:
    """Make a function that tells the sizes of a backbone's feature maps without computing them.

    Args:
        backbone: any of Detectron2's or ours; its rounding and padding are taken into account.
        in_features: names of the feature maps.
        channels: of images.

    Returns:
        a function from the (height, width) of an image, alone in its batch, to the (height, width)
        of each feature map; it takes a few milliseconds.
    """
    tensors = [*backbone.named_parameters(), *backbone.named_buffers()]
    shapes = {name: tensor.to("meta") for name, tensor in tensors}
    step = max(backbone.size_divisibility, 1)

    @torch.no_grad()
    def feature_sizes(height: int, width: int) -> list[tuple[int, int]]:
        padded = [-(-side // step) * step for side in (height, width)]
        image = torch.empty(1, channels, *padded, device="meta")
        features = torch.func.functional_call(backbone, shapes, (image,))
        return [tuple(features[name].shape[-2:]) for name in in_features]

    return feature_sizes

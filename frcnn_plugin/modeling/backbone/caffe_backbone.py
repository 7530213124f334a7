"""What VGG16 and ZF share: stages in a row, selectable outputs, freezing by stage."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone
from torch import nn

from ...errors import UserError


class CaffeBackbone(Backbone):
    """A chain of stages named ``conv1``, ``conv2``, ..., each a feature that can be returned."""

    def __init__(
        self,
        stages: OrderedDict[str, nn.Sequential],
        shapes: dict[str, ShapeSpec],
        out_features: Sequence[str],
        freeze_at: int,
    ) -> None:
        """Take over the stages up to the last one asked for.

        Args:
            stages: name -> module, in order; each maps (N, C, H, W) to (N, C', H', W').
            shapes: name -> channels and stride of that stage's output.
            out_features: names of the stages to return.
            freeze_at: number of leading stages whose parameters get no gradient.

        Raises:
            UserError: unknown feature, or ``freeze_at`` outside 0..number of stages.
        """
        super().__init__()
        unknown = [f for f in out_features if f not in stages]
        if unknown or not out_features:
            raise UserError(
                f"{type(self).__name__}: OUT_FEATURES {list(out_features)} must name one or more "
                f"of {', '.join(stages)}"
            )
        if not 0 <= freeze_at <= len(stages):
            raise UserError(
                f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but {type(self).__name__} has "
                f"{len(stages)} stages: use 0 (nothing frozen) to {len(stages)} (all frozen)"
            )
        self._out_features = list(out_features)
        self._out_feature_channels = {f: shapes[f].channels for f in out_features}
        self._out_feature_strides = {f: shapes[f].stride for f in out_features}

        names = list(stages)
        last = max(names.index(f) for f in out_features)
        self.stage_names = names[: last + 1]
        for name in self.stage_names:
            self.add_module(name, stages[name])
        self._init_weights()
        for name in self.stage_names[:freeze_at]:
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
        """Run the stages in order.

        Args:
            x: images, (N, in_channels, H, W), float.

        Returns:
            feature name -> (N, channels, H', W').
        """
        return self._run(x)

    def _run(self, x: torch.Tensor, skip: int = 0) -> dict[str, torch.Tensor]:
        """The features from ``x``, to which the first ``skip`` layers have been applied."""
        outputs: dict[str, torch.Tensor] = {}
        for name in self.stage_names:
            # Layer by layer: called as a whole, a stage would run while this frame still holds its
            # input, which is the largest feature map there is.
            for layer in getattr(self, name):
                if skip > 0:
                    skip -= 1
                else:
                    x = layer(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs

"""The two fully connected layers of Fast R-CNN."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_BOX_HEAD_REGISTRY
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from ...host import register
from ...layers.large_linear import LargeLinear


def each_head(part: nn.Module | None) -> list[Any]:
    """Return ``box_head`` or ``box_predictor`` of ROI heads once per head.

    A cascade keeps them in a ModuleList; other heads have one, or None if they work without.
    """
    if isinstance(part, nn.ModuleList):
        return list(part)
    return [] if part is None else [part]


class UnscaledDropout(nn.Module):
    """Caffe's dropout with ``scale_train: false``: a bare mask in training, ``x * (1 - p)`` after.

    The ZF weights were trained with it; scaled dropout would double what they expect (point 40
    of docs/faithfulness.md, example E25).
    """

    def __init__(self, p: float) -> None:
        """Set the probability ``p`` of dropping a unit."""
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop units of ``x``, any shape."""
        # F.dropout scales kept units by 1 / (1 - p); undoing that leaves the bare mask.
        return F.dropout(x, self.p, self.training) * (1 - self.p)

    def extra_repr(self) -> str:
        """Return the constant for ``print(model)``."""
        return f"p={self.p}"


@register(ROI_BOX_HEAD_REGISTRY)
class FC6FC7Head(nn.Module):
    """fc6, ReLU, dropout, fc7, ReLU, dropout.

    Input is flattened in (C, H, W) order, which is Caffe's, so ImageNet weights of fc6 fit as they
    are.

    Source: py-faster-rcnn prototxts; Fast R-CNN.
    """

    has_fc = True  # fc6 and fc7 of ImageNet, which training must not start without

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        fc_dim: int = 4096,
        dropout: float = 0.5,
        dropout_scale_train: bool = True,
    ) -> None:
        """Build the layers; weights are initialised for training from scratch.

        Args:
            input_shape: channels, height and width of the pooled features.
            fc_dim: width of fc6 and fc7.
            dropout: probability of dropping a unit; 0: no dropout.
            dropout_scale_train: scale in training (VGG16) or at test time (ZF).
        """
        super().__init__()
        channels, height, width = input_shape.channels, input_shape.height, input_shape.width
        assert channels and height and width, input_shape
        dropout_class = nn.Dropout if dropout_scale_train else UnscaledDropout
        self.fc6 = LargeLinear(channels * height * width, fc_dim)
        self.drop6 = dropout_class(dropout)
        self.fc7 = LargeLinear(fc_dim, fc_dim)
        self.drop7 = dropout_class(dropout)
        for layer in (self.fc6, self.fc7):
            weight_init.c2_xavier_fill(layer)
        self._output_size = fc_dim

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read the arguments of :meth:`__init__` from ``MODEL.ROI_BOX_HEAD``."""
        return {
            "input_shape": input_shape,
            "fc_dim": cfg.MODEL.ROI_BOX_HEAD.FC_DIM,
            "dropout": cfg.MODEL.ROI_BOX_HEAD.DROPOUT,
            "dropout_scale_train": cfg.MODEL.ROI_BOX_HEAD.DROPOUT_SCALE_TRAIN,
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map pooled features, (R, C, H, W), to fc7, (R, fc_dim); R may be 0."""
        x = self.drop6(F.relu(self.fc6(x.flatten(1))))
        return self.drop7(F.relu(self.fc7(x)))

    @property
    def output_size(self) -> int:
        """Width of fc7; older projects ask for it."""
        return self._output_size

    @property
    @torch.jit.unused
    def output_shape(self) -> ShapeSpec:
        """Width of fc7."""
        return ShapeSpec(channels=self._output_size)


@register(ROI_BOX_HEAD_REGISTRY)
class HyperBoxHead(nn.Module):
    """HyperNet's head: a 3x3 conv to few channels, then two fully connected layers with dropout.

    ImageNet's fc6 and fc7 fit none of its layers, so these have other names and start at random.

    Source: HyperNet, arXiv 1604.00600.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dim: int = 63,
        fc_dim: int = 4096,
        dropout: float = 0.25,
    ) -> None:
        """Build the layers; weights are initialised for training from scratch.

        Args:
            input_shape: channels, height and width of the pooled features.
            conv_dim: channels of the 3x3 conv, which a ReLU follows.
            fc_dim: width of both fully connected layers.
            dropout: probability of dropping a unit after each; 0: no dropout.
        """
        super().__init__()
        channels, height, width = input_shape.channels, input_shape.height, input_shape.width
        assert channels and height and width, input_shape
        self.conv = nn.Conv2d(channels, conv_dim, kernel_size=3, padding=1)
        self.fc1 = LargeLinear(conv_dim * height * width, fc_dim)
        self.fc2 = LargeLinear(fc_dim, fc_dim)
        self.drop = nn.Dropout(dropout)
        weight_init.c2_msra_fill(self.conv)
        for layer in (self.fc1, self.fc2):
            weight_init.c2_xavier_fill(layer)
        self.output_shape = ShapeSpec(channels=fc_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read the arguments of :meth:`__init__` from ``MODEL.ROI_BOX_HEAD``."""
        node = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "conv_dim": node.CONV_DIM,
            "fc_dim": node.FC_DIM,
            "dropout": node.DROPOUT,
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map pooled features, (R, C, H, W), to (R, fc_dim); R may be 0."""
        x = F.relu(self.conv(x)).flatten(1)
        for layer in (self.fc1, self.fc2):
            x = self.drop(F.relu(layer(x)))
        return x

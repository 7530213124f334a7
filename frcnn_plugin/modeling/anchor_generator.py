"""The reference's rounded anchors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from detectron2.structures import Boxes

from ..errors import UserError
from ..host import register

# Side (px) of the square that all anchors are scaled from; independent of the stride.
_BASE_SIZE = 16


@register(ANCHOR_GENERATOR_REGISTRY)
class CaffeAnchorGenerator(DefaultAnchorGenerator):
    """Anchors of the original code, in continuous coordinates.

    They differ from Detectron2's in three ways: a 16x16 base square is turned into each aspect
    ratio and *rounded* (23x12, 16x16, 11x22) before it is scaled; the ratio is the outer loop, the
    scale the inner one, so released weights fit channel by channel; the centre of the first cell
    is (8, 8), whatever the stride. Continuous means x2, y2 = the reference's inclusive ones + 1:
    the first anchor is (-84, -40, 100, 56).

    Source: py-faster-rcnn generate_anchors.py, MATLAB proposal_generate_anchors.m.
    """

    # TorchScript does not inherit annotations.
    box_dim: torch.jit.Final[int] = 4

    @configurable
    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]] | Sequence[float],
        aspect_ratios: Sequence[Sequence[float]] | Sequence[float],
        strides: Sequence[int],
    ) -> None:
        """Compute the anchors of one cell.

        Args:
            sizes: nominal sides in network-input pixels, per feature map or for all; the paper's
                128, 256, 512 are the scales 8, 16, 32 of the reference.
            aspect_ratios: height / width, likewise.
            strides: stride of each feature map in pixels.
        """
        # No offset: the cell anchors have the centre built in.
        super().__init__(sizes=sizes, aspect_ratios=aspect_ratios, strides=strides, offset=0.0)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, object]:
        """Read the arguments of :meth:`__init__` from ``MODEL.ANCHOR_GENERATOR``.

        Raises:
            UserError: ``OFFSET`` is not 0, which would move the anchors off the reference's.
        """
        ret = DefaultAnchorGenerator.from_config(cfg, input_shape)
        offset = ret.pop("offset")
        if offset != 0.0:
            raise UserError(
                f"MODEL.ANCHOR_GENERATOR.OFFSET is {offset}, but CaffeAnchorGenerator has its "
                "centre (8, 8) built in: set MODEL.ANCHOR_GENERATOR.OFFSET 0.0"
            )
        return ret

    def forward(self, features: Sequence[torch.Tensor]) -> list[Boxes]:
        """Return the anchors of all cells of each map, (N, C, H, W): (H * W * A, 4).

        Rewrites Detectron2's method, which copies the shifts of cells to a GPU, and so waits until
        the backbone is done.
        """
        anchors = []
        for feature, stride, cell in zip(features, self.strides, self.cell_anchors, strict=True):
            steps = (
                torch.arange(n, device=cell.device, dtype=cell.dtype) * stride
                for n in feature.shape[-2:]
            )
            y, x = torch.meshgrid(*steps, indexing="ij")
            shifts = torch.stack((x, y, x, y), dim=2).view(-1, 1, 4)
            anchors.append(Boxes((shifts + cell).view(-1, 4)))
        return anchors

    def generate_cell_anchors(
        self,
        sizes: Sequence[float] = (128, 256, 512),
        aspect_ratios: Sequence[float] = (0.5, 1, 2),
    ) -> torch.Tensor:
        """Compute the anchors of the first cell: (ratios * sizes, 4), XYXY, pixels."""
        centre = _BASE_SIZE / 2
        anchors = []
        for ratio in aspect_ratios:
            width = np.round(np.sqrt(_BASE_SIZE**2 / ratio))
            height = np.round(width * ratio)
            for size in sizes:
                half = size / _BASE_SIZE / 2 * np.array([width, height])
                anchors.append(np.concatenate([centre - half, centre + half]))
        return torch.tensor(np.stack(anchors), dtype=torch.float32)

"""Decoding of box deltas as the originals do it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.box_regression import Box2BoxTransform


class CaffeBox2BoxTransform(Box2BoxTransform):
    """The host's transform without its limit on dw, dh, and with py-faster-rcnn's growth if asked.

    On continuous boxes the host's encoding equals the originals' "+1" encoding, and its decoding
    the MATLAB code's (checks E5, E27). py-faster-rcnn decodes every box one pixel too large to the
    right and bottom.
    """

    def __init__(
        self,
        weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        scale_clamp: float = float("inf"),
        decode_growth: float = 0.0,
    ) -> None:
        """Set the constants.

        Args:
            weights: factors of (dx, dy, dw, dh), 1 / standard deviation.
            scale_clamp: largest dw, dh that is decoded; the host's default is log(1000 / 16).
            decode_growth: pixels added to x2, y2 (MATLAB 0, py-faster-rcnn 1).
        """
        super().__init__(tuple(weights), scale_clamp)
        self.decode_growth = decode_growth

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Decode.

        Args:
            deltas: (R, K*4), K boxes per row.
            boxes: (R, 4), XYXY.

        Returns:
            (R, K*4) float32, XYXY in the frame of ``boxes``.
        """
        decoded = super().apply_deltas(deltas, boxes)
        return grow(decoded, self.decode_growth) if self.decode_growth else decoded


def grow(boxes: torch.Tensor, pixels: float) -> torch.Tensor:
    """Move x2, y2 of all boxes.

    Args:
        boxes: (R, K*4), XYXY.
        pixels: in the frame of ``boxes``.

    Returns:
        (R, K*4).
    """
    return boxes + boxes.new_tensor([0.0, 0.0, pixels, pixels]).repeat(boxes.shape[1] // 4)

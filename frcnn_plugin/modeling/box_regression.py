"""Decoding of box deltas as the originals do it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.layers import ciou_loss, diou_loss
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import giou_loss, smooth_l1_loss

from .box_ops import of_second_corner


class CaffeBox2BoxTransform(Box2BoxTransform):
    """Detectron2's transform without its limit on dw, dh; with py-faster-rcnn's growth if asked.

    On continuous boxes Detectron2's encoding equals the originals' "+1" encoding, and its decoding
    the MATLAB code's (examples E5, E27). py-faster-rcnn decodes every box one pixel too large to
    the right and bottom (bbox_transform.py).
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
            scale_clamp: largest dw, dh that is decoded; Detectron2's default is log(1000 / 16).
            decode_growth: pixels added to x2, y2 (MATLAB 0, py-faster-rcnn 1).
        """
        super().__init__(tuple(weights), scale_clamp)
        self.decode_growth = decode_growth

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """Encode the boxes that the sources should become.

        Rewrites Detectron2's method, which checks the widths; a GPU would have to wait for that.

        Args:
            src_boxes: (R, 4), XYXY, with an area.
            target_boxes: (R, 4), in the same frame.

        Returns:
            (R, 4) deltas (dx, dy, dw, dh).
        """
        width, height = (src_boxes[:, 2:] - src_boxes[:, :2]).unbind(1)
        target_width, target_height = (target_boxes[:, 2:] - target_boxes[:, :2]).unbind(1)
        x, y = src_boxes[:, 0] + 0.5 * width, src_boxes[:, 1] + 0.5 * height
        target_x = target_boxes[:, 0] + 0.5 * target_width
        target_y = target_boxes[:, 1] + 0.5 * target_height
        wx, wy, ww, wh = self.weights
        return torch.stack(
            (
                wx * (target_x - x) / width,
                wy * (target_y - y) / height,
                ww * torch.log(target_width / width),
                wh * torch.log(target_height / height),
            ),
            dim=1,
        )

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Decode (R, K*4) deltas on (R, 4) boxes to (R, K*4) float32 boxes, all XYXY."""
        decoded = super().apply_deltas(deltas, boxes)
        return grow(decoded, self.decode_growth) if self.decode_growth else decoded


def box_loss(
    kind: str,
    transform: Any,
    src_boxes: torch.Tensor,
    deltas: torch.Tensor,
    target_boxes: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Compute the loss of each predicted box.

    Args:
        kind: Detectron2's ``BBOX_REG_LOSS_TYPE``: "smooth_l1" on deltas, or "giou", "diou",
            "ciou" on boxes.
        transform: encodes and decodes.
        src_boxes: (R, 4), XYXY.
        deltas: (R, 4), predicted for them.
        target_boxes: (R, 4), what they should become.
        beta: of smooth L1.

    Returns:
        (R,).
    """
    if kind == "smooth_l1":
        targets = transform.get_deltas(src_boxes, target_boxes)
        return smooth_l1_loss(deltas, targets, beta=beta).sum(dim=1)
    iou_loss = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}[kind]
    return iou_loss(transform.apply_deltas(deltas, src_boxes), target_boxes)


def grow(boxes: torch.Tensor, pixels: float) -> torch.Tensor:
    """Move x2, y2 of all boxes, (R, K*4), right and down by so many pixels."""
    # In a trace, pixels may be a tensor, of which new_tensor would make a constant.
    return boxes + pixels * of_second_corner(boxes)

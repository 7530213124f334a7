"""Class scores and class-specific boxes (facts 6 and 8)."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances

from .box_regression import CaffeBox2BoxTransform, grow
from .proposals import float32_threshold, image_scale


class PaperFastRCNNOutputLayers(FastRCNNOutputLayers):
    """The host's output layers with the originals' decoding.

    What the host already does as the originals did: N(0, 0.01) and N(0, 0.001) weights, a box per
    class, mean cross entropy over the RoIs, box loss divided by all RoIs, fixed target deviations
    (0.1, 0.1, 0.2, 0.2) as ``BBOX_REG_WEIGHTS`` (10, 10, 5, 5).

    Known difference left as the host has it: py-faster-rcnn's limit of 100 detections keeps all
    that tie with the 100th, this one exactly 100 (check E20).
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        decode_growth: float = 0.0,
        decode_in_image: bool = False,
        **kwargs: Any,
    ) -> None:
        """Build the layers.

        Args:
            input_shape: channels of fc7.
            decode_growth: original-image pixels added to x2, y2 (py-faster-rcnn: 1).
            decode_in_image: see ``MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE``.
            kwargs: arguments of the host's class.
        """
        super().__init__(input_shape, **kwargs)
        self.decode_growth = decode_growth
        self.decode_in_image = decode_in_image
        self.test_nms_thresh: float = float32_threshold(kwargs.get("test_nms_thresh", 0.5))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Arguments of :meth:`__init__` from ``MODEL.ROI_BOX_HEAD`` and ``MODEL.ROI_HEADS``."""
        ret = super().from_config(cfg, input_shape)
        head = cfg.MODEL.ROI_BOX_HEAD
        ret["box2box_transform"] = CaffeBox2BoxTransform(head.BBOX_REG_WEIGHTS, head.SCALE_CLAMP)
        ret["decode_growth"] = head.DECODE_GROWTH
        ret["decode_in_image"] = head.DECODE_IN_IMAGE
        return ret

    def predict_boxes(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """Apply the predicted deltas to the proposals.

        Args:
            predictions: scores (R, K+1) and deltas (R, K*4) of all images' proposals.
            proposals: per image; their ``image_size`` carries the image scale (1 if it does not).

        Returns:
            per image, (R_i, K*4) continuous XYXY in network-input pixels.
        """
        if not (self.decode_growth or self.decode_in_image):
            return super().predict_boxes(predictions, proposals)
        scales = [image_scale(p.image_size) for p in proposals]
        if self.decode_in_image:
            proposals = [_to_image(p, s) for p, s in zip(proposals, scales, strict=True)]
        decoded = []
        for boxes, scale in zip(super().predict_boxes(predictions, proposals), scales, strict=True):
            unit = 1.0 if self.decode_in_image else scale  # one original-image pixel
            boxes = grow(boxes, self.decode_growth * unit)
            decoded.append(boxes * scale if self.decode_in_image else boxes)
        return decoded


def _to_image(proposals: Instances, scale: float) -> Instances:
    """Proposals in original-image pixels, dividing *inclusive* coordinates as py-faster-rcnn does.

    Args:
        proposals: with ``proposal_boxes`` in network-input pixels.
        scale: network pixels per original pixel.
    """
    boxes = proposals.proposal_boxes.tensor
    one = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    result = Instances(proposals.image_size)
    result.proposal_boxes = Boxes((boxes - one) / scale + one)
    return result

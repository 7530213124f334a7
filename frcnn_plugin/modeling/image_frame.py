"""Boxes in original-image pixels and back, for decoding as py-faster-rcnn does it at test time."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances

from .image_size import ScaledImageSize, image_scale


def to_image(proposals: Instances) -> Instances:
    """Proposals in original-image pixels, dividing *inclusive* coordinates as py-faster-rcnn does.

    Args:
        proposals: with ``proposal_boxes`` in network-input pixels.
    """
    boxes = proposals.proposal_boxes.tensor
    one = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    result = Instances(proposals.image_size)
    result.proposal_boxes = Boxes((boxes - one) / image_scale(proposals.image_size) + one)
    return result


def to_network(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Clip boxes to the image, and scale them so that the host's scaling back undoes it.

    The host divides x by the ratio of the widths and y by that of the heights. Clipped as by
    py-faster-rcnn, a box outside the image stays one pixel wide at its border.

    Args:
        boxes: (R, K*4) in original-image pixels.
        image_size: (height, width) of the network input.

    Returns:
        (R, K*4) in network-input pixels.
    """
    if not isinstance(image_size, ScaledImageSize):  # scale 1, and the host clips
        return boxes
    height, width = image_size.original
    repeats = boxes.shape[1] // 4
    low = boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).repeat(repeats)
    high = boxes.new_tensor([width - 1, height - 1, width, height]).repeat(repeats)
    x, y = image_size[1] / width, image_size[0] / height
    return boxes.clamp(low, high) * boxes.new_tensor([x, y, x, y]).repeat(repeats)

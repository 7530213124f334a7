"""From what users give to what models take, and back: images, boxes, pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from ..errors import UserError


def check_image(image: Any, number: int) -> npt.NDArray[np.uint8]:
    """Make sure that an image is (H, W, 3) uint8; ``number`` is its place, for the message."""
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UserError(
            f"image {number} is an array of {array.dtype} {array.shape}: needed is uint8 "
            "(height, width, 3), or the path of a file"
        )
    return array


def check_boxes(boxes: Any, height: int, width: int) -> torch.Tensor:
    """Make sure that boxes have area and lie, in part at least, in the image.

    Args:
        boxes: (R, 4), XYXY in pixels of the image.
        height: of the image.
        width: of the image.

    Returns:
        (R, 4) float64: float32 would move corners, and so now and then the cells that are pooled.

    Raises:
        UserError: names the first box that is wrong.
    """
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.zeros(1)
    if array.size and (array.ndim != 2 or array.shape[1] != 4):
        raise UserError("boxes must be rows of four numbers, x1 y1 x2 y2")
    tensor = torch.as_tensor(array).reshape(-1, 4)
    x1, y1, x2, y2 = tensor.unbind(1)
    sound = tensor.isfinite().all(dim=1) & (x2 > x1) & (y2 > y1)
    inside = (x1 < width) & (y1 < height) & (x2 > 0) & (y2 > 0)
    for ok, problem in (
        (sound, "has no area: boxes are x1 y1 x2 y2 in pixels"),
        (inside, f"lies outside the image, which is {width} x {height} pixels"),
    ):
        if not ok.all():
            i = int((~ok).nonzero()[0])
            raise UserError(f"box {i}, {tensor[i].tolist()}, {problem}")
    return tensor


def to_image(boxes: Boxes, size: tuple[int, int], entry: dict[str, Any]) -> Boxes:
    """From network-input to original-image pixels, in float64 so that borders stay borders."""
    tensor = boxes.tensor.double()
    factors = [entry["width"] / size[1], entry["height"] / size[0]] * 2
    return Boxes((tensor * tensor.new_tensor(factors)).float())


def postprocess(instances: Instances, size: tuple[int, int], entry: dict[str, Any]) -> Instances:
    """The host's postprocessing of detections that have ``proposal_boxes``.

    Args:
        instances: in network-input pixels; changed.
        size: (height, width) of the network input.
        entry: with "height" and "width" of the original image.
    """
    instances.proposal_boxes = to_image(instances.proposal_boxes, size, entry)
    result = detector_postprocess(instances, entry["height"], entry["width"])
    return Instances(result.image_size, **{k: full(v) for k, v in result.get_fields().items()})


def full(value: Any) -> Any:
    """In float32 what autocast computed with less."""
    half = isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value

"""Operations on boxes of one image: clip, inside, mirror.

Boxes are continuous XYXY: a box that ends flush with the image has x2 = width.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", torch.Tensor, np.ndarray)


def scale_inclusive(boxes: Array, factor: float | tuple[float, float]) -> Array:
    """Scale boxes as py-faster-rcnn does: their inclusive corners, all by one factor.

    The width of a box thus becomes (width - 1) * factor + 1.

    Args:
        boxes: (R, 4), continuous XYXY.
        factor: new pixels per old one; a pair for y and x, as from :func:`corner_factors`.

    Returns:
        (R, 4), new.

    Source: py-faster-rcnn minibatch.py, test.py.
    """
    if isinstance(factor, tuple):
        scaled = boxes.clone() if isinstance(boxes, torch.Tensor) else boxes.copy()
        for side, of_side in enumerate(factor):
            scaled[:, 1 - side :: 2] *= of_side
            scaled[:, 3 - side] += 1 - of_side
        return scaled
    scaled = boxes * factor
    scaled[:, 2:] += 1 - factor
    return scaled


def corner_factors(old: tuple[float, float], new: tuple[float, float]) -> tuple[float, float]:
    """Return the factors of MATLAB's scaling, which maps first to first and last to last pixel.

    Args:
        old: (height, width) that inclusive corners are in.
        new: those that they are scaled to.

    Returns:
        (size' - 1) / (size - 1) of y and x; the ratio of the sizes for an image of one pixel.

    Source: MATLAB proposal_prepare_image_roidb.m (scale_rois).
    """
    y, x = ((b - 1) / (a - 1) if a > 1 and b > 1 else b / a for a, b in zip(old, new, strict=True))
    return y, x


def whole_pixels(boxes: torch.Tensor) -> torch.Tensor:
    """Round inclusive corners to whole pixels, halves upwards, as MATLAB's Fast R-CNN does.

    Args:
        boxes: (R, 4), continuous XYXY.

    Returns:
        (R, 4), continuous XYXY, new.

    Source: MATLAB fast_rcnn_map_im_rois_to_feat_rois.m.
    """
    # x2 - 1 is the inclusive corner, and adding the 1 again changes no rounding.
    return (boxes + 0.5).floor()


def clip_boxes(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Cut boxes off at the image's border.

    Rewrites Detectron2's ``Boxes.clip``, which checks for numbers that are not finite.

    Args:
        boxes: (R, 4), continuous XYXY; infinite corners are clipped, NaN stays.
        image_size: (height, width).

    Returns:
        (R, 4), new.
    """
    height, width = image_size
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack(
        (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=1
    )


def of_second_corner(boxes: torch.Tensor) -> torch.Tensor:
    """Return 1 for the columns of x2 and y2 of boxes, (R, K*4), and 0 for the others: (K*4,).

    Made on their device, as a GPU would be waited for to copy it there.
    """
    return (torch.arange(boxes.shape[1], device=boxes.device) % 4 > 1).to(boxes.dtype)


def clip_inclusive(boxes: torch.Tensor, image_size: tuple[float, float]) -> torch.Tensor:
    """Clip as py-faster-rcnn does, which keeps inclusive corners on pixels of the image.

    A box outside the image thus stays one pixel wide at its border; :func:`clip_boxes` leaves it
    without area.

    Args:
        boxes: (R, K*4), continuous XYXY.
        image_size: (height, width).

    Returns:
        (R, K*4), new.

    Source: py-faster-rcnn bbox_transform.py (clip_boxes).
    """
    height, width = image_size
    x1, y1, x2, y2 = (boxes[:, i::4] for i in range(4))
    clipped = (
        x1.clamp(0, width - 1),
        y1.clamp(0, height - 1),
        x2.clamp(1, width),
        y2.clamp(1, height),
    )
    return torch.stack(clipped, dim=2).flatten(1)


def inside_image(boxes: torch.Tensor, image_size: tuple[int, int], border: float) -> torch.Tensor:
    """Find the boxes that cross the image's border by at most ``border`` pixels.

    A box that ends flush with the image is inside, as in the originals; Detectron2's
    ``Boxes.inside_box`` leaves it out (point 6 of docs/faithfulness.md).

    Args:
        boxes: (R, 4), continuous XYXY.
        image_size: (height, width).
        border: pixels; negative: every box counts as inside.

    Returns:
        (R,) bool.
    """
    if border < 0:
        return torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    height, width = image_size
    x1, y1, x2, y2 = boxes.unbind(1)
    return (x1 >= -border) & (y1 >= -border) & (x2 <= width + border) & (y2 <= height + border)


def mirror(boxes: torch.Tensor, width: float) -> torch.Tensor:
    """Move boxes to their places in the mirror image (left and right exchanged).

    Args:
        boxes: (..., 4), continuous XYXY.
        width: of the image, in the pixels of ``boxes``.

    Returns:
        (..., 4), new.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=-1)

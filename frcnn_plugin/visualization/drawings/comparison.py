"""Detections beside the ground truth, coloured by class; several pictures on one sheet."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .canvas import Canvas, Panel
from .palette import DIFFICULT, ImageArray, class_style

_MARGIN = 6  # around the pictures of a sheet


def draw_comparison(
    image_bgr: ImageArray,
    gt_boxes: npt.ArrayLike,
    gt_classes: Sequence[int],
    det_boxes: npt.ArrayLike,
    det_classes: Sequence[int],
    det_scores: Sequence[float],
    class_names: Sequence[str],
    gt_difficult: Sequence[bool] | None = None,
    title: str = "",
) -> Canvas:
    """Draw the ground truth on the left and the detections on the right.

    Args:
        image_bgr: (H, W, 3) uint8 BGR.
        gt_boxes: (G, 4) continuous XYXY, image pixels.
        gt_classes: (G,) class indices.
        det_boxes: (D, 4) continuous XYXY, image pixels, best score first.
        det_classes: (D,) class indices.
        det_scores: (D,) scores in [0, 1].
        class_names: names by class index; an index beyond them is shown as a number.
        gt_difficult: (G,) objects to be marked as difficult, in grey.
        title: what the picture shows.

    Returns:
        the picture.
    """
    difficult = [False] * len(gt_classes) if gt_difficult is None else gt_difficult
    truth = list(zip(gt_classes, difficult, strict=True))
    panels = [Panel(f"ground truth ({len(truth)})"), Panel(f"detections ({len(det_classes)})")]
    canvas = Canvas(image_bgr, title, panels=panels, ticks=False, sides=(480, 900))
    canvas.boxes(
        gt_boxes,
        [DIFFICULT if hard else class_style(index) for index, hard in truth],
        [_class_name(class_names, i) + (" (difficult)" if hard else "") for i, hard in truth],
    )
    canvas.boxes(
        det_boxes,
        [class_style(index) for index in det_classes],
        [
            f"{_class_name(class_names, index)} {score:.2f}"
            for index, score in zip(det_classes, det_scores, strict=True)
        ],
        1,
    )
    return canvas


def contact_sheet(images: Sequence[ImageArray], columns: int) -> ImageArray:
    """Put pictures on one white sheet, row by row, each in a cell that any of them fits.

    Args:
        images: (H, W, 3) uint8 pictures of any size; at least one.
        columns: pictures per row.

    Returns:
        One uint8 picture.

    Raises:
        ValueError: without pictures or columns.
    """
    if not images or columns < 1:
        raise ValueError(f"need pictures and columns, got {len(images)} and {columns}")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = (max(image.shape[axis] for image in images) + _MARGIN for axis in (0, 1))
    size = (rows * height + _MARGIN, columns * width + _MARGIN, 3)
    sheet = np.full(size, 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top = index // columns * height + _MARGIN
        left = index % columns * width + _MARGIN
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def _class_name(class_names: Sequence[str], index: int) -> str:
    return class_names[index] if 0 <= index < len(class_names) else str(int(index))

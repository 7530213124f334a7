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
    gt_boxes = np.asarray(gt_boxes, dtype=float).reshape(-1, 4)
    det_boxes = np.asarray(det_boxes, dtype=float).reshape(-1, 4)
    difficult = [False] * len(gt_boxes) if gt_difficult is None else list(gt_difficult)
    truth = [
        (
            box,
            _class_name(class_names, index) + (" (difficult)" if hard else ""),
            DIFFICULT if hard else class_style(int(index)),
        )
        for box, index, hard in zip(gt_boxes, gt_classes, difficult, strict=True)
    ]
    detections = [
        (box, f"{_class_name(class_names, index)} {score:.2f}", class_style(int(index)))
        for box, index, score in zip(det_boxes, det_classes, det_scores, strict=True)
    ]
    panels = [Panel(f"ground truth ({len(truth)})"), Panel(f"detections ({len(detections)})")]
    canvas = Canvas(image_bgr, title, panels=panels, ticks=False)
    for panel, items in enumerate((truth, detections)):
        for box, _, style in reversed(items):  # the best one on top
            canvas.box(box, style, panel)
        for box, text, style in items:
            canvas.label(box, text, style, panel)
    return canvas


def contact_sheet(images: Sequence[ImageArray], columns: int) -> ImageArray:
    """Put pictures on one white sheet, row by row.

    Args:
        images: (H, W, 3) uint8 pictures of any size; at least one.
        columns: pictures per row.

    Returns:
        One uint8 picture; each column is as wide as its widest picture, each row as high as its
        highest.

    Raises:
        ValueError: without pictures or columns.
    """
    if not images or columns < 1:
        raise ValueError(f"need pictures and columns, got {len(images)} and {columns}")
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    widths = [
        max(row[column].shape[1] for row in rows if column < len(row)) for column in range(columns)
        if any(column < len(row) for row in rows)
    ]  # fmt: skip
    heights = [max(image.shape[0] for image in row) for row in rows]
    size = (sum(heights) + _MARGIN * (len(rows) + 1), sum(widths) + _MARGIN * (len(widths) + 1))
    sheet = np.full((*size, 3), 255, dtype=np.uint8)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        left = _MARGIN
        for image, width in zip(row, widths, strict=False):
            sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
            left += width + _MARGIN
        top += height + _MARGIN
    return sheet


def _class_name(class_names: Sequence[str], index: int) -> str:
    return class_names[index] if 0 <= index < len(class_names) else str(int(index))

"""Pictures of detections beside the ground truth.

Drawn with Pillow, which every Detectron2 has; its scalable font stays legible on small images.
Images are (H, W, 3) uint8 BGR, boxes continuous XYXY in image pixels.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from .labels import Place, place_label

ImageArray = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

_PANEL_SIDE = 480  # pixels; images whose longer side is shorter are enlarged to this
_TITLE_HEIGHT = 26
_FONT_SIZE = 15
_MARGIN = 6
# One colour per class, in turn: dark enough for white letters.
COLOURS: tuple[Colour, ...] = (
    (214, 39, 40), (31, 98, 190), (20, 125, 60), (148, 60, 189), (190, 90, 0), (0, 120, 130),
    (200, 30, 130), (95, 85, 40), (90, 60, 50), (60, 60, 60), (120, 20, 60), (0, 60, 110),
    (75, 120, 0), (90, 20, 130), (150, 110, 0), (0, 90, 70), (230, 60, 90), (60, 70, 170),
    (130, 60, 20), (30, 30, 30),
)  # fmt: skip
_DIFFICULT_COLOUR: Colour = (110, 110, 110)


def draw_comparison(
    image_bgr: ImageArray,
    gt_boxes: npt.ArrayLike,
    gt_classes: Sequence[int],
    det_boxes: npt.ArrayLike,
    det_classes: Sequence[int],
    det_scores: Sequence[float],
    class_names: Sequence[str],
    gt_difficult: Sequence[bool] | None = None,
) -> ImageArray:
    """Draws the ground truth on the left and the detections on the right.

    Args:
        image_bgr: (H, W, 3) uint8 BGR.
        gt_boxes: (G, 4) continuous XYXY, image pixels.
        gt_classes: (G,) class indices.
        det_boxes: (D, 4) continuous XYXY, image pixels.
        det_classes: (D,) class indices.
        det_scores: (D,) scores in [0, 1].
        class_names: names by class index; an index beyond them is shown as a number.
        gt_difficult: (G,) objects to be marked as difficult, in grey.

    Returns:
        One uint8 BGR picture with two titled panels; small images are enlarged.
    """
    gt_boxes = np.asarray(gt_boxes, dtype=float).reshape(-1, 4)
    det_boxes = np.asarray(det_boxes, dtype=float).reshape(-1, 4)
    difficult = [False] * len(gt_boxes) if gt_difficult is None else list(gt_difficult)
    gt_items = [
        (
            box,
            _class_name(class_names, index) + (" (difficult)" if hard else ""),
            _DIFFICULT_COLOUR if hard else COLOURS[int(index) % len(COLOURS)],
        )
        for box, index, hard in zip(gt_boxes, gt_classes, difficult, strict=True)
    ]
    det_items = [
        (
            box,
            f"{_class_name(class_names, index)} {score:.2f}",
            COLOURS[int(index) % len(COLOURS)],
        )
        for box, index, score in zip(det_boxes, det_classes, det_scores, strict=True)
    ]
    det_items.reverse()  # usually sorted by score: the best one is drawn last, on top
    left = _panel(image_bgr, f"ground truth ({len(gt_items)})", gt_items)
    right = _panel(image_bgr, f"detections ({len(det_items)})", det_items)
    gap = np.full((left.shape[0], _MARGIN, 3), 255, dtype=np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def contact_sheet(images: Sequence[ImageArray], columns: int) -> ImageArray:
    """Puts pictures on one white sheet, row by row.

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


def _panel(
    image_bgr: ImageArray, title: str, items: Sequence[tuple[npt.NDArray[np.float64], str, Colour]]
) -> ImageArray:
    """The image with boxes and labels under a title bar; BGR in, BGR out."""
    height, width = image_bgr.shape[:2]
    scale = max(1.0, _PANEL_SIDE / max(height, width))
    font = ImageFont.load_default(_FONT_SIZE)
    picture = Image.fromarray(np.ascontiguousarray(image_bgr[:, :, ::-1]))
    picture = picture.resize((round(width * scale), round(height * scale)))
    pen = ImageDraw.Draw(picture)
    for box, _, colour in items:
        x1, y1, x2, y2 = (round(float(value) * scale) for value in box)
        # Pillow's corners are inclusive. The white rim keeps a line visible on its own colour.
        for rim, fill, line in ((1, (255, 255, 255), 5), (0, colour, 3)):
            corners = (x1 - rim, y1 - rim, max(x1, x2 - 1) + rim, max(y1, y2 - 1) + rim)
            pen.rectangle(corners, outline=fill, width=line)
    taken: list[Place] = []
    for box, label, colour in items:
        text_width = math.ceil(pen.textlength(label, font=font)) + 6
        text_size = (text_width, _FONT_SIZE + 4)
        place = place_label(picture.size, np.round(box * scale), text_size, taken)
        taken.append(place)
        x1, y1, x2, y2 = place
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=colour)
        middle = (x1 + 3, (y1 + y2) / 2)
        pen.text(middle, label, fill=(255, 255, 255), font=font, anchor="lm")
    panel = Image.new("RGB", (picture.width, picture.height + _TITLE_HEIGHT), (32, 32, 32))
    ImageDraw.Draw(panel).text(
        (_MARGIN, _TITLE_HEIGHT // 2), title, fill=(255, 255, 255), font=font, anchor="lm"
    )
    panel.paste(picture, (0, _TITLE_HEIGHT))
    return np.asarray(panel)[:, :, ::-1].copy()


def _class_name(class_names: Sequence[str], index: int) -> str:
    return class_names[index] if 0 <= index < len(class_names) else str(int(index))

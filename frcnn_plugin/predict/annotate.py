"""Pictures with detections drawn into them, at the size of the picture."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer

from ..atomic_files import replacing
from ..visualization.drawings.comparison import COLOURS
from ..visualization.drawings.labels import Place, place_label

_SHORTEST_LONG_SIDE = 480  # pixels; smaller pictures are enlarged, as labels would not fit
_POINT = 72 / 100  # points per pixel at Matplotlib's 100 dots per inch


def draw_detections(
    image_bgr: npt.NDArray[np.uint8], instances: Instances, class_names: Sequence[str]
) -> npt.NDArray[np.uint8]:
    """Draw boxes with class names and scores by the host's Visualizer.

    Letters and lines grow with the picture. Labels keep off each other where there is room; the
    best detection is drawn last, on top.

    Args:
        image_bgr: (H, W, 3) uint8 BGR.
        instances: ``pred_boxes`` in pixels of the image, ``scores``, ``pred_classes``.
        class_names: by class index; also shown if there is only one.

    Returns:
        uint8 BGR, of the same size; small pictures are enlarged.
    """
    height, width = image_bgr.shape[:2]
    scale = max(1.0, _SHORTEST_LONG_SIDE / max(height, width))
    canvas = Visualizer(np.ascontiguousarray(image_bgr[:, :, ::-1]), scale=scale)
    axes = canvas.output.ax
    letter = max(13.0, 0.026 * scale * math.sqrt(height * width))  # pixels of the result
    pad = 0.12 * letter
    boxes = instances.pred_boxes.tensor.numpy()
    classes = instances.pred_classes.tolist()
    rim = 0.16 * letter / scale  # a box along the border is drawn inside the picture
    for box, index in list(zip(boxes, classes, strict=True))[::-1]:
        x1, y1, x2, y2 = (float(v) for v in box)
        corners = (max(x1, rim), max(y1, rim), min(x2, width - rim), min(y2, height - rim))
        # The white rim keeps a line visible on its own colour.
        for colour, line in (((1.0, 1.0, 1.0), 0.32), (_colour(index), 0.18)):
            canvas.draw_box(corners, alpha=1.0, edge_color=colour)
            axes.patches[-1].set_linewidth(letter * line * _POINT)
            axes.patches[-1].set_joinstyle("miter")
    taken: list[Place] = []
    labels = []
    for box, index, score in zip(boxes, classes, instances.scores.tolist(), strict=True):
        text = f"{class_names[index]} {score:.2f}"
        canvas.draw_text(text, (0, 0), font_size=letter * _POINT / scale, color="w")
        label = axes.texts[-1]
        label.set(color="w", horizontalalignment="left", parse_math=False)
        back = {"facecolor": _colour(index), "alpha": 0.9, "edgecolor": "none"}
        label.set_bbox({**back, "pad": pad * _POINT})
        extent = label.get_window_extent(canvas.output.canvas.get_renderer())
        size = (extent.width + 2 * pad, extent.height + 2 * pad)
        place = place_label((width * scale, height * scale), box * scale, size, taken)
        taken.append(place)
        label.set_position(((place[0] + pad) / scale, (place[1] + pad) / scale))
        labels.append(label)
    for order, label in enumerate(reversed(labels)):
        label.set_zorder(10 + order)
    picture: npt.NDArray[np.uint8] = canvas.output.get_image()[:, :, ::-1]
    return np.ascontiguousarray(picture)


def save_picture(path: str | os.PathLike[str], picture: npt.NDArray[np.uint8]) -> None:
    """Write a BGR picture; the file appears, or replaces another, only when it is complete.

    Args:
        path: ends in ``.jpg`` or ``.png``.
        picture: (H, W, 3).
    """
    path = Path(path)
    done, content = cv2.imencode(path.suffix, picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert done, path
    with replacing(path) as temporary:
        temporary.write_bytes(content.tobytes())


def _colour(index: int) -> tuple[float, float, float]:
    red, green, blue = COLOURS[index % len(COLOURS)]
    return red / 255, green / 255, blue / 255

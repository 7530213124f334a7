"""Pictures with detections drawn into them, at the size of the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from detectron2.structures import Instances

from ..visualization.drawings.bare_canvas import BareCanvas
from ..visualization.drawings.palette import ImageArray, class_style


def annotate_image(
    image_bgr: ImageArray, instances: Instances, class_names: Sequence[str]
) -> BareCanvas:
    """Draw boxes with class names and scores, coloured by class.

    Letters and lines grow with the picture. Labels keep off each other where there is room; the
    best detection is drawn last, on top.

    Args:
        image_bgr: (H, W, 3) uint8 BGR.
        instances: ``pred_boxes`` in pixels of the image, ``scores``, ``pred_classes``; on the CPU,
            best first.
        class_names: by class index; also shown if there is only one.

    Returns:
        the picture, of the same size; small ones are enlarged.
    """
    height, width = image_bgr.shape[:2]
    scale = max(1.0, 480 / max(height, width))
    letter = max(13.0, 0.026 * scale * math.sqrt(height * width))
    canvas = BareCanvas(image_bgr, letter=letter)
    boxes = instances.pred_boxes.tensor.numpy()
    styles = [class_style(i, 0.18 * letter) for i in instances.pred_classes.tolist()]
    for box, style in reversed(list(zip(boxes, styles, strict=True))):
        canvas.box(box, style)
    names = [class_names[index] for index in instances.pred_classes.tolist()]
    for box, style, name, score in zip(
        boxes, styles, names, instances.scores.tolist(), strict=True
    ):
        canvas.label(box, f"{name} {score:.2f}", style)
    return canvas

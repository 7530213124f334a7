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
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    styles = [class_style(index, 0.18 * letter) for index in classes]
    texts = [f"{class_names[i]} {score:.2f}" for i, score in zip(classes, scores, strict=True)]
    canvas.boxes(instances.pred_boxes.tensor.numpy(), styles, texts)
    return canvas

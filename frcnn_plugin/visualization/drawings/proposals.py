"""The best proposals of an image and which objects they cover."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex

from ...evaluation.average_precision import best_overlaps
from .canvas import Canvas, Panel
from .objects import Objects
from .palette import DIFFICULT, MISSED, OBJECT, ImageArray, Style

_MAP = colormaps["plasma"]  # up to orange: yellow is the truth


def draw_proposals(
    image_bgr: ImageArray,
    boxes: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
    total: int,
    objects: Objects | None,
    recall: Mapping[str, str],
    name: str,
    notes: Sequence[str] = (),
) -> Canvas:
    """Draw proposals, the best on top; objects say how well they are covered.

    Args:
        image_bgr: (H, W, 3) uint8 BGR.
        boxes: (K, 4) the best ones, continuous XYXY, pixels of the original image.
        scores: (K,) objectness in [0, 1], descending.
        total: number of proposals of the image.
        objects: of the image, if known.
        recall: what is measured -> its value in words, such as "best 20" -> "2 of 3 at IoU .5".
        name: what the title calls the image.
        notes: lines below the title.

    Returns:
        the picture.
    """
    title = f"proposals: {name}, the best {len(boxes)} of {total}"
    lines = [f"recall of the {what}: {value}" for what, value in recall.items()]
    lowest, highest = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 1.0)
    if highest - lowest < 1e-6:
        lowest = highest - 1  # all look like the best one
    norm = Normalize(lowest, highest)
    styles = [Style(to_hex(_MAP(0.72 * float(norm(score)))), 1.5) for score in scores]
    legend = []
    if len(scores):
        legend = [
            (f"best proposal, {highest:.3f}", Style(styles[0].colour, 3.5)),
            (f"last one drawn, {scores[-1]:.3f}", styles[-1]),
        ]
    if objects is not None:
        legend += objects.legend()
        covered = _coverage(boxes, objects)
        if (~objects.ignored & (covered < 0.5)).any():
            legend.append(("object not covered at IoU .5", MISSED))
    canvas = Canvas(image_bgr, title, [*lines, *notes], legend, [Panel(fade=0.2)])
    for index in reversed(range(len(boxes))):
        style = styles[index] if index else Style(styles[0].colour, 3.5)
        canvas.box(boxes[index], style)
    if objects is not None:
        _draw_objects(canvas, covered, objects)
    for box, score, style in zip(boxes, scores, styles, strict=True):
        canvas.label(box, f"{score:.3f}", style, optional=True)
    return canvas


def _coverage(boxes: npt.NDArray[np.float64], objects: Objects) -> npt.NDArray[np.float64]:
    """(G,) IoU of each object with the proposal that covers it best."""
    images = np.zeros(max(len(boxes), len(objects.boxes)), dtype=np.int64)
    _, iou = best_overlaps(objects.boxes, images[: len(objects.boxes)], boxes, images[: len(boxes)])
    return iou


def _draw_objects(canvas: Canvas, covered: npt.NDArray[np.float64], objects: Objects) -> None:
    styles = [
        DIFFICULT if ignored else MISSED if iou < 0.5 else OBJECT
        for iou, ignored in zip(covered, objects.ignored, strict=True)
    ]
    for box, style in zip(objects.boxes, styles, strict=True):
        canvas.box(box, style)
    for box, style, name, iou in zip(objects.boxes, styles, objects.names, covered, strict=True):
        canvas.label(box, f"{name}: IoU {iou:.2f}", style)

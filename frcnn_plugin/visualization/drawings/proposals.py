"""The best proposals of an image and which objects they cover."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.colors import Normalize, to_hex

from ...evaluation.average_precision import best_overlaps
from .canvas import Canvas, Legend, Panel
from .objects import Objects
from .palette import DIFFICULT, MISSED, OBJECT, ImageArray, Style

_MAP = colormaps["plasma"]  # up to orange: yellow is the truth


def draw_proposals(
    image_bgr: ImageArray,
    boxes: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
    objects: Objects | None,
    title: str,
    notes: Sequence[str] = (),
) -> Canvas:
    """Draw proposals, the best on top; objects say how well they are covered.

    Args:
        image_bgr: (H, W, 3) uint8 BGR.
        boxes: (K, 4) continuous XYXY, pixels of the original image, best score first.
        scores: (K,) objectness in [0, 1].
        objects: of the image, if known.
        title: what the picture shows.
        notes: lines below the title.

    Returns:
        The picture.
    """
    lowest, highest = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 1.0)
    if highest - lowest < 1e-6:
        lowest = highest - 1  # all look like the best one
    norm = Normalize(lowest, highest)
    colours = [to_hex(_MAP(0.72 * float(norm(score)))) for score in scores]
    styles = [Style(colour, 1.5 if rank else 3.5) for rank, colour in enumerate(colours)]
    legend: Legend = []
    if styles:
        legend += [(f"best proposal, {highest:.3f}", styles[0])]
        legend += [(f"last one drawn, {scores[-1]:.3f}", styles[-1])]
    looks, texts = [], []
    if objects is not None:
        covered = _coverage(boxes, objects)
        looks = [
            DIFFICULT if ignored else MISSED if iou < 0.5 else OBJECT
            for iou, ignored in zip(covered, objects.ignored, strict=True)
        ]
        texts = [f"{what}: IoU {iou:.2f}" for what, iou in zip(objects.names, covered, strict=True)]
        legend += objects.legend()
        legend += [("object not covered at IoU .5", MISSED)] if MISSED in looks else []
    canvas = Canvas(image_bgr, title, notes, legend, [Panel(fade=0.2)])
    canvas.boxes(boxes, styles)
    if objects is not None:
        canvas.boxes(objects.boxes, looks, texts)
    for box, score, style in zip(boxes, scores, styles, strict=True):
        canvas.label(box, f"{score:.3f}", style, optional=True)
    return canvas


def _coverage(boxes: npt.NDArray[np.float64], objects: Objects) -> npt.NDArray[np.float64]:
    """Return the IoU of each object, (G,), with the proposal that covers it best."""
    images = np.zeros(max(len(boxes), len(objects.boxes)), dtype=np.int64)
    _, iou = best_overlaps(objects.boxes, images[: len(objects.boxes)], boxes, images[: len(boxes)])
    return iou

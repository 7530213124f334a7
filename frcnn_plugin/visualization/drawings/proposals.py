"""The best proposals of an image and which objects they cover."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from torchvision.ops import box_iou

from .canvas import Canvas, Legend, Panel
from .objects import NO_OBJECTS, Objects
from .palette import DIFFICULT, MISSED, OBJECT, ImageArray, Style

_MAP = colormaps["plasma"]  # up to orange: yellow is the truth


def draw_proposals(
    image_bgr: ImageArray,
    boxes: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
    title: str,
    objects: Objects = NO_OBJECTS,
    notes: Sequence[str] = (),
) -> Canvas:
    """Draw proposals, the best on top; objects say how well they are covered.

    Args:
        image_bgr: (H, W, 3) uint8 BGR.
        boxes: (K, 4) continuous XYXY, pixels of the original image, best score first.
        scores: (K,) objectness in [0, 1].
        title: what the picture shows.
        objects: of the image, if known.
        notes: lines below the title.

    Returns:
        The picture.
    """
    highest = scores.max(initial=0)
    span = max(highest - scores.min(initial=highest), 1e-6)
    shades = [0.72 * (1 - (highest - score) / span) for score in scores]
    styles = [Style(to_hex(_MAP(s)), 1.5 if rank else 3.5) for rank, s in enumerate(shades)]
    legend: Legend = []
    if styles:
        legend += [(f"best proposal, {highest:.3f}", styles[0])]
        legend += [(f"last one drawn, {scores[-1]:.3f}", styles[-1])]
    iou = box_iou(torch.from_numpy(objects.boxes), torch.from_numpy(boxes)).numpy()
    covered = iou.max(axis=1, initial=0)
    looks = [
        DIFFICULT if ignored else MISSED if best < 0.5 else OBJECT
        for best, ignored in zip(covered, objects.ignored, strict=True)
    ]
    texts = [f"{what}: IoU {best:.2f}" for what, best in zip(objects.names, covered, strict=True)]
    legend += objects.legend()
    legend += [("object not covered at IoU .5", MISSED)] if MISSED in looks else []
    canvas = Canvas(image_bgr, title, notes, legend, [Panel(fade=0.2)])
    canvas.boxes(boxes, styles)
    canvas.boxes(objects.boxes, looks, texts)
    for box, score, style in zip(boxes, scores, styles, strict=True):
        canvas.label(box, f"{score:.3f}", style, optional=True)
    return canvas

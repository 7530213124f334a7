"""Detections, right and wrong, and the objects that were missed."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .canvas import Canvas
from .objects import Objects, count_of
from .palette import DIFFICULT, FOUND, MISSED, RIGHT, UNCOUNTED, WRONG, ImageArray

BoolArray = npt.NDArray[np.bool_]


def draw_detections(
    image_bgr: ImageArray,
    boxes: npt.NDArray[np.float64],
    names: Sequence[str],
    scores: npt.NDArray[np.float64],
    objects: Objects | None,
    verdicts: tuple[BoolArray, BoolArray, BoolArray] | None,
    title: str,
    notes: Sequence[str] = (),
) -> Canvas:
    """Draw detections, coloured by what the evaluation says of them.

    Args:
        image_bgr: (H, W, 3) uint8 BGR.
        boxes: (D, 4) continuous XYXY, pixels of the original image, best score first.
        names: (D,) their classes.
        scores: (D,) in [0, 1].
        objects: (G,) of the image; None: unknown, nothing is judged.
        verdicts: what `judge_detections` of the evaluation says: right (D,), ignored (D,) and
            found (G,); None without objects.
        title: what is shown; the numbers are added.
        notes: lines below the title.

    Returns:
        the picture.
    """
    if objects is None or verdicts is None:
        title = f"{title}, {count_of(len(boxes), 'detection')}, no ground truth given"
        canvas = Canvas(image_bgr, title, notes, [("detection", RIGHT)])
        styles = [RIGHT] * len(boxes)
        lost = []
    else:
        right, ignored, found = verdicts
        missed = ~found & ~objects.ignored
        title = (
            f"{title}, {int(right.sum())} right, {int((~right & ~ignored).sum())} wrong, "
            f"{int(missed.sum())} missed"
        )
        title += f", {int(ignored.sum())} not counted" if ignored.any() else ""
        legend = [
            ("right (true positive)", RIGHT),
            ("wrong (false positive)", WRONG),
            ("missed object", MISSED),
            *([("found object", FOUND)] if found.any() else []),
            *([("difficult or crowd", DIFFICULT)] if objects.ignored.any() else []),
            *([("detection of a difficult one", UNCOUNTED)] if ignored.any() else []),
        ]
        canvas = Canvas(image_bgr, title, notes, legend)
        kinds = zip(objects.ignored, missed, strict=True)
        looks = [DIFFICULT if hard else MISSED if alone else FOUND for hard, alone in kinds]
        canvas.boxes(objects.boxes, looks)
        everything = zip(objects.boxes, objects.names, missed, strict=True)
        lost = [(box, f"missed {name}") for box, name, is_missed in everything if is_missed]
        styles = [
            RIGHT if good else UNCOUNTED if skip else WRONG
            for good, skip in zip(right, ignored, strict=True)
        ]
    texts = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
    canvas.boxes(boxes, styles, texts)
    for box, text in lost:
        canvas.label(box, text, MISSED)
    return canvas

"""Detections, right and wrong, and the objects that were missed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...evaluation.average_precision import MatchRule, best_overlaps, match_detections
from .canvas import Canvas
from .objects import Objects, count_of
from .palette import DIFFICULT, FOUND, MISSED, RIGHT, UNCOUNTED, WRONG, ImageArray, Style


@dataclass(frozen=True)
class Verdicts:
    """What the evaluation says of one image's detections.

    Attributes:
        right: (D,) true positives.
        ignored: (D,) on a difficult or crowd object: they count neither way.
        missed: (G,) objects without a true positive, ignored ones not among them.
    """

    right: npt.NDArray[np.bool_]
    ignored: npt.NDArray[np.bool_]
    missed: npt.NDArray[np.bool_]


def judge(
    boxes: npt.NDArray[np.float64],
    names: Sequence[str],
    objects: Objects,
    match: MatchRule = ">=",
) -> Verdicts:
    """Match class by class at IoU 0.5, as average precision does.

    Args:
        boxes: (D, 4) continuous XYXY, best score first.
        names: (D,) their classes.
        objects: of the image, in the same pixels.
        match: see `match_detections`.

    Returns:
        the verdicts.
    """
    det_names, gt_names = np.array(names, dtype=object), np.array(objects.names, dtype=object)
    right, ignored = np.zeros(len(boxes), dtype=bool), np.zeros(len(boxes), dtype=bool)
    missed = ~objects.ignored
    for name in sorted({*names, *objects.names}):
        det, gt = np.flatnonzero(det_names == name), np.flatnonzero(gt_names == name)
        image = np.zeros(max(len(det), len(gt)), dtype=np.int64)
        hits, no_counts = match_detections(
            boxes[det], image[: len(det)], objects.boxes[gt], image[: len(gt)],
            objects.ignored[gt], np.array([0.5]), match,
        )  # fmt: skip
        right[det], ignored[det] = hits[0], no_counts[0]
        # A true positive is one of the object it overlaps most.
        best, _ = best_overlaps(boxes[det], image[: len(det)], objects.boxes[gt], image[: len(gt)])
        missed[gt[best[hits[0]]]] = False
    return Verdicts(right, ignored, missed)


def draw_detections(
    image_bgr: ImageArray,
    boxes: npt.NDArray[np.float64],
    names: Sequence[str],
    scores: npt.NDArray[np.float64],
    objects: Objects | None,
    title: str,
    notes: Sequence[str] = (),
    match: MatchRule = ">=",
) -> Canvas:
    """Draw detections, coloured by what the evaluation says of them.

    Args:
        image_bgr: (H, W, 3) uint8 BGR.
        boxes: (D, 4) continuous XYXY, pixels of the original image, best score first.
        names: (D,) their classes.
        scores: (D,) in [0, 1].
        objects: of the image; None: unknown, nothing is judged.
        title: what is shown; the numbers are added.
        notes: lines below the title.
        match: see `match_detections`.

    Returns:
        the picture.
    """
    if objects is None:
        texts = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
        title = f"{title}, {count_of(len(boxes), 'detection')}, no ground truth given"
        canvas = Canvas(image_bgr, title, notes, [("detection", RIGHT)])
        _draw(canvas, boxes, texts, [RIGHT] * len(boxes))
        return canvas
    verdicts = judge(boxes, names, objects, match)
    wrong = ~verdicts.right & ~verdicts.ignored
    legend = [
        ("right (true positive)", RIGHT),
        ("wrong (false positive)", WRONG),
        ("missed object", MISSED),
        *[entry for entry in objects.legend() if not entry[0].startswith("object")],
        *([("detection of a difficult one", UNCOUNTED)] if verdicts.ignored.any() else []),
    ]
    if (~objects.ignored & ~verdicts.missed).any():
        legend.insert(3, ("found object", FOUND))
    title = (
        f"{title}, {int(verdicts.right.sum())} right, {int(wrong.sum())} wrong, "
        f"{int(verdicts.missed.sum())} missed"
    )
    if verdicts.ignored.any():
        title += f", {int(verdicts.ignored.sum())} not counted"
    canvas = Canvas(image_bgr, title, notes, legend)
    _draw_objects(canvas, objects, verdicts)
    styles = [
        RIGHT if right else UNCOUNTED if ignored else WRONG
        for right, ignored in zip(verdicts.right, verdicts.ignored, strict=True)
    ]
    texts = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
    _draw(canvas, boxes, texts, styles)
    for box, name, missed in zip(objects.boxes, objects.names, verdicts.missed, strict=True):
        if missed:
            canvas.label(box, f"missed {name}", MISSED)
    return canvas


def _draw(
    canvas: Canvas,
    boxes: npt.NDArray[np.float64],
    texts: Sequence[str],
    styles: Sequence[Style],
) -> None:
    for box, style in reversed(list(zip(boxes, styles, strict=True))):
        canvas.box(box, style)
    for box, text, style in zip(boxes, texts, styles, strict=True):
        canvas.label(box, text, style)


def _draw_objects(canvas: Canvas, objects: Objects, verdicts: Verdicts) -> None:
    for box, ignored, missed in zip(objects.boxes, objects.ignored, verdicts.missed, strict=True):
        canvas.box(box, DIFFICULT if ignored else MISSED if missed else FOUND)

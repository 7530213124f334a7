"""Detections: right, wrong and missed ones, or beside the ground truth on a sheet."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .canvas import Canvas, Panel
from .objects import Objects, count_of
from .palette import DIFFICULT, FOUND, MISSED, RIGHT, UNCOUNTED, WRONG, ImageArray, class_style

BoolArray = npt.NDArray[np.bool_]

_MARGIN = 6  # around the pictures of a sheet


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
        The picture.
    """
    texts = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
    if objects is None or verdicts is None:
        title = f"{title}, {count_of(len(boxes), 'detection')}, no ground truth given"
        canvas = Canvas(image_bgr, title, notes, [("detection", RIGHT)])
        canvas.boxes(boxes, [RIGHT] * len(boxes), texts)
        return canvas
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
    verdict = zip(right, ignored, strict=True)
    styles = [RIGHT if good else UNCOUNTED if skip else WRONG for good, skip in verdict]
    canvas.boxes(boxes, styles, texts)
    for box, name, lost in zip(objects.boxes, objects.names, missed, strict=True):
        if lost:
            canvas.label(box, f"missed {name}", MISSED)
    return canvas


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
    """Draw the ground truth on the left and the detections on the right, coloured by class.

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
        The picture.
    """

    def name(index: int) -> str:
        return class_names[index] if 0 <= index < len(class_names) else str(int(index))

    difficult = [False] * len(gt_classes) if gt_difficult is None else gt_difficult
    truth = list(zip(gt_classes, difficult, strict=True))
    found = list(zip(det_classes, det_scores, strict=True))
    panels = [Panel(f"ground truth ({len(truth)})"), Panel(f"detections ({len(found)})")]
    canvas = Canvas(image_bgr, title, panels=panels, ticks=False, sides=(480, 900))
    canvas.boxes(
        gt_boxes,
        [DIFFICULT if hard else class_style(index) for index, hard in truth],
        [name(index) + (" (difficult)" if hard else "") for index, hard in truth],
    )
    canvas.boxes(
        det_boxes,
        [class_style(index) for index in det_classes],
        [f"{name(index)} {score:.2f}" for index, score in found],
        1,
    )
    return canvas


def contact_sheet(images: Sequence[ImageArray], columns: int) -> ImageArray:
    """Put (H, W, 3) uint8 pictures of any size on one white sheet, row by row.

    Each gets a cell that any of them fits. There must be one picture, and one column, at least.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = (max(image.shape[axis] for image in images) + _MARGIN for axis in (0, 1))
    size = (rows * height + _MARGIN, columns * width + _MARGIN, 3)
    sheet = np.full(size, 255, dtype=np.uint8)
    for index, image in enumerate(images):
        top = index // columns * height + _MARGIN
        left = index % columns * width + _MARGIN
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet

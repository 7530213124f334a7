"""Images of the report: small JPEGs, with the boxes as shapes on top that stay sharp."""

from __future__ import annotations

import io
from dataclasses import dataclass

from detectron2.data.detection_utils import read_image
from PIL import Image

from ..evaluation.record import BoxRecord, ImageRecord
from ..visualization.drawings.layout import Place, place_label
from .figures import data_address

_SIDE = 480  # pixels of the longer side
_LETTER = 0.036  # height of letters, relative to the width of the image
_WIDTH = 0.62  # width of a letter, relative to its height
LINE = 1.35  # height of a label, relative to that of its letters
# Drawn in this order: what matters most on top. "found" objects are drawn as their detection.
_ORDER = ("ignored", "right", "missed", "wrong")


@dataclass(frozen=True)
class Shape:
    """A box and its label; all in pixels of the original image.

    Attributes:
        outcome: see `BoxRecord`; the style.
        x: left edge.
        y: upper edge.
        width: of the box.
        height: of the box.
        label: what is written at the box; "" for nothing.
        label_x: left edge of the label.
        label_y: upper edge of the label.
        label_width: width of the label.
        hint: what is shown when the pointer rests on the box.
    """

    outcome: str
    x: float
    y: float
    width: float
    height: float
    label: str
    label_x: float
    label_y: float
    label_width: float
    hint: str


@dataclass(frozen=True)
class Picture:
    """An image with its boxes.

    Attributes:
        title: image id.
        summary: how the detector did on it.
        address: the JPEG, as a data address; "" if the file could not be read.
        problem: why not.
        width: of the original image, pixels.
        height: likewise.
        letter: height of the letters, in these pixels.
        shapes: the boxes, to be drawn in this order.
    """

    title: str
    summary: str
    address: str
    problem: str
    width: int
    height: int
    letter: float
    shapes: list[Shape]


def make_picture(image: ImageRecord) -> Picture:
    """Reads the image and lays out its boxes."""
    address, problem, width, height = "", "", image.width, image.height
    try:
        pixels = Image.fromarray(read_image(image.file_name, "RGB"))
        width, height = pixels.size
        pixels.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        pixels.save(buffer, format="JPEG", quality=82)
        address = data_address(buffer.getvalue(), "image/jpeg")
    except FileNotFoundError:
        problem = f"not found: {image.file_name or 'the data set does not name its file'}"
    except Exception as error:  # any of Pillow's decoders
        problem = f"{image.file_name or 'file name not known'}: {type(error).__name__}"
    if not (width and height):  # the boxes say how large it is at least
        width = int(max([1.0, *(box.box[2] for box in image.boxes)]))
        height = int(max([1.0, *(box.box[3] for box in image.boxes)]))
    letter = _LETTER * width
    taken: list[Place] = []
    shapes = [
        _shape(box, width, height, letter, taken)
        for outcome in reversed(_ORDER)  # what matters most finds the best place for its label
        for box in image.boxes
        if box.outcome == outcome
    ]
    shapes.reverse()
    counts = {name: sum(b.outcome == name for b in image.boxes) for name in ("right", "wrong")}
    missed = sum(box.outcome == "missed" for box in image.boxes)
    summary = f"{counts['right']} right, {counts['wrong']} wrong, {missed} missed"
    return Picture(image.image_id, summary, address, problem, width, height, letter, shapes)


def _shape(box: BoxRecord, width: int, height: int, letter: float, taken: list[Place]) -> Shape:
    x1, y1, x2, y2 = box.box
    score = "" if box.score is None else f" {box.score:.2f}"
    label = "" if box.outcome == "ignored" else f"{box.label}{score or ' missed'}"
    label_width = (len(label) + 1) * _WIDTH * letter
    place = place_label((width, height), box.box, (label_width, LINE * letter), taken)
    if label:
        taken.append(place)
    what = "detection" if box.score is not None else "object"
    return Shape(
        outcome=box.outcome,
        x=x1,
        y=y1,
        width=max(x2 - x1, 1.0),
        height=max(y2 - y1, 1.0),
        label=label,
        label_x=place[0],
        label_y=place[1],
        label_width=label_width,
        hint=f"{what}: {box.label}{score}, {box.outcome}",
    )

"""Reading one VOC annotation file, and checking its boxes.

Coordinate frame: the XML holds 1-based inclusive pixel indices; everything that leaves this file
is Detectron2's continuous XYXY_ABS, ``(xmin - 1, ymin - 1, xmax, ymax)`` (point 16 of
docs/faithfulness.md).
"""

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...errors import UserError

Box = tuple[float, float, float, float]

# A box that leaves the image by at most this many pixels comes from a writer that counts from 0
# or rounds; it is clipped. One that leaves it further is wrong.
SLIGHT_OVERHANG = 1.0

_TAGS = ("xmin", "ymin", "xmax", "ymax")
EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class VOCObject:
    """One ``<object>`` of an annotation file.

    Attributes:
        number: position in the file, counted from 1, as error messages give it.
        name: class name as written (surrounding blanks removed).
        box: continuous XYXY_ABS; nan where the file holds no number.
        difficult: whether the ``<difficult>`` tag is set; an absent tag means False.
        values: the coordinates as written, for messages.
    """

    number: int
    name: str
    box: Box
    difficult: bool
    values: str


@dataclass(frozen=True)
class VOCAnnotation:
    """One annotation file; `width` and `height` (pixels) are 0 where the file does not say."""

    filename: str
    width: int
    height: int
    objects: tuple[VOCObject, ...]


def read_annotation(path: Path) -> VOCAnnotation:
    """Reads one VOC XML file, asking only for what detection needs.

    ``pose``, ``truncated``, ``difficult``, ``size`` and ``filename`` may be absent, coordinates
    may be floats, and the boxes of nested ``<part>`` elements are left alone.

    Args:
        path: the XML file.

    Returns:
        What the file says, boxes unchecked.

    Raises:
        UserError: if the file is not XML, or an object has no class name.
    """
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path}: not readable as XML ({error})") from error
    objects = []
    # findall/find with a bare tag look at direct children only: <part> has <name> and <bndbox> too.
    for number, element in enumerate(root.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise UserError(f"{path.name}: object {number} has no <name> (its class); in {path}")
        bndbox = element.find("bndbox")
        texts = ["" if bndbox is None else (bndbox.findtext(tag) or "").strip() for tag in _TAGS]
        x1, y1, x2, y2 = (_to_float(text) for text in texts)
        if bndbox is None:
            values = "no <bndbox>"
        else:
            values = ", ".join(
                f"{tag} {text or 'missing'}" for tag, text in zip(_TAGS, texts, strict=True)
            )
        difficult = _to_flag(element.findtext("difficult"))
        objects.append(VOCObject(number, name, (x1 - 1.0, y1 - 1.0, x2, y2), difficult, values))
    return VOCAnnotation(
        filename=(root.findtext("filename") or "").strip(),
        width=_to_size(root.findtext("size/width")),
        height=_to_size(root.findtext("size/height")),
        objects=tuple(objects),
    )


def box_problem(box: Box, width: int, height: int) -> str | None:
    """Says what is wrong with a box.

    Args:
        box: continuous XYXY_ABS.
        width: image width in pixels.
        height: image height in pixels.

    Returns:
        None for a box that is finite, has x2 > x1 and y2 > y1, and lies inside the image
        (touching the border is inside); else a few words in the XML's terms.
    """
    x1, y1, x2, y2 = box
    if not all(math.isfinite(value) for value in box):
        return "a coordinate is missing or not a finite number"
    if x2 <= x1:
        return "xmax is left of xmin"
    if y2 <= y1:
        return "ymax is above ymin"
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        return "not inside the image"
    return None


def clip_slight_overhang(box: Box, width: int, height: int) -> Box | None:
    """Clips a box that leaves the image by at most `SLIGHT_OVERHANG` pixels.

    Args:
        box: continuous XYXY_ABS.
        width: image width in pixels.
        height: image height in pixels.

    Returns:
        The clipped box, or None if the box leaves the image further, is not finite, or is empty
        afterwards.
    """
    x1, y1, x2, y2 = box
    overhang = max(-x1, -y1, x2 - width, y2 - height)
    if not overhang <= SLIGHT_OVERHANG:  # `not <=` so that nan lands here
        return None
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    return clipped if box_problem(clipped, width, height) is None else None


def read_image_size(path: Path) -> tuple[int, int]:
    """Reads an image's size from its header, as the image will look once loaded.

    Args:
        path: the image file.

    Returns:
        (width, height) in pixels after the EXIF rotation that Detectron2's reader applies.

    Raises:
        UserError: if the file is not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            rotated = image.getexif().get(EXIF_ORIENTATION, 1) >= 5
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: not readable as an image ({error})") from error
    return (height, width) if rotated else (width, height)


def _to_float(text: str) -> float:
    """Number in `text`, nan if there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _to_size(text: str | None) -> int:
    """Whole positive number in `text`, else 0 (which means: look at the image)."""
    value = _to_float(text or "")
    return int(value) if math.isfinite(value) and value > 0 else 0


def _to_flag(text: str | None) -> bool:
    """Reads 0/1, and the words some writers put there instead; an absent tag is False."""
    word = (text or "").strip().lower()
    if word in ("true", "yes"):
        return True
    value = _to_float(word)
    return math.isfinite(value) and value != 0

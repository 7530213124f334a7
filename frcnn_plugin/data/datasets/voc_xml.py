"""One VOC XML file, read with an eye on what a file from somewhere may hold.

Boxes leave this file as Detectron2's continuous XYXY_ABS, ``(xmin - 1, ymin - 1, xmax, ymax)``: the
XML holds inclusive pixel indices, counted from 1 as a rule (point 16 of docs/faithfulness.md).
"""

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NoReturn

from ...errors import UserError
from .arguments import shown
from .class_names import name_problem
from .geometry import Box, Size

_LARGEST = 8 * 2**20  # bytes; an XML with ten thousand objects has half of it
_TAGS = ("xmin", "ymin", "xmax", "ymax")
# Encodings of several bytes per character, which the parser does not know.
_MULTIBYTE = re.compile(
    rb"""<\?xml[^>]{1,80}?encoding\s*=\s*["'](gb2312|gbk|gb18030|big5|shift_jis|euc-jp|euc-kr)["']""",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class VOCObject:
    """One ``<object>`` of an annotation file."""

    number: int  # position in the file, counted from 1, as error messages give it
    name: str  # class name as written (surrounding blanks removed)
    box: Box  # continuous XYXY_ABS; nan where the file holds no number
    difficult: bool  # whether the ``<difficult>`` tag is set; an absent tag means False
    values: str  # the coordinates as written, with their tags, for messages


@dataclass(frozen=True, slots=True)
class VOCAnnotation:
    """One annotation file."""

    filename: str = ""  # what it calls its image; "" if nothing
    size: Size = (0, 0)  # of the image in pixels, 0 where the file does not say
    objects: tuple[VOCObject, ...] = ()  # in the order of the file
    nested: int = 0  # how many further objects are inside other elements, where VOC has none


def read_annotation(path: str | PathLike[str], counts_from: int = 1) -> VOCAnnotation:
    """Read one VOC XML file, asking only for what detection needs; boxes are not checked.

    ``pose``, ``truncated``, ``difficult``, ``size`` and ``filename`` may be absent, coordinates
    may be floats, tags may be in capitals and in a namespace, and the boxes of nested ``<part>``
    elements are left alone. The first pixel has the number ``counts_from``.

    Raises:
        UserError: if the file is not readable as XML or is another kind of XML, or an object has
            no proper class name.
    """
    path = Path(path)
    root = _parse(path)
    inside = 0
    for element in root.iter():
        tag = element.tag
        if "}" in tag or not tag.islower():
            element.tag = tag = tag.rpartition("}")[2].lower()
        inside += tag == "object"
    if root.tag != "annotation" and root.find("object") is None:
        raise UserError(
            f"{path}: its outermost element is <{shown(root.tag[:40])}>, VOC's is <annotation>. "
            f"Export it as PASCAL VOC, or move it out of the folder"
        )
    objects = []
    # findall/find with a bare tag look at direct children only: <part> has <name> and <bndbox> too.
    for number, element in enumerate(root.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        if problem := name_problem(name):
            raise UserError(f"{path}: the class name of object {number} {problem}")
        texts = {tag: (element.findtext(f"bndbox/{tag}") or "").strip() for tag in _TAGS}
        x1, y1, x2, y2 = map(_to_float, texts.values())
        box = (x1 - counts_from, y1 - counts_from, x2 + 1 - counts_from, y2 + 1 - counts_from)
        values = ", ".join(f"{tag} {shown(t[:20]) or 'missing'}" for tag, t in texts.items())
        difficult = _to_flag(element.findtext("difficult"))
        objects.append(VOCObject(number, name, box, difficult, values))
    return VOCAnnotation(
        filename=(root.findtext("filename") or "").strip(),
        size=(_to_size(root.findtext("size/width")), _to_size(root.findtext("size/height"))),
        objects=tuple(objects),
        nested=inside - len(objects),
    )


class _Builder(ET.TreeBuilder):
    def doctype(self, *_: object) -> NoReturn:
        # Its entities may blow up a small file, or name other files.
        raise ValueError("it has a <!DOCTYPE>, which no annotation needs: delete that line")


def _parse(path: Path) -> ET.Element:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST // 2**20} MiB")
        parser = ET.XMLParser(target=_Builder())
        # In one piece: in many, a long attribute is read again with each.
        if declared := _MULTIBYTE.match(data):
            encoding = declared[1].decode().lower()
            # Files in the larger forms of GB 2312 call themselves so, too.
            parser.feed(data.decode("gb18030" if encoding.startswith("gb") else encoding))
        else:
            parser.feed(data)
        root: ET.Element = parser.close()
        return root
    except (OSError, LookupError, ET.ParseError, ValueError) as error:
        raise UserError(f"{path}: not readable as XML ({error})") from error


def _to_float(text: str) -> float:
    """Return the number in ``text``, nan if there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _to_size(text: str | None) -> int:
    """Return the whole positive number in ``text``, else 0 (which means: look at the image)."""
    value = _to_float(text or "")
    return int(value) if 0 < value < 1e9 else 0


def _to_flag(text: str | None) -> bool:
    """Read 0/1, and the words some writers put there instead; an absent tag is False."""
    word = (text or "").strip().lower()
    value = _to_float(word)
    return word in ("true", "yes") or (math.isfinite(value) and value != 0)

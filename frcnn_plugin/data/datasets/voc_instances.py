"""VOC-format annotation files, read, checked and made into Detectron2's dataset dicts.

Coordinate frame: the XML holds 1-based inclusive pixel indices; everything that leaves this file
is Detectron2's continuous XYXY_ABS, ``(xmin - 1, ymin - 1, xmax, ymax)`` (point 16 of
docs/faithfulness.md).

Differs from Detectron2's own VOC loader where the original Faster R-CNN differs: difficult objects
do not take part in training (point 15 of docs/faithfulness.md). They stay in the dicts, because the
evaluation needs them: each object carries ``"difficult": 0/1``, and difficult ones are also marked
``"iscrowd": 1``, which Detectron2's mapper and its filter for empty images leave out by themselves.
"""

import logging
import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from tqdm import tqdm

from ...errors import UserError
from ..loading.image_reader import read_image_size
from .voc_image_set import (
    examples,
    find_image,
    has_annotation_files,
    raise_missing_images,
    warn_once,
)

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]

# A box that leaves the image by at most this many pixels comes from a writer that counts from 0
# or rounds; it is clipped. One that leaves it further is wrong.
SLIGHT_OVERHANG = 1.0

_TAGS = ("xmin", "ymin", "xmax", "ymax")
_PROGRESS_BAR_FROM = 2000  # images; fewer are read in about a second


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
    """One annotation file; ``width`` and ``height`` (pixels) are 0 where the file does not say."""

    filename: str
    width: int
    height: int
    objects: tuple[VOCObject, ...]


def read_annotation(path: Path) -> VOCAnnotation:
    """Read one VOC XML file, asking only for what detection needs.

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


@dataclass
class _Findings:
    """What was met while reading one data set."""

    dropped: list[str] = field(default_factory=list)
    clipped: list[str] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    first_unknown: str = ""


def load_voc_files(
    ids: Sequence[str],
    annotations: Path,
    images: Path,
    image_names: dict[str, str],
    classes: Sequence[str],
    *,
    use_difficult: bool = False,
    strict: bool = False,
    title: str = "",
    numbered: bool = False,
) -> list[dict[str, Any]]:
    """Load annotation files and what they annotate, wherever they lie.

    Args:
        ids: image ids; the annotation of one is ``<id>.xml``.
        annotations: folder of the XML files.
        images: folder of the images.
        image_names: file names by id, as ``index_images`` returns them.
        classes: for these and what is not listed here see ``load_voc_instances``, whose results
            and errors are the same.
        use_difficult: see there.
        strict: see there.
        title: data-set name for messages.
        numbered: see there.
    """
    has_annotations = has_annotation_files(annotations, ids, title)
    category_ids = {class_name: index for index, class_name in enumerate(classes)}

    findings = _Findings()
    missing_images = []
    dicts: list[dict[str, Any]] = []
    # tqdm's disable=None means: only on a terminal.
    hide_bar = None if len(ids) > _PROGRESS_BAR_FROM else True
    bar = tqdm(ids, desc=f"reading {title}", unit="image", disable=hide_bar)
    for number, image_id in enumerate(bar, start=1):
        xml = annotations / f"{image_id}.xml"
        annotation = read_annotation(xml) if has_annotations else VOCAnnotation("", 0, 0, ())
        image = find_image(images, image_id, annotation.filename, image_names)
        if image is None:
            missing_images.append(image_id)
            continue
        width, height = annotation.width, annotation.height
        if not width or not height or not _boxes_fit(annotation, width, height):
            # Also when a box looks wrong: the <size> may be what is wrong.
            width, height = read_image_size(image)
        objects = []
        for obj in annotation.objects:
            if obj.name not in category_ids:
                findings.unknown[obj.name] += 1
                findings.first_unknown = findings.first_unknown or (
                    f"{xml.name}: object {obj.number} has class '{obj.name}'"
                )
                continue
            box = _checked_box(obj, width, height, xml, strict, findings)
            if box is not None:
                objects.append(
                    {
                        "category_id": category_ids[obj.name],
                        "bbox": list(box),
                        "bbox_mode": BoxMode.XYXY_ABS,
                        "difficult": int(obj.difficult),
                        "iscrowd": int(obj.difficult and not use_difficult),
                    }
                )
        dicts.append(
            {
                "file_name": str(image),
                "image_id": number if numbered else image_id,
                "height": height,
                "width": width,
                "annotations": objects,
            }
        )
    raise_missing_images(missing_images, images, len(ids))
    _raise_unknown_classes(findings, classes, annotations)
    _warn_about_boxes(findings, title)
    _log_counts(dicts, title)
    return dicts


def _boxes_fit(annotation: VOCAnnotation, width: int, height: int) -> bool:
    return all(_box_problem(obj.box, width, height) is None for obj in annotation.objects)


def _checked_box(
    obj: VOCObject, width: int, height: int, xml: Path, strict: bool, findings: _Findings
) -> Box | None:
    """Return the object's box if it is good or nearly so, else None; raise if ``strict``."""
    problem = _box_problem(obj.box, width, height)
    if problem is None:
        return obj.box
    text = (
        f"{xml.name}: object {obj.number} '{obj.name}': {problem} "
        f"({obj.values}; image {width}x{height})"
    )
    if strict:
        raise UserError(f"{text}. Correct {xml}, or load without strict to drop such boxes")
    clipped = _clip_slight_overhang(obj.box, width, height)
    (findings.dropped if clipped is None else findings.clipped).append(text)
    return clipped


def _box_problem(box: Box, width: int, height: int) -> str | None:
    """Say in the XML's terms what is wrong with a continuous box; touching the border is right."""
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


def _clip_slight_overhang(box: Box, width: int, height: int) -> Box | None:
    """Clip a box that leaves the image by ``SLIGHT_OVERHANG`` at most; None if it is bad then."""
    x1, y1, x2, y2 = box
    overhang = max(-x1, -y1, x2 - width, y2 - height)
    if not overhang <= SLIGHT_OVERHANG:  # `not <=` so that nan lands here
        return None
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    return clipped if _box_problem(clipped, width, height) is None else None


def _raise_unknown_classes(findings: _Findings, classes: Sequence[str], root: Path) -> None:
    if not findings.unknown:
        return
    counts = ", ".join(f"{name} ({count}x)" for name, count in findings.unknown.most_common(10))
    raise UserError(
        f"{findings.first_unknown}; known classes: {', '.join(classes)} (names are "
        f"case-sensitive). Unknown in {root}: {counts}. Correct the files or the class list"
    )


def _warn_about_boxes(findings: _Findings, title: str) -> None:
    parts = []
    if findings.dropped:
        parts.append(f"dropped {len(findings.dropped)} bad boxes: {examples(findings.dropped)}")
    if findings.clipped:
        parts.append(
            f"clipped {len(findings.clipped)} boxes that leave the image by at most one pixel "
            f"(VOC counts from 1): {examples(findings.clipped)}"
        )
    if parts:
        warn_once(f"{title}: {'; '.join(parts)}")


def _log_counts(dicts: Sequence[dict[str, Any]], title: str) -> None:
    objects = [obj for item in dicts for obj in item["annotations"]]
    difficult = sum(obj["difficult"] for obj in objects)
    empty = sum(not item["annotations"] for item in dicts)
    logger.info(
        "%s: %d images (%d without objects), %d objects, %d of them difficult",
        title, len(dicts), empty, len(objects), difficult,
    )  # fmt: skip


def _to_float(text: str) -> float:
    """Return the number in ``text``, nan if there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _to_size(text: str | None) -> int:
    """Return the whole positive number in ``text``, else 0 (which means: look at the image)."""
    value = _to_float(text or "")
    return int(value) if math.isfinite(value) and value > 0 else 0


def _to_flag(text: str | None) -> bool:
    """Read 0/1, and the words some writers put there instead; an absent tag is False."""
    word = (text or "").strip().lower()
    if word in ("true", "yes"):
        return True
    value = _to_float(word)
    return math.isfinite(value) and value != 0

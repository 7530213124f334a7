"""VOC-format files, read, checked and made into Detectron2's dataset dicts.

Coordinate frame: the XML holds 1-based inclusive pixel indices; everything that leaves this file
is Detectron2's continuous XYXY_ABS, ``(xmin - 1, ymin - 1, xmax, ymax)`` (point 16 of
docs/faithfulness.md).

Differs from Detectron2's own VOC loader where the original Faster R-CNN differs: difficult objects
do not take part in training (point 15 of docs/faithfulness.md). They stay in the dicts, because the
evaluation needs them: each object carries ``"difficult": 0/1``, and difficult ones are also marked
``"iscrowd": 1``, which makes Detectron2's mapper and its filter for empty images leave them out.
"""

import logging
import math
import os
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from tqdm import tqdm

from ...errors import UserError
from ..loading.image_reader import IMAGE_SUFFIXES, image_header
from .arguments import examples, is_background, warn_once

logger = logging.getLogger(__name__)

Box = tuple[float, float, float, float]

# A box that leaves the image by at most this many pixels comes from a writer that counts from 0
# or rounds; it is clipped. One that leaves it further is wrong.
SLIGHT_OVERHANG = 1.0

_TAGS = ("xmin", "ymin", "xmax", "ymax")
_ID_AND_FLAG = re.compile(r"(.*\S)\s+(-1|0|1)")
_PROGRESS_BAR_FROM = 2000  # files; fewer are read in about a second


# ---- Which files --------------------------------------------------------------------------------


def read_image_ids(path: Path) -> list[str]:
    """Read the image ids of an ``ImageSets/Main`` file, in its order.

    Args:
        path: a text file with one id per line. Skipped are blank lines, the second column (-1, 0
            or 1) of VOC's per-class files, and the suffix of a file name in place of an id.

    Raises:
        UserError: if the file is missing or an id occurs twice.
    """
    if not path.is_file():
        raise UserError(f"missing {path}: one image id per line")
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    lines = [line for line in lines if line]
    flagged = [_ID_AND_FLAG.fullmatch(line) for line in lines]
    # Only if every line has a flag: an id may hold blanks ("frame 1").
    ids = [match.group(1) for match in flagged if match]
    if len(ids) < len(lines):
        ids = lines
    ids = [
        stem if suffix.lower() in (*IMAGE_SUFFIXES, ".xml") else stem + suffix
        for stem, suffix in map(os.path.splitext, ids)
    ]
    repeated = [image_id for image_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(
            f"{path}: {len(repeated)} image ids occur more than once "
            f"({examples(repeated)}); remove the repeated lines"
        )
    return ids


def index_images(folder: Path) -> dict[str, str]:
    """Map image ids to the names of files in and below a folder: quicker than a look per image.

    ``{"night/000005": "night/000005.jpg"}``. Hidden folders are skipped. Where an id has several
    images, the suffix that comes first in ``IMAGE_SUFFIXES`` counts.

    Raises:
        UserError: if the folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"missing {folder}: the folder of the images")
    found: dict[str, str] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(parent).relative_to(folder)
        for suffix in reversed(IMAGE_SUFFIXES):  # so that the first one wins
            files = [below / name for name in names if name.lower().endswith(suffix)]
            found.update({file.with_suffix("").as_posix(): file.as_posix() for file in files})
    return found


def xml_files(folder: Path) -> list[Path]:
    """List all XML files in and below ``folder``, sorted; not hidden ones, which systems leave."""
    return sorted(
        file
        for file in folder.rglob("*.xml")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


@lru_cache(maxsize=16)
def classes_in_folder(folder: Path) -> tuple[str, ...]:
    """Collect the class names of all XML files in and below a folder, sorted, once per process.

    Raises:
        UserError: there are none, a file is not readable, or background is among them.
    """
    files = xml_files(folder)
    names: set[str] = set()
    for file in _progress(files, f"class names in {folder}", "file"):
        names.update(obj.name for obj in read_annotation(file).objects)
    if not names:
        raise UserError(
            f"classes: auto found no object in the {len(files)} XML files in {folder}: is it the "
            f"right folder?"
        )
    background = next(filter(is_background, names), None)
    if background:
        raise UserError(
            f"classes: auto found objects of class '{background}' in {folder}: background is "
            f"not annotated; remove them, or list the classes"
        )
    return tuple(sorted(names))


def _progress(items: Sequence[Any], text: str, unit: str) -> Any:
    # tqdm's disable=None means: only on a terminal.
    hide = None if len(items) > _PROGRESS_BAR_FROM else True
    return tqdm(items, desc=text, unit=unit, disable=hide)


# ---- One annotation file ------------------------------------------------------------------------


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

    filename: str = ""
    width: int = 0
    height: int = 0
    objects: tuple[VOCObject, ...] = ()


def read_annotation(path: Path) -> VOCAnnotation:
    """Read one VOC XML file, asking only for what detection needs; boxes are not checked.

    ``pose``, ``truncated``, ``difficult``, ``size`` and ``filename`` may be absent, coordinates
    may be floats, and the boxes of nested ``<part>`` elements are left alone.

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
    value = _to_float(word)
    return word in ("true", "yes") or (math.isfinite(value) and value != 0)


# ---- A data set ---------------------------------------------------------------------------------


@dataclass
class _Findings:
    """What is wrong with the objects of a data set, in words; ``unknown`` with the class name."""

    dropped: list[str] = field(default_factory=list)
    clipped: list[str] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)


def load_voc_files(
    ids: Sequence[str],
    annotations: Path,
    images: Path,
    classes: Sequence[str],
    *,
    use_difficult: bool = False,
    strict: bool = False,
    title: str = "",
    numbered: bool = False,
) -> list[dict[str, Any]]:
    """Load the images ``ids`` and their annotations, ``<id>.xml``, from two folders.

    ``title`` names the data set in messages; for the rest see :func:`.voc.load_voc_instances`.
    """
    image_names = index_images(images)
    has_annotations = _has_annotation_files(annotations, ids, title)
    category_ids = {class_name: index for index, class_name in enumerate(classes)}
    findings = _Findings()
    missing_images = []
    dicts: list[dict[str, Any]] = []
    for number, image_id in enumerate(_progress(ids, f"reading {title}", "image"), start=1):
        xml = annotations / f"{image_id}.xml"
        annotation = read_annotation(xml) if has_annotations else VOCAnnotation()
        image = _find_image(images, image_id, annotation.filename, image_names)
        if image is None:
            missing_images.append(image_id)
            continue
        width, height = annotation.width, annotation.height
        fit = all(_box_problem(obj.box, width, height) is None for obj in annotation.objects)
        if not width or not height or not fit:
            # Also when a box looks wrong: the <size> may be what is wrong.
            width, height, _ = image_header(image)
        objects = []
        for obj in annotation.objects:
            if obj.name not in category_ids:
                place = f"{xml.name}: object {obj.number} has class '{obj.name}'"
                findings.unknown.append((obj.name, place))
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
    if missing_images:
        raise UserError(
            f"{len(missing_images)} of {len(ids)} images are not in {images} "
            f"({examples(missing_images)}); looked for {', '.join(IMAGE_SUFFIXES)} and the XML's "
            f"<filename>"
        )
    _report(findings, classes, annotations, title)
    every = [obj for item in dicts for obj in item["annotations"]]
    logger.info(
        "%s: %d images (%d without objects), %d objects, %d of them difficult",
        title, len(dicts), sum(not item["annotations"] for item in dicts),
        len(every), sum(obj["difficult"] for obj in every),
    )  # fmt: skip
    return dicts


def _has_annotation_files(folder: Path, ids: Sequence[str], title: str) -> bool:
    """Say whether all images have an XML file or, with a warning, none; raise if some have."""
    missing = [image_id for image_id in ids if not (folder / f"{image_id}.xml").is_file()]
    if not missing:
        return True
    if len(missing) < len(ids):
        raise UserError(
            f"{title}: {len(missing)} of {len(ids)} images have no annotation file: missing "
            f"{folder / missing[0]}.xml{' and others' if len(missing) > 1 else ''}. An image "
            f"without objects needs an XML without <object>"
        )
    # A test set whose answers are not public.
    warn_once(f"{title}: no image has an annotation file in {folder}; all count as empty")
    return False


def _find_image(
    folder: Path, image_id: str, filename: str, image_names: dict[str, str]
) -> Path | None:
    """Find the image that is named after its id or, failing that, in the XML's ``<filename>``."""
    if image_id in image_names:
        return folder / image_names[image_id]
    # Some writers put a whole path, of another system, into <filename>.
    for candidate in (filename, filename.replace("\\", "/").rpartition("/")[2]):
        if candidate and (folder / candidate).is_file():
            return folder / candidate
    return None


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


def _report(findings: _Findings, classes: Sequence[str], folder: Path, title: str) -> None:
    """Raise for unknown classes, warn once of bad boxes."""
    if findings.unknown:
        counts = Counter(name for name, _ in findings.unknown).most_common(10)
        raise UserError(
            f"{findings.unknown[0][1]}; known classes: {', '.join(classes)} (names are "
            f"case-sensitive). Unknown in {folder}: "
            f"{', '.join(f'{name} ({count}x)' for name, count in counts)}. Correct the files or "
            f"the class list"
        )
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

"""A VOC-format folder as Detectron2 dataset dicts.

Differs from Detectron2's own VOC loader where the original Faster R-CNN differs: difficult objects
do not take part in training (point 15 of docs/faithfulness.md). They stay in the dicts, because the
evaluation needs them: each object carries ``"difficult": 0/1``, and difficult ones are also marked
``"iscrowd": 1``, which Detectron2's mapper and its filter for empty images leave out by themselves.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode
from tqdm import tqdm

from ...errors import UserError
from .voc_annotation import (
    VOCAnnotation,
    VOCObject,
    box_problem,
    clip_slight_overhang,
    read_annotation,
    read_image_size,
)
from .voc_image_set import (
    examples,
    find_image,
    has_annotation_files,
    index_images,
    raise_missing_images,
    read_image_ids,
    warn_once,
)

logger = logging.getLogger(__name__)

# fmt: off
VOC_CLASSES: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)
# fmt: on

_PROGRESS_BAR_FROM = 2000  # images; fewer are read in about a second


@dataclass
class _Findings:
    """What was met while reading one data set."""

    dropped: list[str] = field(default_factory=list)
    clipped: list[str] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    first_unknown: str = ""


def load_voc_instances(
    dirname: str | os.PathLike[str],
    split: str,
    classes: Sequence[str] = VOC_CLASSES,
    *,
    use_difficult: bool = False,
    strict: bool = False,
    name: str | None = None,
    numbered: bool = False,
) -> list[dict[str, Any]]:
    """Loads one image set of a VOC-format folder.

    Args:
        dirname: folder that holds ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        split: name of the file in ``ImageSets/Main``, without ``.txt``.
        classes: class names, background not counted; position = ``category_id``.
        use_difficult: let difficult objects take part in training (``iscrowd`` 0).
        strict: raise on the first bad box. Otherwise bad boxes are dropped, boxes that leave the
            image by at most one pixel are clipped, and one warning counts both.
        name: data-set name for messages; the folder and split if None.
        numbered: ``image_id`` is the position in the split file, from 1, as COCO's metric needs.

    Returns:
        One dict per image, in the order of the split file, in Detectron2's format: ``file_name``,
        ``image_id`` (str), ``height``, ``width``, ``annotations`` with ``bbox`` (continuous
        XYXY_ABS), ``bbox_mode``, ``category_id``, ``difficult`` and ``iscrowd``. A split of which
        no image has an annotation file (a test set whose answers are not public) gives empty
        ``annotations`` and a warning.

    Raises:
        UserError: for missing files, unreadable files, unknown class names, and, if `strict`, bad
            boxes. An image set in which only some images lack the XML file is an error too: write
            an XML without ``<object>`` for an image without objects.
    """
    root = Path(dirname)
    return load_voc_files(
        read_image_ids(root / "ImageSets" / "Main" / f"{split}.txt"),
        root / "Annotations",
        root / "JPEGImages",
        index_images(root / "JPEGImages"),
        classes,
        use_difficult=use_difficult,
        strict=strict,
        title=name or f"{root.name}/{split}",
        numbered=numbered,
    )


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
    """Loads annotation files and what they annotate, wherever they lie.

    Args:
        ids: image ids; the annotation of one is ``<id>.xml``.
        annotations: folder of the XML files.
        images: folder of the images.
        image_names: file names by id, as `index_images` returns them.
        classes: see `load_voc_instances`; so are the others, and the result.
        use_difficult: see there.
        strict: see there.
        title: data-set name for messages.
        numbered: see there.

    Raises:
        UserError: see there.
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
    return all(box_problem(obj.box, width, height) is None for obj in annotation.objects)


def _checked_box(
    obj: VOCObject, width: int, height: int, xml: Path, strict: bool, findings: _Findings
) -> tuple[float, float, float, float] | None:
    """The object's box if it is good or nearly so, else None; raises if `strict`."""
    problem = box_problem(obj.box, width, height)
    if problem is None:
        return obj.box
    text = (
        f"{xml.name}: object {obj.number} '{obj.name}': {problem} "
        f"({obj.values}; image {width}x{height})"
    )
    if strict:
        raise UserError(f"{text}. Correct {xml}, or load without strict to drop such boxes")
    clipped = clip_slight_overhang(obj.box, width, height)
    (findings.dropped if clipped is None else findings.clipped).append(text)
    return clipped


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

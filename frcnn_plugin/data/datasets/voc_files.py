"""VOC-format data sets: their files checked and made into Detectron2's dataset dicts.

Differs from Detectron2's own VOC loader where the original Faster R-CNN differs: difficult objects
do not take part in training (point 15 of docs/faithfulness.md). They stay in the dicts, because the
evaluation needs them: each object carries ``"difficult": 0/1``, and difficult ones are also marked
``"iscrowd": 1``, which makes Detectron2's mapper and its filter for empty images leave them out.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from ...errors import UserError
from ..loading.image_reader import IMAGE_SUFFIXES
from .arguments import examples, progress, warn_once
from .class_names import AS_WRITTEN, ClassMap
from .geometry import Box, BoxFindings, SizeFindings
from .voc_folders import VOCFolders, files_below
from .voc_xml import VOCAnnotation, VOCObject, read_annotation

logger = logging.getLogger(__name__)


@lru_cache(maxsize=16)
def classes_in_folder(folder: Path) -> tuple[str, ...]:
    """Collect the class names of all XML files in and below a folder, sorted, once per process.

    Raises:
        UserError: there are none, or a file is not readable.
    """
    files = files_below(folder, (".xml",))
    names: set[str] = set()
    for file in progress(files, f"class names in {folder}", "file"):
        names.update(obj.name for obj in read_annotation(folder / file).objects)
    if not names:
        raise UserError(
            f"classes: auto found no object in the {len(files)} XML files in {folder}: is it the "
            f"right folder?"
        )
    return tuple(sorted(names))


@dataclass
class _Findings:
    """What is odd in the files of a data set, in words."""

    title: str
    folders: VOCFolders
    boxes: BoxFindings = field(default_factory=BoxFindings)
    sizes: SizeFindings = field(default_factory=SizeFindings)
    unknown: list[tuple[str, str]] = field(default_factory=list)  # class name, place
    missing_images: list[str] = field(default_factory=list)
    nested: list[str] = field(default_factory=list)
    zeros: int = 0  # boxes with an xmin or ymin of 0

    def report(self, dicts: Sequence[dict[str, Any]], classes: Sequence[str]) -> None:
        """Raise for what makes the set useless, warn once of the rest."""
        folder, images = self.folders.annotations, self.folders.images
        if len(self.missing_images) == len(dicts) > 0:
            raise UserError(
                f"{self.title}: none of its {len(dicts)} images is in {images} "
                f"({examples(self.missing_images)}); looked for {', '.join(IMAGE_SUFFIXES)} and "
                f"the XML's <filename>"
            )
        if self.unknown:
            counts = Counter(name for name, _ in self.unknown).most_common(10)
            raise UserError(
                f"{self.unknown[0][1]}; known classes: {', '.join(classes)} (names are "
                f"case-sensitive). Unknown in {folder}: "
                f"{', '.join(f'{name} ({count}x)' for name, count in counts)}. Correct the files "
                f"or the class list, or give `ignore` or `rename`"
            )
        parts = [self.boxes.report(f"{self.title}, {folder}"), self.sizes.report(f"{self.title}")]
        if self.zeros:
            parts.append(
                f"{self.zeros:,} boxes have an xmin or ymin of 0, but VOC counts from 1: if these "
                f"files count from 0, give `counts_from: 0`"
            )
        if self.nested:
            parts.append(
                f"{len(self.nested):,} XML files have objects inside other elements, which are not "
                f"read: {examples(self.nested)}"
            )
        for part in filter(None, parts):
            warn_once(f"{self.title}: {part}")


def load_voc_files(
    ids: Sequence[str],
    folders: VOCFolders,
    classes: Sequence[str],
    *,
    class_map: ClassMap = AS_WRITTEN,
    counts_from: int = 1,
    use_difficult: bool = False,
    strict: bool = False,
    title: str = "",
    numbered: bool = False,
) -> list[dict[str, Any]]:
    """Load the images ``ids`` and their annotations from two folders.

    ``title`` names the data set in messages; for the rest see :func:`.voc.load_voc_instances`.
    """
    has_annotations = _has_annotation_files(folders, ids, title)
    numbers = {name: index for index, name in enumerate(classes)}
    findings = _Findings(title, folders)
    ignored: Counter[str] = Counter()
    renamed = dict(class_map.rename)
    shift = 1.0 - counts_from
    dicts: list[dict[str, Any]] = []
    for number, image_id in enumerate(progress(ids, f"reading {title}", "image"), start=1):
        xml = folders.xml(image_id) or Path(f"{image_id}.xml")
        annotation = read_annotation(xml) if has_annotations else VOCAnnotation()
        if annotation.nested:
            findings.nested.append(xml.name)
        image = folders.image(image_id, annotation.filename)
        if image is None:
            findings.missing_images.append(image_id)
            image = f"{folders.images}/{image_id}.jpg"
        objects: list[tuple[VOCObject, int, Box]] = []
        for obj in annotation.objects:
            class_name = renamed.get(obj.name, obj.name)
            if obj.name in class_map.ignore:
                ignored[obj.name] += 1
            elif class_name not in numbers:
                place = f"{xml.name}: object {obj.number} has class '{class_name}'"
                findings.unknown.append((class_name, place))
            else:
                x1, y1, x2, y2 = obj.box
                box = (x1 + shift, y1 + shift, x2 + shift, y2 + shift)
                findings.zeros += counts_from == 1 and min(box) == -1.0
                objects.append((obj, numbers[class_name], box))
        size = findings.sizes.size_of(
            image, (annotation.width, annotation.height), [box for _, _, box in objects]
        )
        records = []
        for obj, category, box in objects:
            describe = _Description(xml, obj, size, strict)
            fitted = findings.boxes.fit(box, *size, describe)
            if fitted is not None:
                records.append(
                    {
                        "category_id": category,
                        "bbox": list(fitted),
                        "bbox_mode": BoxMode.XYXY_ABS,
                        "difficult": int(obj.difficult),
                        "iscrowd": int(obj.difficult and not use_difficult),
                    }
                )
        dicts.append(
            {
                "file_name": image,
                "image_id": number if numbered else image_id,
                "height": size[1],
                "width": size[0],
                "annotations": records,
                **findings.sizes.mark(image),
            }
        )
    findings.report(dicts, classes)
    every = [obj for item in dicts for obj in item["annotations"]]
    left_out = ", ".join(f"{count} {name}" for name, count in ignored.items())
    logger.info(
        "%s: %d images (%d without objects), %d objects, %d of them difficult%s",
        title, len(dicts), sum(not item["annotations"] for item in dicts),
        len(every), sum(obj["difficult"] for obj in every),
        f"; left out: {left_out}" if left_out else "",
    )  # fmt: skip
    return dicts


@dataclass(frozen=True)
class _Description:
    """Puts a problem of a box into words; raises if the set is loaded ``strict``."""

    xml: Path
    obj: VOCObject
    size: tuple[int, int]
    strict: bool

    def __call__(self, problem: str) -> str:
        text = (
            f"{self.xml.name}: object {self.obj.number} '{self.obj.name}': {problem} "
            f"({self.obj.values()}; image {self.size[0]}x{self.size[1]})"
        )
        if self.strict:
            raise UserError(
                f"{text}. Correct {self.xml}, or load without strict to clip or drop such boxes"
            )
        return text


def _has_annotation_files(folders: VOCFolders, ids: Sequence[str], title: str) -> bool:
    """Say whether all images have an XML file or, with a warning, none; raise if some have."""
    missing = [image_id for image_id in ids if folders.xml(image_id) is None]
    if not missing:
        return True
    if len(missing) < len(ids):
        raise UserError(
            f"{title}: {len(missing)} of {len(ids)} images have no annotation file: missing "
            f"{folders.annotations / missing[0]}.xml{' and others' if len(missing) > 1 else ''}. "
            f"An image without objects needs an XML without <object>"
        )
    # A test set whose answers are not public.
    warn_once(
        f"{title}: no image has an annotation file in {folders.annotations}; all count as empty"
    )
    return False

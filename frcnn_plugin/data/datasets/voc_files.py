"""The files of VOC-format data sets: found, checked, and made into Detectron2's dataset dicts.

Differs from Detectron2's own VOC loader where the original Faster R-CNN differs: difficult objects
do not take part in training (point 15 of docs/faithfulness.md). They stay in the dicts, because the
evaluation needs them: each object carries ``"difficult": 0/1``, and difficult ones are also marked
``"iscrowd": 1``, which makes Detectron2's mapper and its filter for empty images leave them out.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from ...errors import UserError
from ..loading.image_reader import IMAGE_SUFFIXES
from .arguments import examples, progress, warn_once
from .class_names import AS_WRITTEN, ClassMap
from .geometry import BoxFindings, SizeFindings
from .voc_xml import VOCAnnotation, VOCObject, read_annotation

logger = logging.getLogger(__name__)

_ID_AND_FLAG = re.compile(r"(.*\S)\s+(-1|0|1)")
_PATH = re.compile(r"(\.{0,2}|[A-Za-z]:)[/\\]")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


# ---- which files there are, and what belongs together -------------------------------------------


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """List files in and below a folder, by their names from there, sorted folder by folder.

    Hidden ones, which systems leave, are skipped. Linked folders are followed, but none is read
    twice. Nothing is found in a folder that does not exist. Files may have the ``suffixes``, which
    are in lower case, in any.
    """
    found: list[str] = []
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        visible = [name for name in folders if not name.startswith(".")]
        # Links last: of what is there twice, the real folder counts.
        folders[:] = sorted(visible, key=lambda name: (os.path.islink(f"{parent}/{name}"), name))
        below = os.path.relpath(parent, folder).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        found += [
            prefix + name
            for name in names
            if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return sorted(found, key=lambda name: name.split("/"))


def _tails(path: str) -> Iterator[str]:
    """Yield a path of any system, then the same without its first folder, and so on."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    for start in range(len(parts)):
        yield "/".join(parts[start:])


class VOCFolders:
    """The folder of the XML files and that of the images of a data set.

    An image's id is the name of its XML file from the folder on, without ``.xml``. The ``ids`` are
    those of all XML files, in their order.
    """

    def __init__(self, annotations: Path, images: Path) -> None:
        """Look which files there are; neither folder need exist."""
        self.annotations, self.images = annotations, images
        self._xml = {name[: -len(".xml")]: name for name in files_below(annotations, (".xml",))}
        self.ids = list(self._xml)

    def xml(self, image_id: str) -> Path | None:
        """Return the XML file of an image, None if there is none."""
        return self.annotations / self._xml[image_id] if image_id in self._xml else None

    @cached_property
    def _images(self) -> Mapping[str, list[str]]:
        """The images by their name without suffix."""
        found: dict[str, list[str]] = {}
        for name in files_below(self.images, IMAGE_SUFFIXES):
            found.setdefault(os.path.splitext(name)[0], []).append(name)
        return found

    @cached_property
    def _images_by_any_name(self) -> Mapping[str, list[str]]:
        """The images by every end of their path, with and without suffix, in lower case."""
        found: dict[str, list[str]] = {}
        for name in itertools.chain(*self._images.values()):
            for tail in _tails(name.lower()):
                found.setdefault(tail, []).append(name)
                found.setdefault(os.path.splitext(tail)[0], []).append(name)
        return found

    def _images_of(self, image_id: str) -> list[str]:
        """List the images that are named as an id, which may include the suffix."""
        same = self._images.get(os.path.splitext(image_id)[0], ())
        return self._images.get(image_id) or [name for name in same if name == image_id]

    def image(self, image_id: str, filename: str = "") -> str | None:
        """Find the image that is named as its id or, failing that, as its XML file says.

        That ``filename`` may be a path of another system, lack the suffix, or differ in capitals.

        Returns:
            The path; None if there is no image, or several, between which nothing decides.
        """
        name = self._choose(self._images_of(image_id), filename)
        if name is None and filename:
            folder = os.path.dirname(image_id)
            for tail in _tails(filename):
                # Of equal names, the one in the folder of the XML file.
                for key in (f"{folder}/{tail}", tail):
                    names = self._images_by_any_name.get(key.lower(), ())
                    name = name or self._choose(names, filename)
        return None if name is None else f"{self.images}/{name}"

    @staticmethod
    def _choose(names: Sequence[str], filename: str) -> str | None:
        if len(names) < 2:
            return names[0] if names else None
        # One name with several suffixes: what the XML says, else the first of the list.
        if len({os.path.splitext(name)[0].lower() for name in names}) > 1:
            return None
        suffix = os.path.splitext(filename)[1].lower()
        order = [suffix, *IMAGE_SUFFIXES]
        return min(names, key=lambda name: order.index(os.path.splitext(name)[1].lower()))

    def images_without_xml(self) -> list[str]:
        """List the images that no XML file is for."""
        lacking = set(itertools.chain(*self._images.values()))
        for image_id in self._xml:
            filename = ""
            if len(self._images_of(image_id)) != 1:
                filename = read_annotation(self.annotations / self._xml[image_id]).filename
            image = self.image(image_id, filename) or ""
            lacking.discard(image.removeprefix(f"{self.images}/"))
        return sorted(lacking)

    def read_list(self, path: Path) -> list[str]:
        """Read the image ids of a list, in its order: a file of ``ImageSets/Main``, for example.

        It has one image per line. Skipped are blank lines, the second column (-1, 0 or 1) of VOC's
        per-class files, and what goes beyond an id: the suffix, and the folders of a path. An image
        that is listed twice is taken once, with a warning.

        Raises:
            UserError: if the file is missing or no text.
        """
        try:
            data = path.read_bytes()
            text = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not readable as text in UTF-8 ({error})") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        flagged = [_ID_AND_FLAG.fullmatch(line) for line in lines]
        # Only if every line has a flag: an id may hold blanks ("frame 1").
        ids = [match.group(1) for match in flagged if match]
        counts = Counter(map(self._id_of, ids if len(ids) == len(lines) else lines))
        repeated = [image_id for image_id, count in counts.items() if count > 1]
        if repeated:
            warn_once(
                f"{path}: {len(repeated)} image ids occur more than once ({examples(repeated)}); "
                f"each is taken once"
            )
        return list(counts)

    def _id_of(self, line: str) -> str:
        """Return the id that a line of a list names, by whatever it is called there."""
        if line in self._xml:
            return line
        stem, suffix = os.path.splitext(line)
        if suffix.lower() not in (*IMAGE_SUFFIXES, ".xml"):
            stem = line
        known: Mapping[str, object] = self._xml or self._images
        if stem in known or not _PATH.match(stem):
            return stem
        # Of the machine where the list was made.
        return next((tail for tail in _tails(stem) if tail in known), stem)


def inside(root: Path, *names: str) -> Path:
    """Return a path inside ``root``, which need not exist; its folders may be in other capitals."""
    for name in names:
        exact = root / name
        others = () if exact.exists() else sorted(root.glob("*"))
        root = next((path for path in others if path.name.lower() == name.lower()), exact)
    return root


def split_file(root: Path, split: str) -> Path:
    """Return the list of a split of the set in ``root``, which need not exist."""
    return inside(root, "ImageSets", "Main") / f"{split}.txt"


def files_in_layout(root: Path, split: str) -> tuple[list[str], VOCFolders]:
    """Return the image ids and folders of a split of the set in ``root``, laid out as VOC's.

    Raises:
        UserError: there is no list of the split.
    """
    folders = VOCFolders(inside(root, "Annotations"), inside(root, "JPEGImages"))
    return folders.read_list(split_file(root, split)), folders


def divide(ids: Sequence[str], shares: Mapping[str, float]) -> dict[str, set[str]]:
    """Divide ``ids`` by the order of their SHA-256, which depends on nothing but themselves.

    Args:
        ids: in any order.
        shares: of the parts, by their names; rounded to whole ids.
    """
    ordered = sorted(ids, key=lambda image_id: hashlib.sha256(image_id.encode()).hexdigest())
    ends = [round(share * len(ids)) for share in itertools.accumulate(shares.values())]
    return {
        part: set(ordered[start:end])
        for part, start, end in zip(shares, [0, *ends], ends, strict=False)
    }


# ---- their content ------------------------------------------------------------------------------


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
            f"classes: auto found no object in the {len(files)} XML files in {folder}: name the "
            f"folder of VOC's XML files. Other formats have to be converted to VOC's or COCO's"
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

    def report(self, number: int, classes: Sequence[str], strict: bool) -> None:
        """Raise for what makes the set of ``number`` images useless, warn once of the rest."""
        folder, images = self.folders.annotations, self.folders.images
        if len(self.missing_images) == number > 0:
            raise UserError(
                f"{self.title}: none of its {number} images is in {images} "
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
        if strict and self.boxes.found:
            first = next(iter(self.boxes.found.values()))[0]
            raise UserError(
                f"{first}. Correct the file in {folder}, or load without strict to clip or drop "
                f"such boxes"
            )
        parts = [self.boxes.report(f"{self.title}, {folder}"), self.sizes.report(self.title)]
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
    annotated: bool = True,
) -> list[dict[str, Any]]:
    """Load the images ``ids`` and their annotations from two folders.

    ``title`` names the data set in messages; ``numbered`` makes ``image_id`` the position in
    ``ids``, from 1, as COCO's metric needs; without ``annotated`` no XML file is read. For the rest
    see :func:`.voc.load_voc_instances`.
    """
    if annotated:
        _check_annotation_files(folders, ids, title)
    numbers = {name: index for index, name in enumerate(classes)}
    renamed = dict(class_map.rename)
    findings = _Findings(title, folders)
    ignored: Counter[str] = Counter()
    dicts: list[dict[str, Any]] = []
    for number, image_id in enumerate(progress(ids, f"reading {title}", "image"), start=1):
        xml = folders.xml(image_id) if annotated else None
        annotation = read_annotation(xml, counts_from) if xml else VOCAnnotation()
        if annotation.nested:
            findings.nested.append(f"{image_id}.xml")
        image = folders.image(image_id, annotation.filename)
        if image is None:
            findings.missing_images.append(image_id)
            image = f"{folders.images}/{image_id}.jpg"
        objects: list[tuple[VOCObject, str, int]] = []
        for obj in annotation.objects:
            class_name = renamed.get(obj.name, obj.name)
            place = f"{image_id}.xml: object {obj.number}"
            if obj.name in class_map.ignore:
                ignored[obj.name] += 1
            elif class_name not in numbers:
                findings.unknown.append((class_name, f"{place} has class '{class_name}'"))
            else:
                findings.zeros += counts_from == 1 and min(obj.box) == -1.0
                objects.append((obj, f"{place} '{obj.name}'", numbers[class_name]))
        size = findings.sizes.size_of(image, annotation.size, [obj.box for obj, *_ in objects])
        records = []
        for obj, place, category in objects:
            given = f"{obj.values}; image {size[0]}x{size[1]}"
            fitted = findings.boxes.fit(obj.box, size, place, given)
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
    findings.report(len(ids), classes, strict)
    every = [obj for item in dicts for obj in item["annotations"]]
    left_out = ", ".join(f"{count} {name}" for name, count in ignored.items())
    logger.info(
        "%s: %d images (%d without objects), %d objects, %d of them difficult%s",
        title, len(dicts), sum(not item["annotations"] for item in dicts),
        len(every), sum(obj["difficult"] for obj in every),
        f"; left out: {left_out}" if left_out else "",
    )  # fmt: skip
    return dicts


def _check_annotation_files(folders: VOCFolders, ids: Sequence[str], title: str) -> None:
    """Raise if some images have no XML file; warn if none has."""
    missing = [image_id for image_id in ids if folders.xml(image_id) is None]
    if 0 < len(missing) < len(ids):
        raise UserError(
            f"{title}: {len(missing)} of {len(ids)} images have no annotation file: missing "
            f"{folders.annotations / missing[0]}.xml{' and others' if len(missing) > 1 else ''}. "
            f"An image without objects needs an XML without <object>"
        )
    if missing:  # a test set whose answers are not public
        warn_once(
            f"{title}: no image has an annotation file in {folders.annotations}; all count as empty"
        )

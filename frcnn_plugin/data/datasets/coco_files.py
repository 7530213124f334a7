"""Annotation files in COCO's format: one reader for training, for the checks and for both metrics.

Differs from Detectron2's own loader, which takes all that it reads for granted:

- an object stands or falls by its box; a ``segmentation`` that cannot be used is left out, and the
  object stays;
- boxes are clipped to their image as those of XML files are;
- objects with ``ignore`` 1 count as crowds, instead of ending the run;
- what other tools write is understood: ids that are numbers in one list and texts in the other, and
  the backslashes of Windows in file names;
- COCO's metric sees annotations numbered from 1, as it takes the number 0 for "not matched", and
  with the ``iscrowd`` and ``area`` that the file lacks: 0, and width times height of the box.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask
from detectron2.utils.logger import log_first_n

from ...errors import UserError
from .arguments import examples, shown, warn_once
from .class_names import AS_WRITTEN, ClassMap, is_background, name_problem
from .geometry import CLIPPED, DROPPED, Box, BoxFindings, Size, SizeFindings

_LISTS = ("images", "categories", "annotations")
_LARGEST = 1e10  # square pixels; COCO's metric leaves out larger objects

_Id = int | str


def read_coco(
    name: str,
    json_file: str,
    image_root: str,
    classes: Sequence[str] = (),
    class_map: ClassMap = AS_WRITTEN,
    *,
    for_detectron2: bool = False,
) -> dict[str, Any]:
    """Read an annotation file and check all that training and COCO's metric take for granted.

    Odd boxes, sizes and unused categories are counted in warnings. The arguments are those of
    :func:`register_coco`, checked. With ``for_detectron2`` its own loader will read the file, and a
    warning counts what that loses.

    Returns:
        ``images``; ``categories``, those that are used, in the order of their ids; and, unless the
        file has none, ``annotations`` as COCO's metric needs them.

    Raises:
        UserError: for the first thing that is wrong.
    """
    content = _parse(json_file)
    if not for_detectron2:
        _understand(content, image_root)
    files = _check_images(json_file, content["images"], image_root)
    names = _category_names(json_file, content["categories"])
    annotations = content["annotations"] or ()
    _check_annotations(json_file, annotations, files, names)
    if for_detectron2:
        _warn_of_losses(name, json_file, annotations)
    objects = Counter(entry["category_id"] for entry in annotations)
    class_of = _classes_of(name, json_file, names, objects, classes, class_map)
    # Each class under the lowest id of those that go by its name.
    id_of: dict[str, _Id] = {}
    used_as = {number: id_of.setdefault(text, number) for number, text in class_of.items()}
    boxes = defaultdict(list)
    for entry in annotations:
        boxes[entry["image_id"]].append(_corners(entry["bbox"]))
    findings = SizeFindings()
    sizes = {
        # Nobody can correct what Detectron2 reads.
        entry["id"]: findings.size_of(
            files[entry["id"]],
            (int(entry.get("width") or 0), int(entry.get("height") or 0)),
            None if for_detectron2 else boxes[entry["id"]],
        )
        for entry in content["images"]
    }
    if text := findings.report(name):
        warn_once(f"{name}: {text}")
    result: dict[str, Any] = {
        "info": {},
        "images": [
            {
                **entry,
                **dict(zip(("width", "height"), sizes[entry["id"]], strict=True)),
                **findings.mark(files[entry["id"]]),
            }
            for entry in content["images"]
        ],
        "categories": [{"id": number, "name": text} for text, number in id_of.items()],
    }
    if content["annotations"] is not None:
        result["annotations"] = _for_metric(name, json_file, annotations, sizes, names, used_as)
    return result


def _parse(json_file: str) -> dict[str, Any]:
    """Return the three lists of a file; ``annotations`` is None if it has none."""
    try:
        with open(json_file, "rb") as file:
            content = json.loads(file.read())  # of bytes: finds out the encoding
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        why = str(error) or type(error).__name__
        raise UserError(f"{json_file}: not readable as JSON ({why})") from error
    lists = content if isinstance(content, dict) else {}
    # A test set whose answers are not public has no annotations.
    missing = [
        key
        for key in _LISTS
        if not isinstance(lists.get(key), list) and (key in lists or key != "annotations")
    ]
    if missing:
        raise UserError(
            f"{json_file}: not COCO's format for detection: it needs the lists "
            f"{', '.join(_LISTS)}; missing {', '.join(missing)}. Export or convert it to COCO's"
        )
    return {key: lists.get(key) for key in _LISTS}


def _understand(content: Mapping[str, Any], image_root: str) -> None:
    """Change in place, before the checks, what has one meaning only though it is not as it should.

    An id ``"7"`` is 7 if the ids that it refers to are numbers, and the other way round. A file
    name has slashes for backslashes if there is such a file, and none with backslashes.
    """
    for what, key in (("images", "image_id"), ("categories", "category_id")):
        ids = [entry.get("id") for entry in content[what] if isinstance(entry, dict)]
        known = {str(value): value for value in ids if _is_id(value)}
        right = set(known.values())
        for entry in content["annotations"] or ():
            value = entry.get(key) if isinstance(entry, dict) else None
            if _is_id(value) and value not in right:
                entry[key] = known.get(str(value), value)
    for entry in content["images"]:
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if isinstance(name, str) and "\\" in name and "\0" not in name:
            here = name.replace("\\", "/")
            given, found = (os.path.isfile(os.path.join(image_root, n)) for n in (name, here))
            entry["file_name"] = here if found and not given else name


def _check_entries(json_file: str, what: str, entries: Sequence[Any], *keys: str) -> None:
    """Check that entries are mappings with these keys, and their ids distinct and of one kind."""
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(
                f"{json_file}: {what} number {position + 1} must be a mapping; got {entry!r:.120}"
            )
        missing = [key for key in ("id", *keys) if key not in entry]
        if missing:
            raise UserError(f"{json_file}: {what} has no {', '.join(missing)}: {entry!r:.120}")
        if not _is_id(entry["id"]):
            raise UserError(
                f"{json_file}: id of {what} must be a whole number or a text; got {entry!r:.120}"
            )
    ids = [entry["id"] for entry in entries]
    if len({type(value) for value in ids}) > 1:
        texts = [repr(value) for value in ids if isinstance(value, str)]
        raise UserError(
            f"{json_file}: ids must be all numbers or all texts; {len(texts):,} of {len(ids):,} "
            f"are texts in the list of {what.split()[-1]} entries ({examples(texts)})"
        )
    _check_distinct(json_file, what, "id", ids)


def _check_distinct(json_file: str, what: str, key: str, values: Sequence[Any]) -> None:
    repeated = [str(value) for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise UserError(
            f"{json_file}: {what.split()[-1]} {key} {examples(repeated)} occurs more than once; it "
            f"must be unique"
        )


def _check_images(json_file: str, images: Sequence[Any], image_root: str) -> dict[_Id, str]:
    """Return the files by id."""
    _check_entries(json_file, "an image", images, "file_name")
    for entry in images:
        sizes = (entry.get("width"), entry.get("height"))
        if not all(n is None or (_is_number(n) and n >= 0 and n == int(n)) for n in sizes):
            raise UserError(
                f"{json_file}: width and height of image {entry['id']} must be whole numbers of "
                f"pixels; got {sizes[0]!r:.40} and {sizes[1]!r:.40}"
            )
        if not isinstance(entry["file_name"], str) or "\0" in entry["file_name"]:
            raise UserError(f"{json_file}: file_name must be the name of a file: {entry!r:.120}")
    files = {entry["id"]: os.path.join(image_root, entry["file_name"]) for entry in images}
    if files and not any(map(os.path.isfile, files.values())):
        raise UserError(
            f"{json_file}: none of its {len(files)} images is in {image_root} "
            f"({examples([entry['file_name'] for entry in images])}); `images` must be the folder "
            f"that every file_name starts from"
        )
    return files


def _category_names(json_file: str, categories: Sequence[Any]) -> dict[_Id, str]:
    """Return the names in the file by id, in the order of the ids."""
    _check_entries(json_file, "a category", categories, "name")
    if not categories:
        raise UserError(f"{json_file}: categories is empty: there are no classes to detect")
    names = {entry["id"]: str(entry["name"]) for entry in categories}
    for entry in categories:
        is_name = isinstance(entry["name"], str | int | float)
        problem = name_problem(names[entry["id"]]) if is_name else "is not a text"
        if problem:
            raise UserError(f"{json_file}: the name of category {entry['id']} {problem}")
    _check_distinct(json_file, "a category", "name", list(names.values()))
    return dict(sorted(names.items()))


def _classes_of(
    name: str,
    json_file: str,
    names: Mapping[_Id, str],
    objects: Mapping[_Id, int],
    classes: Sequence[str],
    class_map: ClassMap,
) -> dict[_Id, str]:
    """Return the class of each category that is used, in the order of the ids."""
    if unknown := class_map.unknown(names.values()):
        raise UserError(
            f"{json_file}: no category is called {examples(unknown)}, which `ignore` or `rename` "
            f"of {name} names; there are {', '.join(map(shown, names.values()))}"
        )
    used = class_map.used(names.values())
    class_of = {number: used[text] for number, text in names.items() if text in used}
    if classes:
        # Others may be there without objects: the name of a group that some exports add.
        class_of = {
            number: text for number, text in class_of.items() if text in classes or objects[number]
        }
    found = list(dict.fromkeys(class_of.values()))
    background = next((n for n, text in class_of.items() if is_background(text)), None)
    if background is not None:
        raise UserError(
            f"{json_file}: category {background} is '{names[background]}': background is not "
            f"counted as a class. Leave it out with ignore: ['{names[background]}'], or remove it "
            f"and its annotations. MODEL.ROI_HEADS.NUM_CLASSES then is {len(found) - 1}"
        )
    if not found:
        raise UserError(f"{json_file}: `ignore` of {name} leaves no category to detect")
    if classes and list(classes) != found:
        others = [text for text in found if text not in classes]
        hint = f", or leave the others out with ignore: {shown(str(others))}" if others else ""
        raise UserError(
            f"{json_file}: its categories are {', '.join(map(shown, found))} (in the order of "
            f"their ids), but DATASETS.REGISTER says classes: {', '.join(classes)}. Leave classes "
            f"out to take those of the file{hint}"
        )
    with_objects = {class_of.get(number) for number in objects}
    unused = [text for text in found if text not in with_objects]
    if objects and unused:
        warn_once(
            f"{name}: no object of {examples(unused)} in {json_file}, but they count as classes "
            f"({len(found)} in all); some exports add a group's name as a category: leave it out "
            f"with ignore: ['{shown(unused[0])}']"
        )
    if list(class_of) != list(range(1, len(class_of) + 1)):
        listed = [f"{number} ({text}) to {found.index(text)}" for number, text in class_of.items()]
        text = f"{name}: category ids of {json_file} are mapped: {', '.join(listed[:5])}"
        log_first_n(logging.INFO, text, n=1, name=__name__, key="message")
    return class_of


def _check_annotations(
    json_file: str,
    annotations: Sequence[Any],
    images: Collection[_Id],
    names: Mapping[_Id, str],
) -> None:
    """Check every annotation except for where its box lies."""
    _check_entries(json_file, "an annotation", annotations, "image_id", "category_id", "bbox")
    for entry in annotations:
        where = f"{json_file}: annotation {entry['id']}"
        number, image = entry["category_id"], entry["image_id"]
        if not _is_id(number) or number not in names:
            known = ", ".join(f"{key!r} {shown(text)}" for key, text in names.items())
            raise UserError(
                f"{where} has category_id {number!r:.40}, which is not among the categories "
                f"({known:.300})"
            )
        if not _is_id(image) or image not in images:
            raise UserError(f"{where} is of image_id {image!r:.40}, which is not in images")
        box = entry["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise UserError(
                f"{where}: bbox must be four numbers, [x, y, width, height]; got {box!r:.120}"
            )
        for key in ("iscrowd", "ignore"):
            if entry.get(key) not in (None, 0, 1):
                raise UserError(f"{where}: {key} must be 0 or 1; got {entry[key]!r:.40}")
        area = entry.get("area")
        if area is not None and not (isinstance(area, int | float) and area == area):
            raise UserError(
                f"{where}: area must be a number; got {area!r:.40}. Without area, it is width x "
                f"height of the box"
            )


def _warn_of_losses(name: str, json_file: str, annotations: Sequence[dict[str, Any]]) -> None:
    lost = [
        f"annotation {entry['id']}"
        for entry in annotations
        if entry.get("ignore")
        or entry.get("iscrowd", 0) is None
        or (entry.get("segmentation") and _usable_segmentation(entry["segmentation"]) is None)
    ]
    if lost:
        warn_once(
            f"{name}: Detectron2's loader of {json_file} stops at, or leaves out, "
            f"{len(lost):,} of {len(annotations):,} objects, because their segmentation is not a "
            f"polygon or they have ignore 1 or iscrowd null ({examples(lost)}); with "
            "DATASETS.REGISTER, or frcnn_plugin.data.register_coco in Python, they are read"
        )


def _for_metric(
    name: str,
    json_file: str,
    annotations: Sequence[dict[str, Any]],
    sizes: Mapping[_Id, Size],
    names: Mapping[_Id, str],
    used_as: Mapping[_Id, _Id],
) -> list[dict[str, Any]]:
    """Return the annotations of categories that are used, in the form that the module describes.

    Those without anything inside their image are left out, and those that are there twice: the one
    detection of such an object would leave the other to be missed.
    """
    findings = BoxFindings()
    seen = set()
    result: list[dict[str, Any]] = []
    for entry in annotations:
        if entry["category_id"] not in used_as:
            continue
        category, size = used_as[entry["category_id"]], sizes[entry["image_id"]]
        what = f"annotation {entry['id']} '{names[entry['category_id']]}'"
        given = f"bbox {entry['bbox']}; image {size[0]}x{size[1]}"
        box = _corners(entry["bbox"])
        fitted = findings.fit(box, size, what, given)
        if fitted is None:
            continue
        twin = (entry["image_id"], category, fitted, _is_crowd(entry))
        if twin in seen:
            findings.found[DROPPED].append(f"{what}: it is there twice ({given})")
            continue
        seen.add(twin)
        good = {**entry, "category_id": category}
        if fitted != box:
            x1, y1, x2, y2 = fitted
            good["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        if (segmentation := _usable_segmentation(good.pop("segmentation", None))) is not None:
            good["segmentation"] = segmentation
        result.append(good)
    complete_for_metric(result)
    text = findings.report(json_file)
    if CLIPPED in findings.found:
        text += "; is bbox [x, y, width, height] and not two corners?"
    if text:
        warn_once(f"{name}: {text}")
    return result


def complete_for_metric(annotations: Sequence[dict[str, Any]]) -> None:
    """Number annotations from 1, and fill in ``iscrowd`` and ``area``: what COCO's metric needs."""
    for number, entry in enumerate(annotations, start=1):
        area, (_, _, w, h) = entry.get("area"), entry.get("bbox") or (0, 0, 0, 0)
        entry["id"] = number
        entry["iscrowd"] = int(_is_crowd(entry))
        if area is None or not 0 < area < _LARGEST:
            entry["area"] = float(w) * float(h)


def _is_crowd(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("iscrowd") or entry.get("ignore"))


def run_lengths(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask, (H, W), as a segmentation in COCO's format."""
    encoded = pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def _usable_segmentation(value: Any) -> Any:
    """Return a segmentation as Detectron2's loader would hand it on; None if it could not."""
    if isinstance(value, dict):  # run lengths
        counts, size = value.get("counts"), value.get("size")
        if not (isinstance(size, list) and len(size) == 2 and all(map(_is_number, size))):
            return None
        if not isinstance(counts, list):
            return value if isinstance(counts, str) else None
        try:
            return pycocotools.mask.frPyObjects(value, *size)
        except Exception:  # whatever is in the list
            return None
    if not isinstance(value, list):
        return None
    polygons = [p for p in value if isinstance(p, list) and len(p) % 2 == 0 and len(p) >= 6]
    return polygons or None


def _corners(bbox: Sequence[float]) -> Box:
    x, y, w, h = bbox
    return float(x), float(y), float(x + w), float(y + h)


def _is_id(value: object) -> bool:
    return type(value) in (int, str)


def _is_number(value: object) -> bool:
    # False for nan, and for whole numbers that are too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9

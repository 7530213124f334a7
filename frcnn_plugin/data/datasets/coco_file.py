"""Looking into an annotation file in COCO's format before Detectron2 loads it."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import UserError
from .class_names import is_background
from .voc_image_set import examples, warn_once

logger = logging.getLogger(__name__)

_LISTS = ("images", "categories", "annotations")
_OVERHANG = 1.0  # pixels by which a box may leave the image: rounding


def check_coco_file(
    name: str,
    json_file: str,
    image_root: str,
    *,
    classes: Sequence[str] | None = None,
    needs_area: bool = False,
) -> None:
    """Checks what Detectron2's loader and COCO's metric take for granted.

    Odd boxes and unused categories are counted in a warning; Detectron2 clips boxes to the image
    and leaves empty ones out of training.

    Args:
        name: registered name, for messages.
        json_file: the annotation file, which exists.
        image_root: folder of the images, which exists.
        classes: names that the categories must have, in the order of their ids; None: any.
        needs_area: the set is evaluated by COCO's metric.

    Raises:
        UserError: for the first thing that is wrong.
    """
    content = _read(json_file)
    categories = _check_categories(json_file, content["categories"], classes)
    images = _check_images(json_file, content["images"], image_root)
    annotations = content.get("annotations", [])
    _check_annotations(name, json_file, annotations, images, categories, needs_area)
    used = {annotation["category_id"] for annotation in annotations}
    unused = [text for number, text in categories.items() if number not in used]
    if annotations and unused:
        warn_once(
            f"{name}: no object of {', '.join(unused)} in {json_file}, but they count as classes "
            f"({len(categories)} in all); some exports add a group's name as a category"
        )
    if sorted(categories) != list(range(1, len(categories) + 1)):
        pairs = [f"{number} ({categories[number]})" for number in sorted(categories)]
        listed = ", ".join(f"{pair} to {index}" for index, pair in enumerate(pairs[:5]))
        logger.info("%s: category ids are mapped: %s", name, listed)


def _read(json_file: str) -> dict[str, Any]:
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{json_file}: not readable as JSON ({error})") from error
    lists = content if isinstance(content, dict) else {}
    # A test set whose answers are not public has no annotations.
    missing = [key for key in _LISTS[:2] if not isinstance(lists.get(key), list)]
    if missing or not isinstance(lists.get("annotations", []), list):
        raise UserError(
            f"{json_file}: not COCO's format for detection: it needs the lists "
            f"{', '.join(_LISTS)}; missing {', '.join(missing or ['annotations'])}"
        )
    return lists


def _check_categories(
    json_file: str, categories: Sequence[Any], classes: Sequence[str] | None
) -> dict[int, str]:
    """Returns name by id."""
    for entry in categories:
        if not isinstance(entry, Mapping) or not {"id", "name"} <= entry.keys():
            raise UserError(f"{json_file}: a category needs an id and a name; got {entry!r}")
    if not categories:
        raise UserError(f"{json_file}: categories is empty: there are no classes to detect")
    for key in ("id", "name"):
        counts = Counter(entry[key] for entry in categories)
        repeated = [str(value) for value, count in counts.items() if count > 1]
        if repeated:
            raise UserError(
                f"{json_file}: category {key} {examples(repeated)} occurs more than once; every "
                f"class is listed once, with an id of its own"
            )
    found = {entry["id"]: str(entry["name"]) for entry in categories}
    background = [number for number, text in found.items() if is_background(text)]
    if background:
        raise UserError(
            f"{json_file}: category {background[0]} is '{found[background[0]]}': background is not "
            f"counted as a class, remove it and its annotations. MODEL.ROI_HEADS.NUM_CLASSES then "
            f"is {len(found) - 1}"
        )
    names = [found[number] for number in sorted(found)]
    if classes is not None and list(classes) != names:
        raise UserError(
            f"{json_file}: its categories are {', '.join(names)} (in the order of their ids), but "
            f"DATASETS.REGISTER says classes: {', '.join(classes)}. Leave classes out to take "
            f"those of the file"
        )
    return found


def _check_images(
    json_file: str, images: Sequence[Any], image_root: str
) -> dict[Any, tuple[float, float]]:
    """Returns (width, height) by id."""
    for entry in images:
        missing = [key for key in ("id", "file_name", "width", "height") if key not in entry]
        if missing:
            raise UserError(f"{json_file}: an image has no {', '.join(missing)}: {entry!r:.120}")
    counts = Counter(entry["id"] for entry in images)
    repeated = [str(value) for value, count in counts.items() if count > 1]
    if repeated:
        raise UserError(f"{json_file}: image id {examples(repeated)} occurs more than once")
    names = [str(entry["file_name"]) for entry in images]
    absent = [text for text in names if not os.path.isfile(os.path.join(image_root, text))]
    if absent:
        raise UserError(
            f"{json_file}: {len(absent)} of {len(names)} images are not in {image_root} "
            f"({examples(absent)}); `images` must be the folder that every file_name starts from"
        )
    return {entry["id"]: (entry["width"], entry["height"]) for entry in images}


def _check_annotations(
    name: str,
    json_file: str,
    annotations: Sequence[Any],
    images: Mapping[Any, tuple[float, float]],
    categories: Mapping[int, str],
    needs_area: bool,
) -> None:
    needed = ("id", "image_id", "category_id", "bbox", *(["area"] if needs_area else []))
    empty, outside = [], []
    for entry in annotations:
        missing = [key for key in needed if key not in entry]
        if missing == ["area"]:
            raise UserError(
                f"{json_file}: annotation {entry['id']} has no area, which COCO's metric needs: "
                f"add it (width x height of the box), or evaluate with `evaluator: voc`"
            )
        if missing:
            raise UserError(
                f"{json_file}: an annotation has no {', '.join(missing)}: {entry!r:.120}"
            )
        where = f"{json_file}: annotation {entry['id']}"
        if entry["category_id"] not in categories:
            known = ", ".join(f"{number} {text}" for number, text in sorted(categories.items()))
            raise UserError(
                f"{where} has category_id {entry['category_id']}, which is not among the "
                f"categories ({known})"
            )
        if entry["image_id"] not in images:
            raise UserError(f"{where} is of image_id {entry['image_id']}, which is not in images")
        box = entry["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise UserError(
                f"{where}: bbox must be four numbers, [x, y, width, height]; got {box!r}"
            )
        text = f"annotation {entry['id']} '{categories[entry['category_id']]}' {box}"
        width, height = images[entry["image_id"]]
        if box[2] <= 0 or box[3] <= 0:
            empty.append(text)
        elif (
            min(box[:2]) < -_OVERHANG
            or box[0] + box[2] > width + _OVERHANG
            or box[1] + box[3] > height + _OVERHANG
        ):
            outside.append(f"{text} in an image of {width}x{height}")
    counts = Counter(entry["id"] for entry in annotations)
    repeated = [str(value) for value, count in counts.items() if count > 1]
    if repeated:
        raise UserError(
            f"{json_file}: annotation id {examples(repeated)} occurs more than once; number the "
            f"annotations through"
        )
    parts = []
    if empty:
        parts.append(f"{len(empty)} boxes without area, not trained on: {examples(empty)}")
    if outside:
        parts.append(
            f"{len(outside)} boxes that leave the image, clipped (is bbox [x, y, width, height] "
            f"and not two corners?): {examples(outside)}"
        )
    if parts:
        warn_once(f"{name}: {'; '.join(parts)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""Data sets in COCO's format: registered for Detectron2's loader, and checked before it loads."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ...errors import UserError
from ...host import replace_metadata
from .arguments import examples, resolve_root, warn_once
from .class_names import check_classes, is_background

logger = logging.getLogger(__name__)

_LISTS = ("images", "categories", "annotations")
_OVERHANG = 1.0  # pixels by which a box may leave the image: rounding


def register_coco(
    name: str,
    json_file: str,
    images: str,
    classes: Sequence[str] | None = None,
    evaluator: str = "coco",
) -> None:
    """Register a data set in COCO's format under ``name``; registering the same again does nothing.

    Nothing is read here: Detectron2 takes the class names from the file when the set is loaded, in
    the order of the category ids, which it maps to 0, 1, ... ``check_datasets`` looks at the file.

    Args:
        name: the name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        json_file: the annotation file; a relative path is treated as by ``register_voc``.
        images: folder that the ``file_name`` entries start from.
        classes: the names that the file is expected to have, in this order; None: whatever it has.
        evaluator: "coco" (COCO's metric) or "voc" (AP50 by the rules of VOC).

    Raises:
        UserError: if ``name`` is taken, or ``classes`` is not a list of distinct names.
    """
    paths = {"json_file": str(resolve_root(json_file)), "image_root": str(resolve_root(images))}
    more = {} if classes is None else {"thing_classes": list(check_classes(name, classes))}
    # from_config: check_datasets looks into the file although its class names are known.
    wanted = {**paths, **more, "from_config": True, "evaluator_type": evaluator}
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog:
        if all(metadata.get(key) == value for key, value in wanted.items()):
            return
        what = "with other arguments" if metadata.get("from_config") else "by other code"
        raise UserError(f"data set '{name}' is already registered {what}; choose another name")
    register_coco_instances(name, {**more, "from_config": True}, **paths)
    replace_metadata(name, evaluator_type=evaluator)  # Detectron2 has just set it to "coco"


def check_coco_file(
    name: str,
    json_file: str,
    image_root: str,
    *,
    classes: Sequence[str] | None = None,
    needs_area: bool = False,
) -> None:
    """Check what Detectron2's loader and COCO's metric take for granted, of files that exist.

    Odd boxes and unused categories are counted in a warning; Detectron2 clips boxes to the image
    and leaves empty ones out of training.

    Args:
        name: registered name, for messages.
        json_file: see :func:`register_coco`.
        image_root: see there.
        classes: see there.
        needs_area: the set is evaluated by COCO's metric.

    Raises:
        UserError: for the first thing that is wrong.
    """
    content = _read(json_file)
    categories = _check_categories(json_file, content["categories"], classes)
    images = _check_images(json_file, content["images"], image_root)
    annotations = content["annotations"]
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
    lists.setdefault("annotations", [])  # a test set whose answers are not public has none
    missing = [key for key in _LISTS if not isinstance(lists.get(key), list)]
    if missing:
        raise UserError(
            f"{json_file}: not COCO's format for detection: it needs the lists "
            f"{', '.join(_LISTS)}; missing {', '.join(missing)}"
        )
    return lists


def _check_keys(json_file: str, what: str, entry: Mapping[str, Any], *keys: str) -> None:
    missing = [key for key in keys if key not in entry]
    if missing:
        raise UserError(f"{json_file}: {what} has no {', '.join(missing)}: {entry!r:.120}")


def _check_distinct(json_file: str, entries: Sequence[Any], what: str, key: str = "id") -> None:
    counts = Counter(entry[key] for entry in entries)
    repeated = [str(value) for value, count in counts.items() if count > 1]
    if repeated:
        raise UserError(
            f"{json_file}: {what} {key} {examples(repeated)} occurs more than once; it must be "
            f"unique"
        )


def _check_categories(
    json_file: str, categories: Sequence[Any], classes: Sequence[str] | None
) -> dict[int, str]:
    """Return name by id."""
    for entry in categories:
        _check_keys(json_file, "a category", entry, "id", "name")
    if not categories:
        raise UserError(f"{json_file}: categories is empty: there are no classes to detect")
    for key in ("id", "name"):
        _check_distinct(json_file, categories, "category", key)
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
    """Return (width, height) by id."""
    for entry in images:
        _check_keys(json_file, "an image", entry, "id", "file_name", "width", "height")
    _check_distinct(json_file, images, "image")
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
    empty, outside = [], []
    for entry in annotations:
        _check_keys(json_file, "an annotation", entry, "id", "image_id", "category_id", "bbox")
        where = f"{json_file}: annotation {entry['id']}"
        if needs_area and "area" not in entry:
            raise UserError(
                f"{where} has no area, which COCO's metric needs: add it (width x height of the "
                f"box), or evaluate with `evaluator: voc`"
            )
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
        beyond = max(-box[0], -box[1], box[0] + box[2] - width, box[1] + box[3] - height)
        if box[2] <= 0 or box[3] <= 0:
            empty.append(text)
        elif beyond > _OVERHANG:
            outside.append(f"{text} in an image of {width}x{height}")
    _check_distinct(json_file, annotations, "annotation")
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

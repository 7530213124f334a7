"""Boxes that a user gives for images, from a JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError

_FORMATS = (
    'needed is {"photo.jpg": [[x1, y1, x2, y2], ...], ...} or COCO\'s format, with "images" and '
    '"annotations"'
)
BoxList = list[list[float]]


def load_boxes(path: str | os.PathLike[str], images: Sequence[Path]) -> list[BoxList]:
    """Load boxes of images, matched by file name.

    Args:
        path: JSON of XYXY boxes by file name, or a COCO file, whose boxes are XYWH; both in
            pixels of the image.
        images: files whose boxes are wanted. The file may name them by a path, or by their bare
            name where no two images have it.

    Returns:
        per image, (R, 4) XYXY.

    Raises:
        UserError: the file is missing or of another format; an image is not in it.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path} is no JSON file ({e})") from e
    boxes = _from_coco(content, path) if _is_coco(content) else _from_mapping(content, path)
    bare = [image.name for image in images]
    result = []
    for image in images:
        keys = [str(image), image.as_posix()]
        if bare.count(image.name) == 1:
            keys.append(image.name)
        key = next((k for k in keys if k in boxes), None)
        if key is None:
            known = ", ".join(list(boxes)[:3])
            raise UserError(
                f"{path} has no boxes of {image}; it has those of {known or 'no image'}"
                f"{' ...' if len(boxes) > 3 else ''}. An image without any is given as []"
            )
        result.append(boxes[key])
    return result


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def _from_mapping(content: Any, path: object) -> dict[str, BoxList]:
    if not isinstance(content, dict) or not all(isinstance(v, list) for v in content.values()):
        raise UserError(f"{path} has another format: {_FORMATS}")
    for name, boxes in content.items():
        for i, box in enumerate(boxes):
            if not _is_box(box):
                raise UserError(f"{path}: box {i} of {name} is {box}, not four numbers")
    return content


def _from_coco(content: dict[str, Any], path: object) -> dict[str, BoxList]:
    try:
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        boxes: dict[str, BoxList] = {name: [] for name in names.values()}
        for i, annotation in enumerate(content["annotations"]):
            box = annotation["bbox"]
            if not _is_box(box):
                raise UserError(f"{path}: bbox of annotation {i} is {box}, not four numbers")
            x, y, width, height = box
            boxes[names[annotation["image_id"]]].append([x, y, x + width, y + height])
    except (KeyError, TypeError) as e:
        raise UserError(f"{path} has another format ({e!r}): {_FORMATS}") from e
    return boxes


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in box)
    )

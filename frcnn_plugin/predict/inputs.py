"""What users give to a detector: image files, found and named, and boxes to classify."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..atomic_files import reading_json
from ..data.loading.image_reader import IMAGE_SUFFIXES
from ..errors import UserError

BoxList = list[list[float]]

_BOX_FORMATS = (
    'give {"photo.jpg": [[x1, y1, x2, y2], ...], ...} or COCO\'s format, with "images" and '
    '"annotations"'
)
_VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Find the files that are meant by names of files, folders and patterns.

    Args:
        inputs: a file; a folder, whose images are taken but not those of its subfolders; or a
            pattern such as ``"photos/**/*.jpg"``.

    Returns:
        Each file once, in the order of the inputs, those of one input sorted.

    Raises:
        UserError: an input means no image, or a video.
    """
    found: dict[Path, None] = {}
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not files:
                raise UserError(
                    f"the folder {name} holds no images ({', '.join(IMAGE_SUFFIXES)}); those of "
                    f"subfolders are found with '{path}/**/*.jpg'"
                )
        elif path.suffix.lower() in _VIDEO_SUFFIXES:
            raise UserError(
                f"{name} is a video: make images of it first: ffmpeg -i {name} frames/%06d.jpg"
            )
        elif path.is_file():
            files = [path]
        elif glob.has_magic(name):
            files = sorted(Path(p) for p in glob.glob(name, recursive=True) if os.path.isfile(p))
            if not files:
                raise UserError(f"no file fits the pattern {name}")
        else:
            raise UserError(f"there is no file or folder {name}")
        found.update(dict.fromkeys(files))
    return list(found)


def output_names(paths: Sequence[Path]) -> list[str]:
    """Name what is made of each of different files, no two the same on any file system.

    A name is the file's without extension; where several have it, with their folders, as far as
    these differ: "a__001" and "b__001"; where that is not enough, with a number.
    """
    common = Path(os.path.commonpath([p.absolute().parent for p in paths])) if paths else Path()
    # Some file systems ignore case.
    stems = Counter(path.stem.lower() for path in paths)
    taken: set[str] = set()
    names = []
    for path in paths:
        name = base = path.stem
        if stems[name.lower()] > 1:
            relative = path.absolute().relative_to(common).with_suffix("")
            name = base = "__".join(relative.parts)
        number = 1
        while name.lower() in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name.lower())
        names.append(name)
    return names


def load_boxes(path: str | os.PathLike[str], images: Sequence[Path]) -> list[BoxList]:
    """Load boxes of images, matched by file name.

    Args:
        path: JSON of XYXY boxes by file name, or a COCO file, whose boxes are XYWH; both in
            pixels of the image.
        images: files whose boxes are wanted. The JSON may name them by a path, or by their bare
            name where no two images have it.

    Returns:
        Per image, (R, 4) XYXY.

    Raises:
        UserError: the file is missing or of another format; an image is not in it.
    """
    with reading_json(path, "boxes by image", f": {_BOX_FORMATS}") as content:
        is_coco = {"images", "annotations"} <= content.keys()
        boxes = _coco_boxes(content) if is_coco else {k: list(v) for k, v in content.items()}
    for name, rows in boxes.items():
        for i, row in enumerate(rows):
            if not (isinstance(row, list) and len(row) == 4 and all(map(_is_number, row))):
                raise UserError(f"{path}: box {i} of {name} is {row}, not four numbers")
        if is_coco:
            boxes[name] = [[x, y, x + width, y + height] for x, y, width, height in rows]
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


def _coco_boxes(content: dict[str, Any]) -> dict[str, BoxList]:
    """Return XYWH boxes by file name."""
    names = {image["id"]: str(image["file_name"]) for image in content["images"]}
    boxes: dict[str, BoxList] = {name: [] for name in names.values()}
    for annotation in content["annotations"]:
        boxes[names[annotation["image_id"]]].append(annotation["bbox"])
    return boxes


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

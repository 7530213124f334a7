"""A small VOC-format data set that is written, not downloaded.

For ``make demo`` and for the tests: three classes of shapes that a narrow network learns in
minutes, with what real sets have as well: images of several sizes in both orientations, images
without objects, objects over the border, overlaps, and ``difficult`` objects.
"""

import json
import logging
import os
import shutil
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from .scene import Shape, draw_scene

logger = logging.getLogger(__name__)

MARKER = "synthetic.json"
VERSION = 1  # raise it when the same arguments give other pictures

_EMPTY_SHARE = 0.07  # images without objects
_MAX_OBJECTS = 4
_LONGEST = 1.5  # longest allowed ratio of the sides


def write_synthetic_voc(
    root: str | os.PathLike[str],
    num_trainval: int = 200,
    num_test: int = 50,
    seed: int = 0,
    short_side: tuple[int, int] = (160, 260),
) -> Path:
    """Write the set, unless it is already there.

    The same arguments give the same set; each image depends on the seed, its split and its number
    only. The folder appears at once and complete, also if the run is killed half-way.

    Args:
        root: folder to create; holds ``Annotations``, ``ImageSets/Main/{trainval,test}.txt``,
            ``JPEGImages`` and a marker file afterwards.
        num_trainval: number of images of the split ``trainval``.
        num_test: number of images of the split ``test``.
        seed: seed of everything.
        short_side: smallest and largest shorter side of an image, in pixels, both included.

    Returns:
        ``root`` as a path.

    Raises:
        UserError: if ``root`` holds something else, or an argument makes no sense.
    """
    root = Path(root).expanduser()
    if min(num_trainval, num_test) < 0 or num_trainval + num_test == 0:
        raise UserError(f"no images asked for: num_trainval {num_trainval}, num_test {num_test}")
    if not 32 <= short_side[0] <= short_side[1]:
        raise UserError(f"short_side must be two growing numbers from 32 on; got {short_side}")
    arguments = {
        "written_by": "frcnn_plugin.data.write_synthetic_voc",
        "version": VERSION,
        "num_trainval": num_trainval,
        "num_test": num_test,
        "seed": seed,
        "short_side": list(short_side),
    }
    if _is_complete(root, arguments):
        logger.info("%s: already there, left as it is", root)
        return root
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(
            f"{root} exists and is not this synthetic set (other arguments, other contents, or "
            f"files missing). Delete it or choose another folder"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.partial-", dir=root.parent))
    try:
        _write(partial, num_trainval, num_test, seed, short_side)
        (partial / MARKER).write_text(json.dumps(arguments, indent=2) + "\n")
        partial.chmod(0o755)  # mkdtemp makes it private
        _move_into_place(partial, root, arguments)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("%s: wrote %d + %d images", root, num_trainval, num_test)
    return root


def _is_complete(root: Path, arguments: dict[str, Any]) -> bool:
    """Say whether the marker file fits and no image or annotation is missing."""
    total = arguments["num_trainval"] + arguments["num_test"]
    return _read_marker(root) == arguments and all(
        len(list((root / folder).glob(f"*{suffix}"))) == total
        for folder, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml"))
    )


def _read_marker(root: Path) -> object:
    try:
        return json.loads((root / MARKER).read_text())
    except (OSError, ValueError):
        return None


def _move_into_place(partial: Path, root: Path, arguments: dict[str, Any]) -> None:
    try:
        os.rename(partial, root)  # replaces an empty folder, refuses a full one
    except OSError:
        if _read_marker(root) != arguments:
            raise
        # Another process has just written the same set.


def _write(
    root: Path, num_trainval: int, num_test: int, seed: int, short_side: tuple[int, int]
) -> None:
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    first_number = 1
    for split_number, (split, count) in enumerate((("trainval", num_trainval), ("test", num_test))):
        ids = [f"{first_number + index:06d}" for index in range(count)]
        for index, image_id in enumerate(ids):
            rng = np.random.default_rng([seed, split_number, index])
            width, height = _image_size(rng, short_side)
            empty = rng.random() < _EMPTY_SHARE
            num_objects = 0 if empty else int(rng.integers(1, _MAX_OBJECTS + 1))
            picture, shapes = draw_scene(rng, width, height, num_objects)
            Image.fromarray(picture).save(root / "JPEGImages" / f"{image_id}.jpg", quality=95)
            _write_annotation(root / "Annotations" / f"{image_id}.xml", width, height, shapes)
        listing = "".join(f"{image_id}\n" for image_id in ids)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(listing)
        first_number += count


def _image_size(rng: np.random.Generator, short_side: tuple[int, int]) -> tuple[int, int]:
    """Choose width and height of one image: landscape and portrait alike."""
    short = int(rng.integers(short_side[0], short_side[1] + 1))
    long = round(short * rng.uniform(1.0, _LONGEST))
    return (short, long) if rng.integers(2) else (long, short)


def _write_annotation(path: Path, width: int, height: int, shapes: list[Shape]) -> None:
    """Write the VOC XML: 1-based inclusive coordinates."""
    root = ET.Element("annotation")
    _add(root, folder="synthetic", filename=f"{path.stem}.jpg")
    _add(ET.SubElement(root, "size"), width=width, height=height, depth=3)
    _add(root, segmented=0)
    for shape in shapes:
        element = ET.SubElement(root, "object")
        _add(
            element,
            name=shape.name,
            pose="Unspecified",
            truncated=int(shape.truncated),
            difficult=int(shape.difficult),
        )
        x1, y1, x2, y2 = shape.box
        _add(ET.SubElement(element, "bndbox"), xmin=x1 + 1, ymin=y1 + 1, xmax=x2, ymax=y2)
    ET.indent(root)
    ET.ElementTree(root).write(path, encoding="utf-8")


def _add(parent: ET.Element, **children: str | int) -> None:
    for tag, value in children.items():
        ET.SubElement(parent, tag).text = str(value)

"""A small data set in VOC's format, and with masks in COCO's, that is written, not downloaded.

For ``make demo`` and for the tests: circles, squares and triangles that a narrow network learns in
minutes, with what real sets have as well: images of several sizes in both orientations, images
without objects, objects over the border, overlaps, and ``difficult`` objects.

Every picture is a function of a numpy Generator. Shapes are drawn enlarged and shrunk again
(anti-aliasing); a pixel belongs to a shape if the shape covers at least half of it. Boxes are
continuous XYXY_ABS, tight to the visible pixels.
"""

from __future__ import annotations

import colorsys
import json
import logging
import math
import os
import shutil
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from ..atomic_files import write_text
from ..errors import UserError
from .datasets.coco_files import run_lengths

logger = logging.getLogger(__name__)

MARKER = "synthetic.json"
VERSION = 1  # raise it when the same arguments give other pictures

_EMPTY_SHARE = 0.07  # images without objects
_MAX_OBJECTS = 4
_LONGEST = 1.5  # longest allowed ratio of the sides

SHAPE_CLASSES: tuple[str, ...] = ("circle", "square", "triangle")

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]

_SUPERSAMPLING = 4
_SCALES = (0.3, 0.65)  # size of a shape as a share of the image's short side
_TINY_SCALES = (0.04, 0.07)  # of one shape in `_TINY_ONE_IN`
_TINY_ONE_IN = 12
_BORDER_ONE_IN = 6  # shapes that are pushed over the border
_MAX_IOU = 0.2  # between the boxes of two objects
_MIN_CONTRAST = 120.0  # RGB distance of a shape from what it covers; black to white is 442
_DIFFICULT_SIDE = 20  # pixels; the smallest anchor of the demo is three times as large
# As in real sets, colour says something about the class, but not enough: hues of a class lie around
# its own third of the colour circle and reach far into the others'.
_HUE_SPREAD = 0.25
_DIFFICULT_VISIBLE = 0.5  # objects of which less is visible are marked difficult


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
            ``JPEGImages``, ``COCO/{trainval,test}.json`` and a marker file afterwards. The last
            two are the same sets in COCO's format, with masks; ``difficult`` objects have
            ``ignore`` 1 there, so they count as crowds.
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
    if num_trainval + num_test > 999_999:  # names have six digits
        raise UserError(
            f"too many images asked for, {num_trainval} and {num_test}: together at most 999999"
        )
    if seed < 0:
        raise UserError(f"the seed is {seed}: it must be 0 or more")
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
    marker = json.dumps(arguments, indent=2) + "\n"
    splits = {"trainval": num_trainval, "test": num_test}
    if _is_complete(root, marker, num_trainval + num_test):
        if not all(_coco_file(root, split).is_file() for split in splits):  # an earlier version's
            _write(root, splits, seed, short_side, voc=False)
        logger.info("%s: already there, nothing to do", root)
        return root
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(
            f"{root} exists and is not this synthetic set (other arguments, other contents, or "
            f"files missing). Delete it or choose another folder"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.partial-", dir=root.parent))
    try:
        _write(partial, splits, seed, short_side)
        (partial / MARKER).write_text(marker)
        partial.chmod(0o755)  # mkdtemp makes it private
        os.rename(partial, root)  # replaces an empty folder, refuses a full one
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("%s: wrote %d + %d images", root, num_trainval, num_test)
    return root


def _is_complete(root: Path, marker: str, total: int) -> bool:
    """Say whether the marker file fits and no image or annotation is missing."""
    file = root / MARKER
    return (
        file.is_file()
        and file.read_text() == marker
        and len(list(root.glob("JPEGImages/*.jpg"))) == total
        and len(list(root.glob("Annotations/*.xml"))) == total
    )


def _write(
    root: Path,
    splits: dict[str, int],
    seed: int,
    short_side: tuple[int, int],
    *,
    voc: bool = True,
) -> None:
    """Write all files, or, without ``voc``, only those in COCO's format."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages", "COCO"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    number = 0
    for split_number, (split, count) in enumerate(splits.items()):
        images, objects = [], []
        for index in range(count):
            number += 1
            name = f"{number:06d}"
            # From its own number alone.
            picture, shapes = _scene(np.random.default_rng([seed, split_number, index]), short_side)
            height, width = picture.shape[:2]
            if voc:
                Image.fromarray(picture).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
                _write_annotation(root / "Annotations" / f"{name}.xml", width, height, shapes)
            images.append(
                {"id": number, "file_name": f"{name}.jpg", "width": width, "height": height}
            )
            objects += [{"image_id": number, **_coco_object(shape)} for shape in shapes]
        if voc:
            listing = "".join(f"{image['id']:06d}\n" for image in images)
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text(listing)
        content = {
            "images": images,
            "categories": [{"id": i, "name": name} for i, name in enumerate(SHAPE_CLASSES, 1)],
            "annotations": [{"id": i, **entry} for i, entry in enumerate(objects, 1)],
        }
        write_text(_coco_file(root, split), json.dumps(content) + "\n")


def _scene(
    rng: np.random.Generator, short_side: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], list[Shape]]:
    """Draw an image of some size, landscape or portrait, with up to ``_MAX_OBJECTS`` objects."""
    short = int(rng.integers(short_side[0], short_side[1] + 1))
    long = round(short * rng.uniform(1.0, _LONGEST))
    width, height = (short, long) if rng.integers(2) else (long, short)
    empty = rng.random() < _EMPTY_SHARE
    num_objects = 0 if empty else int(rng.integers(1, _MAX_OBJECTS + 1))
    return draw_scene(rng, width, height, num_objects)


def _coco_file(root: Path, split: str) -> Path:
    return root / "COCO" / f"{split}.json"


def _coco_object(shape: Shape) -> dict[str, Any]:
    """Describe a shape in COCO's format, without numbers; its mask by run lengths."""
    x1, y1, x2, y2 = shape.box()
    return {
        "category_id": SHAPE_CLASSES.index(shape.name) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": int(shape.mask.sum()),
        "iscrowd": 0,
        "ignore": int(shape.is_difficult()),
        "segmentation": run_lengths(shape.mask),
    }


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
            difficult=int(shape.is_difficult()),
        )
        x1, y1, x2, y2 = shape.box()
        _add(ET.SubElement(element, "bndbox"), xmin=x1 + 1, ymin=y1 + 1, xmax=x2, ymax=y2)
    ET.indent(root)
    ET.ElementTree(root).write(path, encoding="utf-8")


def _add(parent: ET.Element, **children: str | int) -> None:
    for tag, value in children.items():
        ET.SubElement(parent, tag).text = str(value)


@dataclass
class Shape:
    """One object of a picture."""

    name: str  # one of ``SHAPE_CLASSES``
    mask: BoolArray  # (H, W), the pixels that are visible of it
    full_area: int  # number of its pixels if it were visible as a whole
    truncated: bool  # whether the shape leaves the image

    def box(self) -> Box:
        """Return the box, tight to the visible pixels; whole numbers, continuous XYXY_ABS."""
        return tight_box(self.mask)

    def is_difficult(self) -> bool:
        """Say whether it is too small, or too little of it visible, to be asked for."""
        x1, y1, x2, y2 = self.box()
        hidden = self.mask.sum() < _DIFFICULT_VISIBLE * self.full_area
        return bool(min(x2 - x1, y2 - y1) < _DIFFICULT_SIDE or hidden)


def draw_scene(
    rng: np.random.Generator, width: int, height: int, num_objects: int
) -> tuple[npt.NDArray[np.uint8], list[Shape]]:
    """Draw an image, (H, W, 3) uint8 RGB, and shapes, fewer if there is no room; return both."""
    canvas = _background(rng, width, height)
    shapes: list[Shape] = []
    for _ in range(num_objects):
        for _attempt in range(20):
            if _try_to_add(rng, canvas, shapes):
                break
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8), shapes


def tight_box(mask: BoolArray) -> Box:
    """Return the smallest box around the true pixels of ``mask``, (H, W): continuous XYXY_ABS."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _try_to_add(rng: np.random.Generator, canvas: FloatArray, drawn: list[Shape]) -> bool:
    """Draw one more shape over the others, unless it hides too much; say whether it did."""
    height, width = canvas.shape[:2]
    name = SHAPE_CLASSES[rng.integers(len(SHAPE_CLASSES))]
    low, high = _TINY_SCALES if rng.integers(_TINY_ONE_IN) == 0 else _SCALES
    # Log-uniform: small ones are as frequent as large ones.
    size = min(width, height) * math.exp(rng.uniform(math.log(low), math.log(high)))
    alpha = _render_alpha(rng, name, size)
    left, top = _place(rng, (width, height), (alpha.shape[1], alpha.shape[0]))
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + alpha.shape[1], width), min(top + alpha.shape[0], height)
    inside = alpha[y1 - top : y2 - top, x1 - left : x2 - left]
    mask = np.zeros((height, width), dtype=bool)
    mask[y1:y2, x1:x2] = inside >= 0.5
    full_area = int((alpha >= 0.5).sum())
    if mask.sum() < max(9, full_area / 4):
        return False

    # Most of each older shape must stay visible; one time in ten, less of it may.
    least = 0.3 if rng.integers(10) == 0 else 0.7
    for other in drawn:
        remaining = other.mask & ~mask
        if remaining.sum() < max(9, least * other.full_area):
            return False
        if _iou(tight_box(mask), tight_box(remaining)) > _MAX_IOU:
            return False
    region = canvas[y1:y2, x1:x2]
    texture = _texture(rng, name, region[inside > 0], (x2 - x1, y2 - y1), size)
    region += (texture - region) * inside[..., None]
    for other in drawn:
        other.mask &= ~mask
    drawn.append(Shape(name, mask, full_area, bool(mask.sum() < full_area)))
    return True


def _render_alpha(rng: np.random.Generator, name: str, size: float) -> FloatArray:
    """Return one shape's coverage in [0, 1], (h, w), cropped; its side is ``size`` pixels."""
    stretch = math.exp(rng.uniform(-0.2, 0.2))
    half = np.array([size / 2 * stretch, size / 2 / stretch])
    if name == "circle":
        angles = np.arange(96) * (2 * math.pi / 96)
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        turn = rng.uniform(0, math.pi)
    elif name == "square":
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * 0.9
        turn = rng.uniform(-0.2, 0.2)
    else:
        points = np.array([[0, -1.1], [1.1, 0.85], [-1.1, 0.85]])
        turn = rng.uniform(-0.3, 0.3)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    points = (points * half) @ rotation

    corner = points.min(axis=0) - 1
    extent = np.ceil(points.max(axis=0) - corner + 1).astype(int)
    scale = _SUPERSAMPLING
    image = Image.new("L", (int(extent[0]) * scale, int(extent[1]) * scale))
    pen = ImageDraw.Draw(image)
    pen.polygon([tuple(point) for point in (points - corner) * scale], fill=255)
    # Box filter = share of the pixel that is covered.
    blocks = np.asarray(image, dtype=np.float32) / 255
    blocks = blocks.reshape(extent[1], scale, extent[0], scale)
    alpha: FloatArray = blocks.mean(axis=(1, 3))
    x1, y1, x2, y2 = tight_box(alpha > 0)
    return alpha[y1:y2, x1:x2]


def _place(
    rng: np.random.Generator, image_size: tuple[int, int], shape_size: tuple[int, int]
) -> tuple[int, int]:
    """Choose left and top of a shape: (width, height) pairs in, possibly negative pixels out."""
    spare = [total - part for total, part in zip(image_size, shape_size, strict=True)]
    corner = [int(rng.integers(min(0, room), max(0, room) + 1)) for room in spare]
    if rng.integers(_BORDER_ONE_IN) == 0:
        axis = int(rng.integers(2))
        # 0 touches the border exactly; 0.6 leaves 40 % of the shape's side in the image.
        outside = round(rng.choice([0.0, rng.uniform(0.05, 0.6)]) * shape_size[axis])
        corner[axis] = -outside if rng.integers(2) else spare[axis] + outside
    return corner[0], corner[1]


def _background(rng: np.random.Generator, width: int, height: int) -> FloatArray:
    """Draw plain colour, gradient, noise or stripes: (H, W, 3) float RGB in [0, 255]."""
    # Muted: grey with a tint. Shapes are vivid, so a small network can tell them in minutes.
    base, other = rng.uniform(40, 150, (2, 1)) + rng.uniform(-25, 25, (2, 3))
    kind = rng.integers(4)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    along = x * math.cos(angle) + y * math.sin(angle)
    if kind == 0:
        mix = np.zeros_like(x)
    elif kind == 1:
        mix = (along - along.min()) / np.ptp(along) * 0.8
    elif kind == 2:
        coarse = rng.uniform(0, 255, (5, 6)).astype(np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        mix = np.asarray(smooth, dtype=np.float32) / 255 * 0.4
    else:
        mix = (0.5 + 0.5 * np.sin(along * (2 * math.pi / rng.uniform(6, 40)))) * 0.25
    canvas = base + (other - base) * mix[..., None]
    grain = rng.uniform(8, 18) if kind == 2 else rng.uniform(0, 5)
    canvas = canvas + rng.normal(0, grain, (height, width, 1))
    return np.clip(canvas, 0, 255).astype(np.float32)


def _texture(
    rng: np.random.Generator, name: str, covered: FloatArray, patch: tuple[int, int], size: float
) -> FloatArray:
    """Make a shape's paint, (h, w, 3) for a ``patch`` of (w, h), unlike ``covered``, (n, 3)."""
    first = _contrasting_colour(rng, name, covered)
    y, x = np.mgrid[0 : patch[1], 0 : patch[0]].astype(np.float32)
    paint = np.broadcast_to(first, (patch[1], patch[0], 3)).astype(np.float32)
    kind = rng.integers(8) if size >= 20 else 0
    if kind >= 6:
        second = _contrasting_colour(rng, name, covered)
        period = max(5.0, size * rng.uniform(0.12, 0.3))
        angle = rng.uniform(0, math.pi)
        u = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period)
        v = (y * math.cos(angle) - x * math.sin(angle)) * (2 * math.pi / period)
        wave = np.sin(u) if kind == 6 else np.sin(u) * np.sin(v)  # stripes, or a chequer pattern
        paint = paint + (second - first) * (0.5 + 0.5 * np.tanh(3 * wave))[..., None]
    shade = 1 + rng.uniform(-0.12, 0.12) * (x / patch[0] - 0.5)
    return np.clip(paint * shade[..., None], 0, 255).astype(np.float32)


def _contrasting_colour(
    rng: np.random.Generator, name: str, covered: FloatArray
) -> npt.NDArray[np.float64]:
    """Return the first of 24 vivid RGB colours far from most of ``covered``, else the best."""
    sample = covered[:: max(1, len(covered) // 400)]
    middle = SHAPE_CLASSES.index(name) / len(SHAPE_CLASSES)
    low, high = (middle - _HUE_SPREAD, 0.55, 0.8), (middle + _HUE_SPREAD, 1, 1)
    candidates = np.array(
        [
            colorsys.hsv_to_rgb(hue % 1, saturation, value)
            for hue, saturation, value in rng.uniform(low, high, (24, 3))
        ]
    )
    candidates *= 255
    distances = np.linalg.norm(candidates[:, None] - sample[None], axis=2)  # (24, n)
    contrast = np.percentile(distances, 5, axis=1)
    enough = np.flatnonzero(contrast >= _MIN_CONTRAST)
    chosen: npt.NDArray[np.float64] = candidates[enough[0] if len(enough) else contrast.argmax()]
    return chosen


def _iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two continuous boxes."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)

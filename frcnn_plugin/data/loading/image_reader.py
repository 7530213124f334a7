"""The one way an image file becomes an array, and the one list of suffixes of image files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from ...errors import UserError
from ..datasets.arguments import warn_once

# In this order of preference where a folder holds several images of one name.
# fmt: off
IMAGE_SUFFIXES: tuple[str, ...] = (
    ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif",
)
# fmt: on

_EXIF_ORIENTATION = 0x0112
# As Detectron2 turns them; any other value, of any type, leaves the image as it is.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Upper ends of the ranges that grey values of more than 8 bits may be meant in. The first that
# holds all values of an image counts; 1 is for floats only.
_RANGES = (1.0, 255.0, 65535.0, 2.0**31 - 1)


def read_image(path: str | os.PathLike[str], image_format: str) -> npt.NDArray[Any]:
    """Read an image as Detectron2 does: EXIF orientation applied, transparency dropped.

    There are two differences. Grey images of 16 bits, 32 bits or floats are scaled to 8 bits, where
    Detectron2 cuts their values off at 255, which leaves most of them white: a range of 0 to 1 (of
    floats), 255, 65535 or 2^31 - 1, the smallest that holds all values of the image, becomes 0 to
    255. And pixels are decoded first, so that a damaged file is an error always.

    Args:
        path: of any format that Pillow reads, local or an address that Detectron2's PathManager
            knows; of an animation the first frame is taken.
        image_format: what ``INPUT.FORMAT`` may be: "BGR", "YUV-BT.601" or a mode of Pillow.

    Returns:
        (H, W, C) uint8; float for "YUV-BT.601".

    Raises:
        UserError: the file is missing or cannot be read; names it.
    """
    with _opened(path) as (_, image):
        if image.format == "EPS":  # a program, which Pillow would have Ghostscript run
            raise OSError("EPS is not an image of pixels")
        return image_pixels(image, image_format, os.fspath(path))


def image_pixels(image: Image.Image, image_format: str, name: str) -> npt.NDArray[Any]:
    """Return what :func:`read_image` returns of the file ``name`` that Pillow opened."""
    image.load()
    turn = _TURNS.get(_orientation(image))
    is_deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    shown = _scaled(image) if is_deep else image
    if turn is not None:
        shown = shown.transpose(turn)
    pixels = convert_PIL_to_numpy(shown, image_format)
    if image.mode not in ("L", "RGB") and pixels.min() == pixels.max() and _varies(image):
        warn_once(
            f"{name} (Pillow's mode {image.mode}) becomes an image in which all values are "
            f"{pixels.flat[0]}: save it as an ordinary 8-bit image"
        )
    return pixels


def read_bgr(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read an image in colour as :func:`read_image` does: (H, W, 3) uint8, BGR, contiguous."""
    return np.ascontiguousarray(read_image(path, "BGR"))


def image_header(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Read size and orientation of an image from its header, without decoding a pixel.

    Args:
        path: see :func:`read_image`.

    Returns:
        Width and height in pixels of the image as :func:`read_image` returns it, that is, turned;
        and the EXIF orientation by which it is turned: 1 (not at all) to 8. From 5 on it lies on
        its side in the file.

    Raises:
        UserError: the file is missing or is not an image; names it.
    """
    with _opened(path) as (file, image):
        width, height = image.size
        if image.format == "TIFF":  # new versions of Pillow give the turned size
            tags: Any = image
            width, height = tags.tag_v2[256], tags.tag_v2[257]
        elif image.format == "PNG" and _orientation_follows_pixels(file):
            image.load()
        orientation = _orientation(image)
    return (height, width, orientation) if orientation >= 5 else (width, height, orientation)


def read_record(record: dict[str, Any], image_format: str = "BGR") -> npt.NDArray[Any]:
    """Read the image of an entry of a data set by :func:`read_image`.

    Raises:
        UserError: as there; or the image is of another size than the entry says.
    """
    path = record["file_name"]
    pixels = read_image(path, image_format)
    height, width = pixels.shape[:2]
    said = record.get("width", width), record.get("height", height)
    if said == (width, height):
        return pixels
    fix = "correct the annotation, or give the image that it was made for"
    if (orientation := image_header(path)[2]) >= 5:
        fix = (
            f"the file's EXIF orientation, {orientation}, turns it on its side. If the boxes fit "
            "the turned image, correct width and height; if not, remove the orientation from the "
            "file: exiftool -Orientation= FILE"
        )
    raise UserError(
        f"{path}: the image has {width} x {height} pixels, its annotation says {said[0]} x "
        f"{said[1]}: {fix}"
    )


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[IO[bytes], Image.Image]]:
    """Open an image; what goes wrong with it, also in the ``with`` block, is a UserError."""
    path = os.fspath(path)
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            yield file, image
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path} cannot be read as an image (of no format that is known)"
        ) from error
    except Exception as error:  # a damaged file raises whatever its bytes happen to say
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} cannot be read as an image ({reason})") from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image that was opened or decoded, 1 for what is none."""
    try:
        # Not by the class of PNGs, whose method would decode the pixels.
        value = Image.Image.getexif(image).get(_EXIF_ORIENTATION)
        return int(value) if value in _TURNS else 1
    except Exception:  # EXIF is no part of the picture: a broken one is none, as in Detectron2
        return 1


def _orientation_follows_pixels(file: IO[bytes]) -> bool:
    """Return whether a PNG may give its orientation after its pixels, where Pillow looks late."""
    file.seek(8)
    pixels_seen = False
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        end = file.tell() + length + 4  # a checksum ends each chunk
        if kind == b"IDAT":
            pixels_seen = True
        elif pixels_seen and kind == b"eXIf":
            return True
        elif pixels_seen and kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword = file.read(min(length, 32))
            if keyword.startswith((b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")):
                return True
        file.seek(end)
    return False


def _scaled(image: Image.Image) -> Image.Image:
    """Scale grey values of more than 8 bits to 8; those below 0, and what is no number, are 0."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    ranges = _RANGES if image.mode == "F" else _RANGES[1:]
    # As float32, in which the greatest int32 is rounded up: NumPy 1 would compare in float64.
    top = next((r for r in ranges if values.max() <= np.float32(r)), None)
    if top is None:
        raise OSError(f"its values reach {values.max():g}: save it with values from 0 to 1")
    values *= 255 / top
    return Image.fromarray(values.clip(0, 255, out=values).round(out=values).astype(np.uint8))


def _varies(image: Image.Image) -> bool:
    """Return whether there are several values in a channel of an image."""
    pixels = np.asarray(image).reshape(image.height * image.width, -1)
    return bool((pixels != pixels[0]).any())

"""The one way an image file becomes an array, and the one list of suffixes of image files."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
from detectron2.data.detection_utils import read_image
from detectron2.utils.file_io import PathManager
from PIL import Image

from ...errors import UserError

# In this order of preference where a folder holds several images of one name.
IMAGE_SUFFIXES: tuple[str, ...] = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif"),
)

_EXIF_ORIENTATION = 0x0112


def read_bgr(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read an image as Detectron2's mappers do: EXIF orientation applied, transparency dropped.

    The one difference is that grey images of 16 bits are scaled to 8. Detectron2 cuts their values
    off at 255, which leaves them white.

    Args:
        path: of any format that Pillow reads, local or an address that Detectron2's PathManager
            knows; of an animation the first frame is taken.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        UserError: the file is missing or cannot be read; names it.
    """
    path = os.fspath(path)
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            is_deep = image.mode == "I" or image.mode.startswith("I;16")
        if not is_deep:
            return np.ascontiguousarray(read_image(path, "BGR"))
        grey = read_image(path, None).astype(np.float64)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except Exception as error:  # a damaged file raises whatever its bytes happen to say
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} cannot be read as an image ({reason})") from error
    if grey.max() > 255:
        grey = grey / 257  # 65535 becomes 255
    return np.repeat(grey.clip(0, 255).round().astype(np.uint8)[:, :, None], 3, axis=2)


def read_image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read the size of an image from its header, which is quick.

    Args:
        path: of the image file.

    Returns:
        (width, height) in pixels of the image as :func:`read_bgr` returns it, that is, with its
        EXIF orientation applied.

    Raises:
        UserError: the file is not an image.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            lies_on_its_side = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as an image ({error})") from error
    return (height, width) if lies_on_its_side else (width, height)

"""Pictures as they lie on a disk: finding them, reading every kind, naming what is made of them."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from detectron2.data.detection_utils import read_image
from PIL import Image

from ..errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif")
_VIDEO_EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def read_bgr(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read a picture as the host does for training: EXIF orientation applied, alpha dropped.

    Grey pictures of 16 bits, which the host turns white, are scaled to 8.

    Args:
        path: of any format that Pillow reads; of an animation the first frame is taken.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        UserError: the file is missing or cannot be read; names it.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}")
    try:
        with Image.open(path) as image:
            deep = image.mode == "I" or image.mode.startswith("I;16")
        if not deep:
            return np.ascontiguousarray(read_image(str(path), "BGR"))
        grey = read_image(str(path), None).astype(np.float64)
    except Exception as e:  # a damaged file raises whatever its bytes happen to say
        reason = str(e).partition("\n")[0] or type(e).__name__
        raise UserError(f"{path} cannot be read as a picture ({reason})") from e
    if grey.max() > 255:
        grey = grey / 257  # 65535 becomes 255
    return np.repeat(grey.clip(0, 255).round().astype(np.uint8)[:, :, None], 3, axis=2)


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Files that are meant by names of files, folders and patterns.

    Args:
        inputs: a file; a folder, whose pictures are taken but not those of its subfolders; or a
            pattern such as ``"photos/**/*.jpg"``.

    Returns:
        each file once, in the order of the inputs, those of one input sorted.

    Raises:
        UserError: an input means no picture, or a video.
    """
    found: dict[Path, None] = {}
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in EXTENSIONS)
            if not files:
                raise UserError(
                    f"the folder {name} holds no pictures ({', '.join(EXTENSIONS)}); those of "
                    f"subfolders are found with '{path}/**/*.jpg'"
                )
        elif path.suffix.lower() in _VIDEO_EXTENSIONS:
            raise UserError(f"{name} is a video: give it with --video")
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
    """A name for what is made of each file, no two the same on any file system.

    Args:
        paths: different files.

    Returns:
        the file's name without extension; where several have it, with their folders, as far as
        these differ: "a__001" and "b__001"; where that is not enough, with the extension.
    """
    common = Path(os.path.commonpath([p.absolute().parent for p in paths])) if paths else Path()
    relative = [path.absolute().relative_to(common) for path in paths]
    choices = [
        [r.stem for r in relative],
        ["__".join(r.with_suffix("").parts) for r in relative],
        ["__".join(r.parts) for r in relative],
    ]
    # Some file systems ignore case.
    counts = [Counter(name.lower() for name in names) for names in choices]
    names: list[str] = []
    taken: set[str] = set()
    for options in zip(*choices, strict=True):
        unique = [n for n, c in zip(options, counts, strict=True) if c[n.lower()] == 1]
        name = next((n for n in unique if n.lower() not in taken), options[-1])
        number = 2
        while name.lower() in taken:
            name, number = f"{options[-1]}_{number}", number + 1
        taken.add(name.lower())
        names.append(name)
    return names


def check_overwrites(output: Path, names: Sequence[str], inputs: Sequence[Path]) -> None:
    """Make sure that nothing is written over what is read.

    Args:
        output: folder that is written to.
        names: of the files that are written.
        inputs: files that are read.

    Raises:
        UserError: one of them is both.
    """
    existing = {path.resolve() for path in inputs}
    for name in names:
        if (output / name).resolve() in existing:
            raise UserError(
                f"{output / name} is read, and would be written: give another folder as --output"
            )

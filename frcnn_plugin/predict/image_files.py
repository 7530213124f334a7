"""Image files as users name them: finding them, and naming what is made of them."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..data.loading.image_reader import IMAGE_SUFFIXES
from ..errors import UserError

_VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Find the files that are meant by names of files, folders and patterns.

    Args:
        inputs: a file; a folder, whose images are taken but not those of its subfolders; or a
            pattern such as ``"photos/**/*.jpg"``.

    Returns:
        each file once, in the order of the inputs, those of one input sorted.

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
    """Name what is made of each file, no two the same on any file system.

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

"""The files of one VOC image set: its list of ids, its images, its annotations."""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import log_first_n

from ...errors import UserError
from ..loading.image_reader import IMAGE_SUFFIXES

_EXAMPLES = 3  # how many a message gives
_ID_AND_FLAG = re.compile(r"(.*\S)\s+(-1|0|1)")


def read_image_ids(path: Path) -> list[str]:
    """Read an ``ImageSets/Main`` file.

    Args:
        path: the text file: one image id per line; blank lines are skipped, and so is the second
            column (-1, 0 or 1) of the per-class files.

    Returns:
        The ids, in the order of the file.

    Raises:
        UserError: if the file is missing or an id occurs twice.
    """
    if not path.is_file():
        raise UserError(f"missing {path}: one image id per line, without extension")
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    lines = [line for line in lines if line]
    flagged = [_ID_AND_FLAG.fullmatch(line) for line in lines]
    # Only if every line has a flag: an id may hold blanks ("frame 1").
    ids = [match.group(1) for match in flagged if match]
    if len(ids) < len(lines):
        ids = lines
    repeated = [image_id for image_id, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(
            f"{path}: {len(repeated)} image ids occur more than once "
            f"({examples(repeated)}); remove the repeated lines"
        )
    return ids


def index_images(folder: Path, *, subfolders: bool = False) -> dict[str, str]:
    """Map image id to file name, reading the folder once (quicker than a look per image).

    Args:
        folder: the ``JPEGImages`` folder.
        subfolders: search them, too, but for hidden ones; an id then is ``"night/000005"``.

    Returns:
        ``{"000005": "000005.jpg"}``; where an id has several images, the suffix that comes first
        in ``IMAGE_SUFFIXES`` counts.

    Raises:
        UserError: if the folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"missing {folder}: the folder of the images")
    found: dict[str, str] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [entry for entry in folders if subfolders and not entry.startswith(".")]
        below = os.path.relpath(parent, folder)
        prefix = "" if below == "." else f"{Path(below).as_posix()}/"
        for suffix in reversed(IMAGE_SUFFIXES):  # so that the first one wins
            matching = (entry for entry in names if entry.lower().endswith(suffix))
            found.update({prefix + os.path.splitext(e)[0]: prefix + e for e in matching})
    return found


def find_image(
    folder: Path, image_id: str, filename: str, image_names: dict[str, str]
) -> Path | None:
    """Find the image of an id.

    Args:
        folder: the ``JPEGImages`` folder.
        image_id: the id; may name a sub-folder ("night/000005").
        filename: the XML's ``<filename>``, used where no image is named after the id; may be "".
        image_names: what ``index_images`` returned.

    Returns:
        Path of the image, None if there is none.
    """
    if image_id in image_names:
        return folder / image_names[image_id]
    candidates = [f"{image_id}{suffix}" for suffix in IMAGE_SUFFIXES] if "/" in image_id else []
    # Some writers put a whole path, of another system, into <filename>.
    last = filename.replace("\\", "/").rpartition("/")[2]
    for candidate in [*candidates, filename, last]:
        if candidate and (folder / candidate).is_file():
            return folder / candidate
    return None


def has_annotation_files(folder: Path, ids: Sequence[str], title: str) -> bool:
    """Say whether the images of a split have annotation files.

    Args:
        folder: the ``Annotations`` folder.
        ids: the image ids of the split.
        title: data-set name for messages.

    Returns:
        True if every image has one. False, with a warning, if none has: a test set whose answers
        are not public.

    Raises:
        UserError: if some have one and some have not.
    """
    missing = [image_id for image_id in ids if not (folder / f"{image_id}.xml").is_file()]
    if not missing:
        return True
    if len(missing) < len(ids):
        raise UserError(
            f"{title}: {len(missing)} of {len(ids)} images have no annotation file: missing "
            f"{folder / missing[0]}.xml{' and others' if len(missing) > 1 else ''}. An image "
            f"without objects needs an XML without <object>"
        )
    warn_once(f"{title}: no image has an annotation file in {folder}; all count as empty")
    return False


def raise_missing_images(missing: Sequence[str], folder: Path, total: int) -> None:
    """Raise a ``UserError`` that names the missing images, if there are any.

    Args:
        missing: ids without an image.
        folder: the ``JPEGImages`` folder.
        total: number of images in the split.
    """
    if not missing:
        return
    text = f"{len(missing)} of {total} images are not in {folder} ({examples(missing)})"
    if missing[0].lower().endswith((*IMAGE_SUFFIXES, ".xml")):
        text += "; write the ids in ImageSets/Main without the extension"
    else:
        text += f"; looked for {', '.join(IMAGE_SUFFIXES)} and the XML's <filename>"
    raise UserError(text)


def examples(items: Sequence[str]) -> str:
    """Join the first few of ``items``, with dots if there are more."""
    return ", ".join(items[:_EXAMPLES]) + (", ..." if len(items) > _EXAMPLES else "")


def warn_once(message: str) -> None:
    """Warn once per process: the same set is read for checking, for training, for evaluation."""
    log_first_n(logging.WARNING, message, n=1, name=__name__, key="message")

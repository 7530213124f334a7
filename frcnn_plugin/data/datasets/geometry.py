"""Boxes and sizes that annotation files give, held against the images: one rule for XML and COCO.

Boxes are continuous XYXY_ABS, sizes (width, height) in pixels, throughout.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import UserError
from ..loading.image_reader import image_header
from .arguments import examples

Box = tuple[float, float, float, float]
Size = tuple[int, int]

# A box that leaves its image by less is rounded; clipping it is not worth a word.
_ROUNDING = 1.0  # pixels
# A side of which less than this, and less than half of it, lies inside the image: nothing to see.
_VISIBLE = 1.0  # pixels
# A size that is given wrong by as much is a slip: the boxes are for this image.
_MISCOUNTED = 2  # pixels
# No data set has all its boxes in this corner: its coordinates are fractions of the image.
_FRACTIONS = 2.0  # pixels

# What may be found, as it follows the count in a message.
DROPPED = "boxes are dropped"
CLIPPED = "boxes leave their image and are clipped"
_TURNED = (
    "images are turned by the EXIF orientation in their files, but their boxes are for the picture "
    "as it is stored"
)
_DIFFERING = "images are not of the size that their annotations are for"
_WRONG_TAG = (
    "images have another size than their annotations say, which is used, for their boxes fit it"
)
_UNSAID = (
    "images are turned or mirrored by the EXIF orientation in their files, as viewers do; if their "
    "boxes are for the picture as it is stored, take the orientation out (exiftool -Orientation= "
    "FILE)"
)
_FIXES = {
    _TURNED: (
        "Take the orientation out of these files (exiftool -Orientation= FILE), or annotate them "
        "as viewers show them"
    ),
    _DIFFERING: ("Use the images that were annotated, or scale the boxes and correct the sizes"),
}


def unreadable(entries: Iterable[dict[str, Any]]) -> list[str]:
    """Return the reasons of the entries that are marked by :meth:`SizeFindings.mark`."""
    return [entry["unreadable"] for entry in entries if "unreadable" in entry]


def refuse_unreadable(name: str, reasons: Sequence[str], total: int) -> None:
    """Raise a UserError if ``reasons`` says that some of the ``total`` images cannot be used.

    Loading a set only warns of them: ``DATALOADER.ON_BAD_IMAGE`` may say to go on without.
    """
    if reasons:
        raise UserError(
            f"{name}: {_unreadable(reasons, total)}. Copy or download them again, take them out of "
            f"the set, or go on without them: DATALOADER.ON_BAD_IMAGE skip"
        )


def _unreadable(reasons: Sequence[str], total: int) -> str:
    return f"{len(reasons):,} of {total:,} images cannot be used: {examples(reasons)}"


def fit_box(box: Box, size: Size) -> tuple[Box | None, str]:
    """Clip a box, whatever the file gives, to an image of ``size``.

    Return what of it lies inside, None if that is nearly nothing; and what was wrong with it, "" if
    nothing or only rounding.
    """
    (x1, y1, x2, y2), (width, height) = box, size
    if not (math.isfinite(x1 + x2) and math.isfinite(y1 + y2)):
        return None, "a coordinate is missing or not a finite number"
    if x2 <= x1 or y2 <= y1:
        return None, "it has no width or height"
    if x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height:
        return box, ""
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    for low, high, side in ((inside[0], inside[2], x2 - x1), (inside[1], inside[3], y2 - y1)):
        if high - low < min(_VISIBLE, side / 2):
            return None, "it lies outside the image"
    beyond = max(-x1, -y1, x2 - width, y2 - height)
    return inside, "it leaves the image" if beyond >= _ROUNDING else ""


def _all_fit(boxes: Sequence[Box], size: Size) -> bool:
    return all(not fit_box(box, size)[1] for box in boxes)


@dataclass
class _Findings:
    """What was found in one data set, in words, by kind; and in how many boxes or images."""

    total: int = 0
    found: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def _in_words(self, *kinds: str) -> str:
        return "; ".join(
            f"{len(self.found[kind]):,} of {self.total:,} {kind}: {examples(self.found[kind])}"
            for kind in kinds
            if kind in self.found
        )


@dataclass
class BoxFindings(_Findings):
    """Fits the boxes of one data set into their images, and collects what was wrong with them."""

    in_corner: int = 0

    def fit(self, box: Box, size: Size, name: str, given: str) -> Box | None:
        """Return the part of a box inside its image, or None if it is to be dropped.

        Messages have ``name``, that of file and object, and ``given``, what the file says.
        """
        self.total += 1
        fitted, problem = fit_box(box, size)
        if problem:
            kind = DROPPED if fitted is None else CLIPPED
            self.found[kind].append(f"{name}: {problem} ({given})")
        if box[2] <= _FRACTIONS and box[3] <= _FRACTIONS and max(size) > 2 * _FRACTIONS:
            self.in_corner += 1
        return fitted

    def report(self, where: str) -> str:
        """Say what was found, "" if nothing.

        Raises:
            UserError: the coordinates are fractions of the image; it begins with ``where``.
        """
        if self.in_corner == self.total > 0:
            raise UserError(
                f"{where}: no coordinate of its {self.total} boxes is above {_FRACTIONS:.0f}: they "
                f"seem to be fractions of the image; multiply them by its width and height"
            )
        return self._in_words(DROPPED, CLIPPED)


@dataclass
class SizeFindings(_Findings):
    """Compares the sizes that the annotations of one data set give with the headers of its images.

    An image is read as viewers show it, turned as its EXIF orientation says. Boxes that were drawn
    on the pixels as they are stored do not fit it then.
    """

    unreadable: dict[str, str] = field(default_factory=dict)  # file -> what is wrong with it

    def size_of(
        self, image: str | os.PathLike[str], said: Size, boxes: Sequence[Box] | None
    ) -> Size:
        """Return the size of an image as it will be read, and note how it compares.

        Args:
            image: its file.
            said: what its annotation says; 0 where it says nothing.
            boxes: of its objects, by which a wrong size may be told from wrong boxes; None: any
                other size is wrong, because nobody can correct it.

        Returns:
            Of a file that is missing or no image, which is noted in ``unreadable``: the size that
            its annotation says or, failing that, one that holds its boxes.
        """
        self.total += 1
        try:
            width, height, orientation = image_header(image)
        except UserError as error:
            self.unreadable[os.fspath(image)] = str(error)
            corners = [box[2:] for box in boxes or () if math.isfinite(sum(box))]
            right, bottom = (math.ceil(max(side)) for side in zip((1, 1), *corners, strict=True))
            return said if all(said) else (right, bottom)
        size, stored, name = (width, height), (height, width), os.path.basename(image)
        on_its_side = orientation >= 5
        if not all(said) and boxes and on_its_side and not _all_fit(boxes, size):
            said = stored if _all_fit(boxes, stored) else said
        if not all(said) or said == size:
            # Where width and height are exchanged, a size that is right says that boxes are.
            if orientation > 1 and not (on_its_side and all(said) and width != height):
                self.found[_UNSAID].append(f"{name} (orientation {orientation})")
            return size
        text = f"{name} is {width}x{height}, its annotation says {said[0]}x{said[1]}"
        is_slip = (
            max(abs(said[0] - width), abs(said[1] - height)) <= _MISCOUNTED
            or (said == stored and not on_its_side)
            or not boxes
            or not _all_fit(boxes, said)
        )
        if boxes is not None and is_slip and _all_fit(boxes, size):
            self.found[_WRONG_TAG].append(text)
        elif said == stored and on_its_side:
            self.found[_TURNED].append(f"{text} (orientation {orientation})")
        else:
            self.found[_DIFFERING].append(text)
        return size

    def mark(self, image: str) -> dict[str, str]:
        """Return what an entry needs beside its size: "unreadable" with the reason, or nothing."""
        return {"unreadable": self.unreadable[image]} if image in self.unreadable else {}

    def report(self, where: str) -> str:
        """Say what was found, "" if nothing.

        Raises:
            UserError: the boxes of an image are for another size than it has; or none is an image.
                It begins with ``where``.
        """
        reasons = list(self.unreadable.values())
        if len(reasons) == self.total > 0:
            raise UserError(f"{where}: {_unreadable(reasons, self.total)}")
        for kind, fix in _FIXES.items():
            if kind in self.found:
                raise UserError(f"{where}: {self._in_words(kind)}. {fix}")
        parts = [_unreadable(reasons, self.total)] if reasons else []
        return "; ".join(filter(None, [*parts, self._in_words(_WRONG_TAG, _UNSAID)]))

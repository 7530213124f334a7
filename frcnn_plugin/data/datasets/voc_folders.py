"""The files of a VOC-format data set: XML files, images and lists, and what belongs together."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from ...errors import UserError
from ..loading.image_reader import IMAGE_SUFFIXES
from .arguments import examples, warn_once
from .voc_xml import read_annotation

_ID_AND_FLAG = re.compile(r"(.*\S)\s+(-1|0|1)")
_PATH = re.compile(r"(\.{0,2}|[A-Za-z]:)[/\\]")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def files_below(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """List files in and below a folder, by their names from there, sorted folder by folder.

    Hidden ones, which systems leave, are skipped. Linked folders are followed, but none is read
    twice.

    Args:
        folder: nothing is found if it does not exist.
        suffixes: in lower case; files may have them in any.
    """
    found: list[str] = []
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        visible = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in visible if os.path.islink(f"{parent}/{name}")]
        folders[:] = [*(name for name in visible if name not in links), *links]
        below = os.path.relpath(parent, folder).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        found += [
            prefix + name
            for name in names
            if name.lower().endswith(suffixes) and not name.startswith(".")
        ]
    return sorted(found, key=lambda name: name.split("/"))


def _tails(path: str) -> Iterator[str]:
    """Yield a path of any system, then the same without its first folder, and so on."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    for start in range(len(parts)):
        yield "/".join(parts[start:])


class VOCFolders:
    """The folder of the XML files and that of the images of a data set.

    An image's id is the name of its XML file from the folder on, without ``.xml``.
    """

    def __init__(self, annotations: Path, images: Path) -> None:
        """Look which files there are.

        Args:
            annotations: folder of the XML files; need not exist.
            images: folder of the images.

        Raises:
            UserError: there is no folder of images.
        """
        if not images.is_dir():
            raise UserError(f"missing {images}: the folder of the images")
        self.annotations, self.images = annotations, images
        self._xml = {name[: -len(".xml")]: name for name in files_below(annotations, (".xml",))}

    @property
    def ids(self) -> list[str]:
        """The ids of all XML files, in their order."""
        return list(self._xml)

    def xml(self, image_id: str) -> Path | None:
        """Return the XML file of an image, None if there is none."""
        return self.annotations / self._xml[image_id] if image_id in self._xml else None

    @cached_property
    def _images(self) -> Mapping[str, list[str]]:
        """The images by their name without suffix."""
        found: dict[str, list[str]] = {}
        for name in files_below(self.images, IMAGE_SUFFIXES):
            found.setdefault(os.path.splitext(name)[0], []).append(name)
        return found

    @cached_property
    def _images_by_any_name(self) -> Mapping[str, list[str]]:
        """The images by every end of their path, with and without suffix, in lower case."""
        found: dict[str, list[str]] = {}
        for names in self._images.values():
            for name in names:
                for tail in _tails(name.lower()):
                    found.setdefault(tail, []).append(name)
                    found.setdefault(os.path.splitext(tail)[0], []).append(name)
        return found

    def _images_of(self, image_id: str) -> list[str]:
        """List the images that are named as an id, which may include the suffix."""
        if image_id in self._images:
            return self._images[image_id]
        same = self._images.get(os.path.splitext(image_id)[0], ())
        return [name for name in same if name == image_id]

    def image(self, image_id: str, filename: str = "") -> str | None:
        """Find the image that is named as its id or, failing that, as its XML file says.

        Args:
            image_id: of the image.
            filename: the XML file's ``<filename>``, which may be a path of another system, lack the
                suffix, or differ in capitals.

        Returns:
            The path; None if there is no image, or several, between which nothing decides.
        """
        name = self._choose(self._images_of(image_id), filename)
        if name is None and filename:
            folder = os.path.dirname(image_id)
            for tail in _tails(filename):
                # Of equal names, the one in the folder of the XML file.
                for key in (f"{folder}/{tail}", tail):
                    names = self._images_by_any_name.get(key.lower(), ())
                    name = name or self._choose(names, filename)
        return None if name is None else f"{self.images}/{name}"

    @staticmethod
    def _choose(names: Sequence[str], filename: str) -> str | None:
        if len(names) < 2:
            return names[0] if names else None
        # One name with several suffixes: what the XML says, else the first of the list.
        if len({os.path.splitext(name)[0].lower() for name in names}) > 1:
            return None
        suffix = os.path.splitext(filename)[1].lower()
        order = [suffix, *IMAGE_SUFFIXES]
        return min(names, key=lambda name: order.index(os.path.splitext(name)[1].lower()))

    def images_without_xml(self) -> list[str]:
        """List the images that no XML file is for."""
        lacking = {name for names in self._images.values() for name in names}
        for image_id in self._xml:
            filename = ""
            if len(self._images_of(image_id)) != 1:
                filename = read_annotation(self.annotations / self._xml[image_id]).filename
            image = self.image(image_id, filename) or ""
            lacking.discard(image.removeprefix(f"{self.images}/"))
        return sorted(lacking)

    def read_list(self, path: Path) -> list[str]:
        """Read the image ids of a list, in its order: a file of ``ImageSets/Main``, for example.

        Args:
            path: a text file with one image per line. Skipped are blank lines, the second column
                (-1, 0 or 1) of VOC's per-class files, and what goes beyond an id: the suffix, and
                the folders of a path. An image that is listed twice is taken once, with a warning.

        Raises:
            UserError: if the file is missing or no text.
        """
        if not path.is_file():
            raise UserError(f"missing {path}: one image id per line")
        try:
            data = path.read_bytes()
            text = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not readable as text in UTF-8 ({error})") from error
        lines = [line.strip() for line in text.splitlines()]
        lines = [line for line in lines if line]
        flagged = [_ID_AND_FLAG.fullmatch(line) for line in lines]
        # Only if every line has a flag: an id may hold blanks ("frame 1").
        ids = [match.group(1) for match in flagged if match]
        counts = Counter(map(self._id_of, ids if len(ids) == len(lines) else lines))
        repeated = [image_id for image_id, count in counts.items() if count > 1]
        if repeated:
            warn_once(
                f"{path}: {len(repeated)} image ids occur more than once ({examples(repeated)}); "
                f"each is taken once"
            )
        return list(counts)

    def _id_of(self, line: str) -> str:
        """Return the id that a line of a list names, by whatever it is called there."""
        if line in self._xml:
            return line
        stem, suffix = os.path.splitext(line)
        if suffix.lower() not in (*IMAGE_SUFFIXES, ".xml"):
            stem = line
        known: Mapping[str, object] = self._xml or self._images
        if stem in known or not _PATH.match(stem):
            return stem
        # Of the machine where the list was made.
        return next((tail for tail in _tails(stem) if tail in known), stem)


def choose(ids: Sequence[str], fraction: float, after: float = 0.0) -> set[str]:
    """Choose a fixed share of ``ids``, by the order of their SHA-256, rounded to whole ones.

    Args:
        ids: to choose from; their order does not matter.
        fraction: the share.
        after: the share that comes before it in that order, which another set takes.
    """
    ordered = sorted(ids, key=lambda image_id: hashlib.sha256(image_id.encode()).hexdigest())
    return set(ordered[round(after * len(ids)) : round((after + fraction) * len(ids))])

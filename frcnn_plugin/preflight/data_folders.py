"""Where data sets lie, and where they seem to lie if a path is one level off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog

from ..data.datasets.builtin import OFFICIAL_IMAGE_COUNTS
from ..data.datasets.roots import datasets_root, root_in_words
from ..data.datasets.voc import VOCSource
from .finding import Finding, ok, warning

_MOST_FOLDERS = 200  # that are looked into below one folder
_SUBJECT = "data"


def check_data_root() -> Iterator[Finding]:
    """What lies below ``$DETECTRON2_DATASETS``, without a config."""
    root = datasets_root()
    found = []
    for name, official in OFFICIAL_IMAGE_COUNTS.items():
        source: Any = DatasetCatalog[name]
        lists = [c / "ImageSets" / "Main" / f"{source.split}.txt" for c in source.candidates()]
        file = next((f for f in lists if f.is_file()), None)
        if file is not None:
            number = sum(bool(line.strip()) for line in file.read_text().splitlines())
            if number == official:
                found.append(f"{name} ({number} images)")
            else:
                yield warning(_SUBJECT, f"{name}: {file} lists {number} images, not {official}")
    found += [
        f.name
        for f in sorted((root / "coco" / "annotations").glob("instances_*.json"))
    ]  # fmt: skip
    if found:
        yield ok(_SUBJECT, f"DETECTRON2_DATASETS ({root_in_words()}) has {', '.join(found)}")
        return
    fix = suggest_folder("voc07_trainval") or (
        "For VOC: export DETECTRON2_DATASETS=<folder that holds VOC2007 or VOCdevkit>"
    )
    yield warning(_SUBJECT, f"no VOC or COCO in DETECTRON2_DATASETS ({root_in_words()})", fix)


def suggest_folder(name: str) -> str:
    """What to type if the files of a VOC-format set lie a level above or below where they should.

    Args:
        name: registered name; unknown ones are none of VOC's.

    Returns:
        a sentence; "" if nothing was found near, or nothing is amiss.
    """
    source: Any = DatasetCatalog[name] if name in DatasetCatalog else None
    if not isinstance(source, VOCSource):
        return ""
    wanted = Path("ImageSets", "Main", f"{source.split}.txt")
    if any((folder / wanted).is_file() for folder in source.candidates()):
        return ""
    if source.official:
        for folder in _near(datasets_root()):
            for inner in ("", f"VOC{source.year}", f"VOCdevkit/VOC{source.year}"):
                place = folder / inner
                if place.name == f"VOC{source.year}" and (place / wanted).is_file():
                    return (
                        f"It seems to be one level off: export DETECTRON2_DATASETS={place.parent}"
                    )
        return ""
    for folder in _near(source.candidates()[0]):
        if (folder / wanted).is_file():
            return f"It seems to be one level off: root: {folder}"
    return ""


def _near(folder: Path) -> Iterator[Path]:
    """The folder, three above it, and two levels below it."""
    folder = folder.absolute()
    yield folder
    yield from folder.parents[:3]
    below = list(_folders_in([folder]))
    yield from below
    yield from _folders_in(below)


def _folders_in(folders: Iterable[Path]) -> Iterator[Path]:
    number = 0
    for folder in folders:
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            continue
        for entry in entries:
            if entry.is_dir():
                yield entry
                number += 1
                if number >= _MOST_FOLDERS:
                    return

"""Where data sets are: below ``$DETECTRON2_DATASETS``, or a level off what was given."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog

from ..data.datasets.arguments import datasets_root, root_in_words
from ..data.datasets.voc import OFFICIAL_IMAGE_COUNTS, VOCSource
from ..data.datasets.voc_files import split_file
from .finding import Finding, Subject

_DATA = Subject("data")
_MOST_FOLDERS = 200  # that are looked into below one folder


def check_data_root() -> Iterator[Finding]:
    """Say which data sets lie below ``$DETECTRON2_DATASETS``."""
    found = []
    for name in OFFICIAL_IMAGE_COUNTS:
        source: Any = DatasetCatalog[name]
        lists = [split_file(folder, source.split) for folder in source.candidates()]
        file = next((f for f in lists if f.is_file()), None)
        if file is not None:
            number = sum(bool(line.strip()) for line in file.read_text().splitlines())
            found.append(f"{name} ({number} images)")
    annotations = datasets_root() / "coco" / "annotations"
    found += [file.name for file in sorted(annotations.glob("instances_*.json"))]
    if found:
        yield _DATA.ok(f"DETECTRON2_DATASETS ({root_in_words()}) has {', '.join(found)}")
        return
    fix = suggest_folder("voc07_trainval") or (
        "For VOC: export DETECTRON2_DATASETS=<folder that holds VOC2007 or VOCdevkit>"
    )
    yield _DATA.warning(f"no VOC or COCO in DETECTRON2_DATASETS ({root_in_words()})", fix)


def suggest_folder(name: str) -> str:
    """Say what to type if a VOC-format set lies a level above or below where it should.

    "" if nothing was found nearby, or nothing is wrong, or the set is of another format.
    """
    source: Any = DatasetCatalog[name] if name in DatasetCatalog else None
    if not isinstance(source, VOCSource):
        return ""
    if any(split_file(folder, source.split).is_file() for folder in source.candidates()):
        return ""
    if not source.official:
        near = _near(source.candidates()[0])
        nearby = (folder for folder in near if split_file(folder, source.split).is_file())
        folder = next(nearby, None)
        return f"It seems to be one level off: root: {folder}" if folder else ""
    year = f"VOC{source.year}"
    for folder in _near(datasets_root()):
        for place in (folder, folder / year, folder / "VOCdevkit" / year):
            if place.name == year and split_file(place, source.split).is_file():
                return f"It seems to be one level off: export DETECTRON2_DATASETS={place.parent}"
    return ""


def _near(folder: Path) -> Iterator[Path]:
    """Yield the folder, three above it, and two levels below it."""
    folder = folder.absolute()
    yield from (folder, *folder.parents[:3])
    for pattern in ("*/", "*/*/"):
        yield from islice(folder.glob(pattern), _MOST_FOLDERS)

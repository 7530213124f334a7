"""Class names that occur in a folder of VOC XML files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from ..errors import UserError
from .annotation import read_annotation

_PROGRESS_BAR_FROM = 2000  # files; fewer are read in about a second


def is_background(class_name: str) -> bool:
    """Whether a class name stands for the background, which Detectron2 does not list."""
    return class_name.strip().lower().strip("_") == "background"


def xml_files(folder: Path) -> list[Path]:
    """All XML files in and below `folder`, sorted; hidden ones, which systems leave, are not."""
    return sorted(
        file
        for file in folder.rglob("*.xml")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


@lru_cache(maxsize=16)
def classes_in_folder(folder: Path) -> tuple[str, ...]:
    """The class names of all XML files in and below a folder, sorted; read once per process.

    Raises:
        UserError: there are none, a file is not readable, or background is among them.
    """
    files = xml_files(folder)
    hide_bar = None if len(files) > _PROGRESS_BAR_FROM else True
    names: set[str] = set()
    for file in tqdm(files, desc=f"class names in {folder}", unit="file", disable=hide_bar):
        names.update(obj.name for obj in read_annotation(file).objects)
    if not names:
        raise UserError(
            f"classes: auto found no object in the {len(files)} XML files in {folder}: is it the "
            f"right folder?"
        )
    background = [name for name in names if is_background(name)]
    if background:
        raise UserError(
            f"classes: auto found objects of class '{background[0]}' in {folder}: background is "
            f"not annotated; remove them, or list the classes"
        )
    return tuple(sorted(names))

"""Lists of class names: given by the user, or collected from a folder of VOC XML files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from ...errors import UserError
from .voc_instances import read_annotation

_PROGRESS_BAR_FROM = 2000  # files; fewer are read in about a second


def is_background(class_name: str) -> bool:
    """Say whether a class name stands for the background, which Detectron2 does not list."""
    return class_name.strip().lower().strip("_") == "background"


def xml_files(folder: Path) -> list[Path]:
    """List all XML files in and below ``folder``, sorted; not hidden ones, which systems leave."""
    return sorted(
        file
        for file in folder.rglob("*.xml")
        if not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


@lru_cache(maxsize=16)
def classes_in_folder(folder: Path) -> tuple[str, ...]:
    """Collect the class names of all XML files in and below a folder, sorted, once per process.

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


def check_classes(name: str, classes: object) -> tuple[str, ...]:
    """Check a class list.

    Args:
        name: data-set name, for messages.
        classes: what the user gave.

    Returns:
        The class names.

    Raises:
        UserError: unless ``classes`` is a non-empty sequence of distinct strings, background not
            among them.
    """
    given = f"data set '{name}': classes"
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise UserError(f"{given} must be a list of names, such as [cat, dog]; got {classes!r}")
    for entry in classes:
        if not isinstance(entry, str) or not entry.strip():
            raise UserError(
                f"{given} must hold names only; got {entry!r} (in YAML, quote a name that reads "
                f"as a number or as yes/no)"
            )
        if is_background(entry):
            raise UserError(f"{given} has '{entry}': background is not counted, leave it out")
    if not classes or len(set(classes)) < len(classes):
        raise UserError(f"{given} must be distinct and at least one; got {list(classes)}")
    return tuple(classes)

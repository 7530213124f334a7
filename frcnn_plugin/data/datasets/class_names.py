"""Class names as users and files give them: which are allowed, left out, or called otherwise."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...errors import UserError

_LONGEST = 1000  # characters of a class name; a file may hold anything


def is_background(class_name: str) -> bool:
    """Say whether a class name stands for the background, which Detectron2 does not list."""
    return class_name.strip().lower().strip("_") == "background"


def name_problem(class_name: str) -> str:
    """Say why a text cannot be a class name, "" if it can.

    Class names reach the terminal, the log and file names, where control characters do harm.
    """
    if not class_name.strip():
        return "is empty"
    if len(class_name) > _LONGEST:
        return f"has more than {_LONGEST:,} characters ({class_name[:20]!a}...)"
    if class_name.isprintable():
        return ""
    # Not all that is unprintable to Python is harmful: some scripts need joiners.
    bad = {"Cc", "Cs", "Zl", "Zp"}
    if any(unicodedata.category(character) in bad for character in class_name):
        return f"holds control characters ({class_name!a:.60})"
    return ""


@dataclass(frozen=True)
class ClassMap:
    """Which classes of the files are left out, and which go by another name."""

    ignore: tuple[str, ...] = ()  # their objects are left out, as if they were not annotated
    rename: tuple[tuple[str, str], ...] = ()  # (name in the files, to use); two to one are merged

    def used(self, names: Iterable[str]) -> dict[str, str]:
        """Map the names of the files that are used to what they are called."""
        renamed = dict(self.rename)
        return {name: renamed.get(name, name) for name in names if name not in self.ignore}

    def unknown(self, names: Iterable[str]) -> list[str]:
        """List the names to ignore or rename that are not among those of the files."""
        known = set(names)
        return [name for name in (*self.ignore, *dict(self.rename)) if name not in known]


AS_WRITTEN = ClassMap()


def check_classes(
    name: str, classes: object, ignore: object = (), rename: object = None
) -> tuple[tuple[str, ...], ClassMap]:
    """Check what a user says about the classes of data set ``name``; None is an empty list.

    Raises:
        UserError: ``classes`` is no list of distinct names without background, ``ignore`` no list
            of names, ``rename`` no mapping of them, or a name is in two of them.
    """
    where = f"data set '{name}':"
    listed = () if classes is None else _checked_names(f"{where} classes", classes)
    if classes is not None and not 0 < len(listed) == len(set(listed)):
        raise UserError(f"{where} classes must be distinct and at least one; got {classes!r}")
    if background := next(filter(is_background, listed), None):
        raise UserError(
            f"{where} classes has '{background}': background is not counted, leave it out"
        )
    ignored = _checked_names(f"{where} ignore", ignore)
    if not isinstance(rename, Mapping | None):
        raise UserError(
            f"{where} rename must map names of the files to others, such as {{kitten: cat}}; "
            f"got {rename!r}"
        )
    renamed = dict(rename or {})
    _checked_names(f"{where} rename", [*renamed, *renamed.values()])
    for key, names in (("classes", listed), ("rename", renamed)):
        if both := [text for text in ignored if text in names]:
            raise UserError(f"{where} '{both[0]}' is in both {key} and ignore")
    return listed, ClassMap(ignored, tuple(sorted(renamed.items())))


def _checked_names(given: str, names: object) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise UserError(f"{given} must be a list of names, such as [cat, dog]; got {names!r}")
    for entry in names:
        if not isinstance(entry, str) or not entry.strip():
            raise UserError(
                f"{given} must hold names only; got {entry!r} (in YAML, quote a name that reads "
                f"as a number or as yes/no)"
            )
        if problem := name_problem(entry):
            raise UserError(f"{given}: a name {problem}")
    return tuple(names)

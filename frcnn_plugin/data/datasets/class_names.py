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


def check_classes(name: str, classes: object) -> tuple[str, ...]:
    """Check the class list that a user gave for data set ``name``; None gives an empty one.

    Raises:
        UserError: unless ``classes`` is a non-empty sequence of distinct strings, background not
            among them.
    """
    if classes is None:
        return ()
    given = f"data set '{name}': classes"
    if not classes:
        raise UserError(f"{given} must be distinct and at least one; got {classes!r}")
    checked = _checked_names(given, classes)
    for entry in checked:
        if is_background(entry):
            raise UserError(f"{given} has '{entry}': background is not counted, leave it out")
    if len(set(checked)) < len(checked):
        raise UserError(f"{given} must be distinct and at least one; got {list(checked)}")
    return checked


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


@dataclass(frozen=True)
class ClassMap:
    """Which classes of the files are left out, and which go by another name.

    Attributes:
        ignore: names in the files whose objects are left out, as if they were not annotated.
        rename: (name in the files, name to use); two to one name merges them.
    """

    ignore: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, name: str, ignore: object = (), rename: object = None) -> ClassMap:
        """Make one of what a user gave for data set ``name``.

        Raises:
            UserError: ``ignore`` is no list of names, ``rename`` no mapping of them, or a name is
                in both.
        """
        given = f"data set '{name}':"
        ignored = _checked_names(f"{given} ignore", ignore or ())
        if rename is not None and not isinstance(rename, Mapping):
            raise UserError(
                f"{given} rename must map names of the files to others, such as {{kitten: cat}}; "
                f"got {rename!r}"
            )
        pairs = dict(rename or {})
        _checked_names(f"{given} rename", [*pairs, *pairs.values()])
        if both := [text for text in ignored if text in pairs]:
            raise UserError(f"{given} '{both[0]}' is in both ignore and rename")
        return cls(ignored, tuple(sorted(pairs.items())))

    def used(self, names: Iterable[str]) -> dict[str, str]:
        """Map the names of the files that are used to what they are called."""
        renamed = dict(self.rename)
        return {name: renamed.get(name, name) for name in names if name not in self.ignore}

    def unknown(self, names: Iterable[str]) -> list[str]:
        """List the names to ignore or rename that are not among those of the files."""
        known = set(names)
        return [name for name in (*self.ignore, *dict(self.rename)) if name not in known]


AS_WRITTEN = ClassMap()

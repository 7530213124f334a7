"""What every kind of data set is described by, its folder and its class names, and its messages."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import log_first_n

from ...errors import UserError

_EXAMPLES = 3  # how many a message gives


def datasets_root() -> Path:
    """Return ``$DETECTRON2_DATASETS`` as it is now; "datasets" in the current folder if unset."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def root_in_words() -> str:
    """Return the value of ``$DETECTRON2_DATASETS`` for messages, or what is used in its place."""
    if os.environ.get("DETECTRON2_DATASETS"):
        return os.environ["DETECTRON2_DATASETS"]
    return f"not set, so {datasets_root().absolute()} is used"


def resolve_root(root: str | os.PathLike[str]) -> Path:
    """Resolve a folder or file of a data set, which need not exist.

    Args:
        root: absolute, "~/...", "./..." or "../..." (from the current folder), or any other
            relative path (under ``$DETECTRON2_DATASETS``).
    """
    root = os.fspath(root)
    path = Path(root).expanduser()
    if path.is_absolute() or root in (".", "..") or root.startswith(("./", "../")):
        return path
    return datasets_root() / path


def is_background(class_name: str) -> bool:
    """Say whether a class name stands for the background, which Detectron2 does not list."""
    return class_name.strip().lower().strip("_") == "background"


def check_classes(name: str, classes: object) -> tuple[str, ...]:
    """Check the class list that a user gave for data set ``name``; None gives an empty one.

    Raises:
        UserError: unless ``classes`` is a non-empty sequence of distinct strings, background not
            among them.
    """
    if classes is None:
        return ()
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


def examples(items: Sequence[str]) -> str:
    """Join the first few of ``items``, with dots if there are more."""
    return ", ".join(items[:_EXAMPLES]) + (", ..." if len(items) > _EXAMPLES else "")


def warn_once(message: str) -> None:
    """Warn once per process: a set is read for the checks, for training and for evaluation."""
    log_first_n(logging.WARNING, message, n=1, name=__name__, key="message")

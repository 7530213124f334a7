"""What all data sets have in common: names and folders as users give them, messages, warnings."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import log_first_n
from tqdm import tqdm

from ...errors import UserError

_EXAMPLES = 3  # how many a message gives
_LONGEST = 500  # characters of each
_MANY = 2000  # files; fewer are read in about a second


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


def register_source(source: Any) -> bool:
    """Register ``source``, a dataclass that loads a data set; return False if the same is there.

    Raises:
        UserError: the name is taken, or the evaluator is not one of ``source.evaluators``.
    """
    if source.evaluator not in source.evaluators:
        raise UserError(
            f"data set '{source.name}': evaluator must be {' or '.join(source.evaluators)}; got "
            f"{source.evaluator!r}"
        )
    if source.name not in DatasetCatalog:
        DatasetCatalog.register(source.name, source)
        metadata = MetadataCatalog.get(source.name)
        metadata.set(**source.metadata())
        if source.classes:
            metadata.set(thing_classes=list(source.classes))
        return True
    existing: Any = DatasetCatalog[source.name]
    # Compared by value: the class object changes when the module is imported a second time.
    if is_dataclass(existing) and asdict(existing) == asdict(source):  # type: ignore[arg-type]
        return False
    what = "with other arguments" if is_dataclass(existing) else "by other code"
    raise UserError(f"data set '{source.name}' is already registered {what}; choose another name")


def objects_that_count(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the objects of an image that are trained on: no crowds, nor what is marked as one."""
    return [obj for obj in record.get("annotations", ()) if not obj.get("iscrowd", 0)]


def shown(text: str) -> str:
    """Return a text of a file as a message may show it: short, without control characters."""
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return short if short.isprintable() else ascii(short)


def examples(items: Sequence[str]) -> str:
    """Join the first few of ``items``, fit for a message, with dots if there are more."""
    return ", ".join(map(shown, items[:_EXAMPLES])) + (", ..." if len(items) > _EXAMPLES else "")


def warn_once(message: str) -> None:
    """Warn once per process: a set is read for the checks, for training and for evaluation."""
    log_first_n(logging.WARNING, message, n=1, name=__name__, key="message")


def progress(items: Sequence[Any], text: str, unit: str) -> Any:
    """Return ``items`` for a loop; with a progress bar on terminals if it will take long."""
    # tqdm's disable=None means: only on a terminal.
    return tqdm(items, desc=text, unit=unit, disable=None if len(items) > _MANY else True)

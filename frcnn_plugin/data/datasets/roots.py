"""Where data sets lie: ``$DETECTRON2_DATASETS``, looked at when it is needed."""

import os
from pathlib import Path


def datasets_root() -> Path:
    """Return ``$DETECTRON2_DATASETS`` as it is now; "datasets" in the current folder if unset."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def resolve_root(root: str) -> Path:
    """Resolve a data-set folder.

    Args:
        root: absolute, "~/...", "./..." or "../..." (from the current folder), or any other
            relative path (under ``$DETECTRON2_DATASETS``).

    Returns:
        The path, which need not exist.
    """
    path = Path(root).expanduser()
    if path.is_absolute() or root in (".", "..") or root.startswith(("./", "../")):
        return path
    return datasets_root() / path


def root_in_words() -> str:
    """Return the value of ``$DETECTRON2_DATASETS`` for messages, or what is used in its place."""
    if os.environ.get("DETECTRON2_DATASETS"):
        return os.environ["DETECTRON2_DATASETS"]
    return f"not set, so {datasets_root().absolute()} is used"

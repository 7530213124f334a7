"""The JSON file of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.environment import describe
from frcnn_plugin.errors import UserError

FILE = "benchmark.json"


def prepare_folder(folder: Path | None) -> None:
    """Make the output folder before anything is measured.

    Raises:
        UserError: it cannot be made.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--output {folder}: {e.strerror}") from e


def write_json(folder: Path | None, results: dict[str, Any]) -> None:
    """Write ``benchmark.json``, whole or not at all: environment and results."""
    if folder is None:
        return
    temporary = folder / f".{FILE}.partial"
    temporary.write_text(json.dumps({**describe(), **results}, indent=2, default=str) + "\n")
    os.replace(temporary, folder / FILE)

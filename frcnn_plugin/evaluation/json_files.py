"""JSON files that evaluations leave for the training report."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..atomic_files import write_text
from ..errors import UserError


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Writes a file, whole or not at all, and the folder that it is in."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content))


@contextmanager
def reading_json(path: str | os.PathLike[str], what: str, remedy: str = "") -> Iterator[Any]:
    """Gives the content of a file; what the ``with`` block stumbles over is the file's fault.

    Args:
        path: the file.
        what: it should hold, for the messages.
        remedy: words behind the message that it does not.

    Raises:
        UserError: for a missing, damaged or foreign file.
    """
    try:
        yield json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the {what}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} holds no {what} ({error}){remedy}") from error

"""Checkpoints that a killed process cannot spoil."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager


class AtomicCheckpointer(DetectionCheckpointer):
    """The host's checkpointer; a file appears, or replaces another, only when it is complete.

    The host writes into the final file, so a run killed in that moment leaves half a checkpoint, or
    an empty ``last_checkpoint``, and can no longer be resumed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Arguments of the host's class."""
        super().__init__(*args, **kwargs)
        self.path_manager: Any = _AtomicPaths(PathManager)


class _AtomicPaths:
    """A path manager whose files open for writing are temporary until they are closed."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        if "w" not in mode:
            return self._inner.open(path, mode, **kwargs)
        return _replacing(self._inner, path, mode, kwargs)


@contextmanager
def _replacing(inner: Any, path: str, mode: str, kwargs: dict[str, Any]) -> Iterator[IO[Any]]:
    temporary = f"{path}.partial"
    with inner.open(temporary, mode, **kwargs) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)

"""Checkpoints that a killed process cannot spoil."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager

from ..errors import UserError


class AtomicCheckpointer(DetectionCheckpointer):
    """The host's checkpointer; a file appears, or replaces another, only when it is complete.

    The host writes into the final file, so a run killed in that moment leaves half a checkpoint, or
    an empty ``last_checkpoint``, and can no longer be resumed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Arguments of the host's class."""
        super().__init__(*args, **kwargs)
        self.path_manager: Any = _AtomicPaths(PathManager)
        # Parts of the model that every file has to have weights of, and what to do if not.
        self.required_parts = {
            "backbone": "For training from scratch leave MODEL.WEIGHTS empty and set "
            "MODEL.BACKBONE.FREEZE_AT 0"
        }

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the host's.

        Raises:
            UserError: the file is missing or damaged; names it.
        """
        # A query ("?matching_heuristics=True") may follow the name.
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise UserError(f"there is no checkpoint {path}{self._advice()}")
        try:
            loaded: dict[str, Any] = super().load(path, *args, **kwargs)
        finally:
            # The host asserts that it is None, and leaves it behind when loading fails.
            self._parsed_url_during_load = None
        return loaded

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = super()._load_file(filename)
        except Exception as e:  # a damaged file raises whatever its bytes happen to say
            problem = (
                f"{filename} is damaged, or no checkpoint ({type(e).__name__}); a .pth or .pkl "
                "file of weights is needed"
            )
            raise UserError(f"{problem}{self._advice()}") from e
        return content

    def _load_model(self, checkpoint: Any) -> Any:
        """As the host's, which only logs when nothing fits and then goes on with random weights.

        Raises:
            UserError: not one weight of a required part is in the file.
        """
        found = list(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        missing = set(incompatible.missing_keys)
        for part, advice in self.required_parts.items():
            wanted = [n for n, _ in self.model.named_parameters() if n.startswith(f"{part}.")]
            if wanted and missing.issuperset(wanted):
                raise UserError(
                    f"MODEL.WEIGHTS: 0 of the {len(wanted)} weights of {part} were found in the "
                    f"file. It has {', '.join(found[:4])} ...; needed are {', '.join(wanted[:4])} "
                    f"... of the same shape. {advice}"
                )
        return incompatible

    def _advice(self) -> str:
        """How to go on without the file that a run would be resumed from."""
        if not (self.save_dir and self.has_checkpoint()):
            return ""
        last = os.path.join(self.save_dir, "last_checkpoint")
        others = sorted(f for f in os.listdir(self.save_dir) if f.endswith(".pth"))
        return (
            f". {last} names the file that a run is resumed from; write the name of another one "
            f"into it to go on from there ({', '.join(others) or 'there is none'})"
        )


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

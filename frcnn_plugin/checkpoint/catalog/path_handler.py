"""``frcnn://<name>``: a file of the catalog wherever Detectron2 takes a path."""

from __future__ import annotations

from typing import IO, Any

from detectron2.utils.file_io import PathHandler, PathManager

from ...errors import UserError
from .download import local_path
from .known_files import find

PREFIX = "frcnn://"


class CatalogHandler(PathHandler):
    """Gives the published file as it is; the loader converts it."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """Return the cached file, downloaded first if need be.

        Args:
            path: ``frcnn://<name>``.
            force: without effect: a name stands for fixed bytes.
            kwargs: of Detectron2; none is known here.

        Raises:
            UserError: unknown name, or the file cannot be had.
        """
        self._check_kwargs(kwargs)
        return str(local_path(find(path.removeprefix(PREFIX))))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        self._check_kwargs(kwargs)
        if mode not in ("r", "rb"):
            raise UserError(f"{path} can only be read, not opened with mode '{mode}'")
        return open(self._get_local_path(path), mode, buffering)


def register() -> None:
    """Make the prefix known to Detectron2; again does no harm."""
    PathManager.register_handler(CatalogHandler(), allow_override=True)

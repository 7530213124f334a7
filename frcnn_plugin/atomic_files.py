"""Files that appear, or replace others, only when they are complete.

A leaf: every part of the package writes files.
"""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from operator import methodcaller
from pathlib import Path
from typing import Any

from .errors import UserError

logger = logging.getLogger(__name__)

_UNSAFE = re.compile(r"""[/\\:*?"<>|~]|^[.\s]|\s$""")
_LONGEST_NAME = 100  # bytes: names put together of two, with affixes, stay below the usual 255

# No room, a limit of the system or the user, a broken or read-only disk.
_DISK = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.EROFS}


class CannotWriteError(UserError, OSError):
    """A file cannot be written: the disk is full, for example."""


@contextmanager
def replacing(
    path: str | os.PathLike[str], *, temporary: str | os.PathLike[str] | None = None
) -> Iterator[Path]:
    """Give a file to write beside `path`, and move it there if the ``with`` block succeeds.

    After an error the temporary file is removed, and what was at `path` is untouched. A killed
    process leaves the temporary file. A symbolic link at `path` is replaced, not followed.

    Args:
        path: the file; its folder must exist.
        temporary: the name until then, in the same folder. Default: a hidden name that no other
            writer has. Give a fixed one if only one process writes and the file is large: what a
            killed process leaves is then overwritten by the next.

    Yields:
        The path of the temporary file, which does not exist yet. The block has to write and close
        it.

    Raises:
        CannotWriteError: the file cannot be written or moved; says why.
    """
    path = Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # root could replace /dev/null
        raise CannotWriteError(f"{path} cannot be written: it is a device or pipe, not a file")
    if temporary is None:
        # The suffix comes last, so that nothing that looks for files by their suffix finds it.
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    temporary = Path(temporary)
    try:
        yield temporary
        with temporary.open("rb+") as file:  # the content must reach the disk before the name
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink()
        cause = disk_error(error, path, temporary)
        wrote_nothing = isinstance(cause, FileNotFoundError) and path.parent.is_dir()
        if cause is not None and not wrote_nothing:
            problem = CannotWriteError(f"{path} cannot be written: {cause.strerror}")
            problem.strerror = cause.strerror
            raise problem from None
        raise


def disk_error(error: BaseException | None, *paths: Path) -> OSError | None:
    """Return what the disk said, also if `error` came of that; None if it has another cause.

    Args:
        error: an exception. What torch raises when a write fails does not say why.
        paths: files whose own errors, such as a missing folder, count as well.
    """
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            if error.errno in _DISK or str(error.filename) in map(str, paths):
                return error
        error = error.__context__
    return None


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write a JSON file, whole or not at all, and make its folder; also of NumPy's numbers."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, default=methodcaller("item")))


@contextmanager
def reading_json(path: str | os.PathLike[str], what: str, remedy: str = "") -> Iterator[Any]:
    """Give the content of a JSON file; errors in the ``with`` block are blamed on the file.

    Args:
        path: the file.
        what: its content, for the messages.
        remedy: added to the message that it holds something else.

    Raises:
        UserError: the file is missing or damaged, or holds something else.
    """
    try:
        yield json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the {what}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} holds no {what} ({error}){remedy}") from error


def safe_file_name(text: str) -> str:
    """Return a name for a file, or part of one, that stands for a text of any kind.

    Distinct texts have distinct names, at most 100 bytes long, that name nothing outside a folder.
    An ordinary text is its own name. In others, what a file name cannot hold is replaced, and "~"
    with a hash of the text is added.
    """
    encoded = text.encode("utf-8", "backslashreplace")
    ordinary = text.isprintable() and not _UNSAFE.search(text) and len(encoded) <= _LONGEST_NAME
    if text and ordinary:
        return text
    mark = f"~{hashlib.sha256(encoded).hexdigest()[:16]}"
    readable = "".join(c if c.isprintable() else "_" for c in _UNSAFE.sub("_", text))
    return readable.encode()[: _LONGEST_NAME - len(mark)].decode(errors="ignore") + mark


@contextmanager
def optional_output(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let the ``with`` block, which writes `path`, fail with a warning.

    For all that training writes besides its weights and its log: hours of work must not be lost
    because a table, a picture or a note could not be written.
    """
    try:
        yield
    except Exception as error:  # a full disk, or whatever a drawing may raise
        known = isinstance(error, (OSError, UserError))
        message = str(error) if known else f"{type(error).__name__}: {error}"
        logger.warning("%s is not written: %s", path, message, exc_info=not known)


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    return digest(path, "sha256")


def digest(path: str | os.PathLike[str], algorithm: str) -> str:
    """Return the hexadecimal digest of a file by one of hashlib's algorithms."""
    result = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            result.update(chunk)
    return result.hexdigest()

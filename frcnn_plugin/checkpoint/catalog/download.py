"""Download a large file over a bad connection.

The bytes go to ``<file>.part``; the next attempt, also of a later run, goes on where that ends
(`partial`). The file itself appears when it is complete and checked.

The caller sees to it that one process at a time does this (`cache`).
"""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from http.client import HTTPMessage
from pathlib import Path
from typing import Any

from ...errors import UserError
from .known_files import RemoteFile
from .partial import Origin, append, discard, resumable, same_version, start, version_of
from .progress import ByteProgress, megabytes
from .verify import WrongContent, beginning, is_markup, verify

ATTEMPTS = 5  # per URL and call
BACK_OFF = 1.0  # seconds before the second attempt; doubled before each further one
TIMEOUT = 30.0  # seconds without a byte until a connection counts as dropped

_CHUNK = 1 << 16  # bytes: little is lost when the process is killed
_RETRIED = (408, 429)  # and 500 to 599: the server is busy

logger = logging.getLogger(__name__)


class DownloadFailed(UserError):
    """No URL gave the file; names each with the reason."""


class _Failed(Exception):
    """This URL does not give the file."""


class _Dropped(Exception):
    """It may, if asked again."""

    def __init__(self, reason: str, connected: bool = True) -> None:
        super().__init__(reason)
        self.connected = connected


def download(file: RemoteFile, path: Path) -> str:
    """Download, check, and put into place; go on with what an earlier call left.

    Args:
        file: URLs, and what the result is checked by.
        path: where the file appears, complete; its folder exists.

    Returns:
        The SHA-256 of the file.

    Raises:
        DownloadFailed: no URL gave it. A wrong file is deleted, an incomplete one is kept.
        UserError: it does not fit on the disk or cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    problems = []
    for url in file.urls:
        logger.info("Downloading %s from %s", file.file_name, url)
        try:
            _fetch(url, file, part)
            digest = verify(part, file)
        except _Failed as problem:
            problems.append(f"{url}: {problem}")
        except WrongContent as problem:
            discard(part)
            problems.append(f"{url}: not the expected file: {problem}")
        else:
            with part.open("rb") as content:
                os.fsync(content.fileno())
            os.replace(part, path)
            discard(part)
            return digest
    if part.exists():
        problems.append(f"{megabytes(part.stat().st_size)} are kept, the next try goes on there")
    raise DownloadFailed(f"{file.file_name} could not be downloaded ({'; '.join(problems)})")


def _fetch(url: str, file: RemoteFile, part: Path) -> None:
    """Complete `part`, with as many connections as that takes and are allowed."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _receive(url, file, part)
            return
        except _Dropped as problem:
            if attempt == 1 and not problem.connected:  # no network: waiting does not help
                raise _Failed(str(problem)) from problem
            if attempt == ATTEMPTS:
                raise _Failed(f"{problem}; gave up after {ATTEMPTS} attempts") from problem
            wait = BACK_OFF * 2 ** (attempt - 1)
            logger.warning("%s: %s; trying again in %g s", url, problem, wait)
            time.sleep(wait)


def _receive(url: str, file: RemoteFile, part: Path) -> None:
    """One connection: append what is missing to `part`, or write it anew."""
    origin = resumable(part, url, file)
    offset = part.stat().st_size if origin else 0
    if origin and offset and offset == origin.total:
        return  # killed between the last byte and the check
    with _open(url, origin, offset, part) as response:
        headers = response.headers
        resumed = response.status == 206
        if resumed:
            if origin is None or not same_version(origin, offset, headers):
                discard(part)
                raise _Dropped("the file on the server has changed; starting again")
            first, total = b"", origin.total
        else:
            if offset:
                logger.info("%s does not continue the old download; starting again", url)
            offset, total = 0, int(headers.get("Content-Length") or 0)
            first = _read(response, url)
            _check_start(first, total, file, headers)
        _check_space(total - offset, part.parent)
        if not resumed:
            start(part, Origin(url, version_of(headers), total))
        with ByteProgress(file.file_name, total, logger, offset) as progress:
            chunk = first or _read(response, url)
            while chunk:
                append(part, chunk)
                progress.add(len(chunk))
                chunk = _read(response, url)
    size = part.stat().st_size
    if size < total:
        raise _Dropped(f"the connection ended after {size} of {total} bytes")


def _open(url: str, origin: Origin | None, offset: int, part: Path) -> Any:
    # Some servers turn Python's own user agent away.
    headers = {"User-Agent": "frcnn_plugin", "Accept-Encoding": "identity"}
    if origin and offset:
        headers["Range"] = f"bytes={offset}-"
        if origin.version:
            headers["If-Range"] = origin.version
    try:
        request = urllib.request.Request(url, headers=headers)
        return urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        problem = f"HTTP {error.code} {error.reason}"
        error.close()
        if error.code == 416:  # nothing after offset: not the file that the part is from
            discard(part)
            raise _Dropped(problem) from error
        if error.code in _RETRIED or error.code >= 500:
            raise _Dropped(problem) from error
        raise _Failed(problem) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _Dropped(f"no connection ({reason})", connected=False) from error


def _read(response: Any, url: str) -> bytes:
    try:
        chunk: bytes = response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Dropped(f"the connection broke ({error or type(error).__name__})") from error
    return chunk


def _check_start(first: bytes, total: int, file: RemoteFile, headers: HTTPMessage) -> None:
    """Refuse what cannot be the file before anything is written.

    Raises:
        _Failed: it is a web page, or has another size.
    """
    kind = headers.get("Content-Type", "not given")
    if is_markup(first):
        raise _Failed(f"a web page instead of the file (type {kind}; it begins {beginning(first)})")
    if file.size and total and total != file.size:
        raise _Failed(
            f"a file of {total} bytes instead of {file.size} (type {kind}; it begins "
            f"{beginning(first)})"
        )


def _check_space(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} has {megabytes(free)} free, and {megabytes(needed)} are to be downloaded: "
            "make room, or set FVCORE_CACHE to a folder on another disk"
        )

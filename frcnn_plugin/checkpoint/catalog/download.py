"""The local copy of a known file: found, or downloaded once.

Everything is in one folder below iopath's cache, ``$FVCORE_CACHE`` or ``~/.torch/iopath_cache``. A
file that somebody put there by hand is as good as a downloaded one: it is checked in the same way,
and never changed or deleted.

pooch transfers the bytes and computes the digests. What it does not do stands here:

- A broken download goes on where it stopped, also in a later run: the bytes so far are in
  ``<file>.part``, and a Range request asks for the others. These are half a gigabyte each, on
  servers of 2014, and would otherwise start again and again.
- Of several processes that want a file, one downloads it.
- A file has several addresses, and is checked by what is published of it: its size, several
  digests, or only the first digits of one. A web page in its place is recognised as one.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import posixpath
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

import portalocker
from iopath.common.file_io import get_cache_dir

from ...atomic_files import replacing, sha256
from ...errors import UserError
from .known_files import ALGORITHMS, KnownFile, RemoteFile, members_of

if TYPE_CHECKING:
    from requests import Response

ATTEMPTS = 5  # per address and call
BACK_OFF = 1.0  # seconds before the second attempt; doubled before each further one
TIMEOUT = 30.0  # seconds without a byte until a connection counts as dropped
LOG_EVERY = 10.0  # seconds between two lines that say how far a download is

_CHUNK = 1 << 14  # bytes; at most so many are lost when a connection breaks
_BUSY = (408, 429)  # and 500 to 599: statuses after which asking again may help

logger = logging.getLogger(__name__)


class _Failed(Exception):
    """This address does not give the file."""


class _WrongContent(Exception):
    """A file is not the expected one; says what it is instead."""


def cached_path(file: RemoteFile) -> Path:
    """Return where the local copy of `file` is, or would be."""
    return Path(get_cache_dir()) / "frcnn_plugin" / file.file_name


def local_path(known: KnownFile) -> Path:
    """Return the local copy of `known`, downloaded if there is none, and checked.

    Several processes may ask at the same time: one downloads, the others wait.

    Raises:
        UserError: it cannot be had, or what lies in its place is another file; says what to do.
    """
    path = cached_path(known)
    if not path.is_file():
        with _only_process(cached_path(known.archive or known)):
            if not path.is_file():  # another process may have downloaded it meanwhile
                if known.archive:
                    _unpack(known, known.archive, path)
                else:
                    download(known, path, f"copy the file to {path}")
    check_cached(known)
    return path


def check_cached(file: RemoteFile) -> str:
    """Compare the local copy, which exists, with all that is published about it.

    Returns:
        Its SHA-256, which is logged too, so that the log of a run says what it started from.

    Raises:
        UserError: it is not the published file.
    """
    path = cached_path(file)
    try:
        return _checked(path, file, path.stat().st_size, path.stat().st_mtime_ns)
    except _WrongContent as error:
        raise UserError(
            f"{path} is not the published {file.file_name}: {error}. Move it away to have it "
            "downloaded, or replace it by the right file"
        ) from error


@functools.lru_cache
def _checked(path: Path, file: RemoteFile, size: int, mtime_ns: int) -> str:
    """Verify a file once per process, unless size or time of it change: reading takes a second."""
    digest = _verify(path, file)
    logger.info("%s: SHA-256 %s; checked by: %s", path, digest, file.checked_by)
    return digest


def download(file: RemoteFile, path: Path, instead: str) -> None:
    """Download, check, and put into place; go on with what an earlier call left.

    The bytes so far are in ``<file>.part``. The caller sees to it that one process at a time does
    this.

    Args:
        file: addresses, and what the result is checked by.
        path: where the file appears, complete; its folder exists.
        instead: what to do on a machine without network, for the message.

    Raises:
        UserError: no address gave it; names each with the reason. A wrong file is deleted, an
            incomplete one is kept. Or it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    problems = []
    for url in file.urls:
        logger.info("Downloading %s from %s", file.file_name, url)
        try:
            _fetch(url, file, part)
        except _Failed as problem:
            problems.append(f"{url}: {problem}")
        else:
            os.replace(part, path)
            return
    if _kept(part, file):
        problems.append(f"{megabytes(_size(part))} are kept, the next try goes on there")
    raise UserError(
        f"{file.file_name} could not be downloaded ({'; '.join(problems)}). If this machine has no "
        f"network, download it elsewhere and {instead}; it is found there"
    )


def megabytes(count: int) -> str:
    """Return ``553.4 MB``; a small number in bytes."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count} bytes"


def _fetch(url: str, file: RemoteFile, part: Path) -> None:
    """Complete and check `part`, with as many connections as that takes and are allowed."""
    import requests  # which pooch brings

    for attempt in range(ATTEMPTS):
        transfer = _Transfer(url, file, part)
        try:
            transfer.run()
            _verify(part, file)
            return
        except _WrongContent as error:
            part.unlink()
            problem = f"not the expected file: {error}"
            # Halves of two versions of the file: worth another attempt, from the start.
            again = transfer.kept > 0
        except requests.HTTPError:
            problem = f"HTTP {transfer.status} {transfer.reason}"
            again = transfer.status in _BUSY or transfer.status >= 500
        except requests.RequestException as error:
            problem = transfer.broken(error)
            again = transfer.status > 0 or attempt > 0  # without a network waiting does not help
        if not again:
            raise _Failed(problem)
        if attempt < ATTEMPTS - 1:
            wait = BACK_OFF * 2**attempt
            logger.warning("%s: %s; trying again in %g s", url, problem, wait)
            time.sleep(wait)
    raise _Failed(f"{problem}; gave up after {ATTEMPTS} attempts")


class _Transfer:
    """One connection, for what is missing of a part; pooch writes to this object as to a file."""

    def __init__(self, url: str, file: RemoteFile, part: Path) -> None:
        self.url, self.file, self.part = url, file, part
        self.kept = _kept(part, file)
        self.total = 0  # bytes of the whole file; 0 until the server says
        self.status, self.reason = 0, ""  # the server's; 0 until there is an answer
        self._kind = ""
        self._out: IO[bytes] | None = None
        self._told = time.monotonic()
        self._on_terminal = sys.stderr.isatty()

    def run(self) -> None:
        """Receive.

        Raises:
            requests.RequestException: an error status, or no connection, or it ended early.
            _Failed: what comes cannot be the file.
            UserError: it cannot be written.
        """
        import pooch
        import requests

        # Some servers turn Python's own user agent away.
        headers = {"User-Agent": "frcnn_plugin", "Accept-Encoding": "identity"}
        if self.kept:
            headers["Range"] = f"bytes={self.kept}-"
        receive = pooch.HTTPDownloader(
            progressbar=self._on_terminal,
            chunk_size=_CHUNK,
            timeout=TIMEOUT,
            headers=headers,
            hooks={"response": self._judge},
        )
        try:
            receive(self.url, self, None)
        except requests.HTTPError:
            # 416, nothing comes after what is kept: the process was killed between the last byte
            # and the check, which follows now.
            if self.status != 416:
                raise
        finally:
            if self._out:
                self._out.close()
        if _size(self.part) < max(self.total, 1):  # urllib3 before 2.0 does not count
            raise requests.ConnectionError("it ended early")

    def broken(self, error: Exception) -> str:
        """Say where the connection ended."""
        if not self.status:
            return f"no connection ({error})"
        of = f" of {self.total}" if self.total else ""
        return f"the connection ended after {_size(self.part)}{of} bytes"

    def _judge(self, response: Response, **_: object) -> None:
        """Look at the headers; requests calls this before it reads what follows them."""
        self.status, self.reason = response.status_code, response.reason
        if self.status not in (200, 206):  # a redirection, or an error
            return
        if self.kept and self.status == 200:
            logger.info("%s does not continue the old download; starting again", self.url)
            self.kept = 0
        self._kind = response.headers.get("Content-Type", "not given")
        coming = int(response.headers.get("Content-Length") or 0)
        self.total = self.kept + coming if coming else 0

    def write(self, chunk: bytes) -> None:
        """Append to the part, or replace it if the server starts again."""
        if self._out is None and not self.kept:
            # Before anything is written: the part of an earlier download must survive a server
            # that is down for maintenance.
            what = f"(type {self._kind}; it begins {_beginning(chunk)})"
            if _is_markup(chunk):
                raise _Failed(f"a web page instead of the file {what}")
            if self.file.size and self.total not in (0, self.file.size):
                raise _Failed(f"a file of {self.total} bytes instead of {self.file.size} {what}")
        try:
            self._out = self._out or self.part.open("ab" if self.kept else "wb")
            self._out.write(chunk)
        except OSError as error:
            raise UserError(
                f"{self.part} cannot be written: {error.strerror}. Make room, or set FVCORE_CACHE "
                "to another folder"
            ) from error
        if not self._on_terminal and time.monotonic() - self._told >= LOG_EVERY:
            self._told = time.monotonic()
            of = f" of {megabytes(self.total)}" if self.total else ""
            logger.info("%s: %s%s", self.file.file_name, megabytes(self._out.tell()), of)

    def flush(self) -> None:
        """Hand what was written to the operating system, which survives a killed process."""
        if self._out:
            self._out.flush()


def _unpack(known: KnownFile, archive: RemoteFile, path: Path) -> None:
    """Take `known` out of its .tgz, and all else that the catalog knows of it, so that it can go.

    An archive that lay there already stays: somebody put it there. Its checksum is that of the
    published one in any case, so what is in it needs no distrust.
    """
    packed = cached_path(archive)
    wanted = {known.member: path}
    by_hand = packed.is_file()
    if by_hand:
        check_cached(archive)
    else:
        instead = f"copy {archive.file_name} to {packed}, or its {known.member} to {path}"
        download(archive, packed, instead)
        wanted |= {m.member: cached_path(m) for m in members_of(archive)}
    try:
        with tarfile.open(packed) as tar:
            for entry in tar:  # in one pass: going back would decompress everything again
                target = wanted.get(posixpath.normpath(entry.name))
                if target is None or target.is_file():
                    continue
                logger.info("Unpacking %s", entry.name)
                source = tar.extractfile(entry)
                assert source is not None
                with source, replacing(target) as temporary, temporary.open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
    except OSError as error:
        raise UserError(
            f"{packed} cannot be unpacked: {error.strerror}. Make room, or set FVCORE_CACHE to "
            "another folder"
        ) from error
    if not path.is_file():
        raise UserError(f"{packed} does not hold {known.member}")
    if not by_hand:
        packed.unlink()


@contextlib.contextmanager
def _only_process(path: Path) -> Iterator[None]:
    """Wait until no other process is getting `path`.

    The operating system drops the lock of a killed process. The lock file stays: deleting it while
    somebody waits for it would let two in.
    """
    lock = path.with_name(f"{path.name}.lock")
    exclusive = portalocker.LockFlags.EXCLUSIVE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
        try:
            portalocker.lock(file, exclusive | portalocker.LockFlags.NON_BLOCKING)
        except portalocker.AlreadyLocked:
            logger.info("Another process is downloading %s; waiting for it", path.name)
            portalocker.lock(file, exclusive)
    except (OSError, portalocker.LockException) as error:
        raise UserError(
            f"{lock} cannot be locked ({error}): set FVCORE_CACHE to a folder of yours, on a disk "
            "of this machine"
        ) from error
    with file:  # closing it unlocks it
        yield


def _verify(path: Path, expected: RemoteFile) -> str:
    """Compare a file with all that is published about it.

    Returns:
        Its SHA-256.

    Raises:
        _WrongContent: size or a checksum differs.
    """
    import pooch

    size = path.stat().st_size
    if expected.size and size != expected.size:
        raise _WrongContent(
            f"it has {size} bytes instead of {expected.size} and begins {_beginning(path)}"
        )
    digest = sha256(path)
    for name, digits in expected.checksums.items():
        found = digest if name == "sha256" else pooch.file_hash(str(path), alg=name)
        if not found.startswith(digits):
            more = "..." if len(digits) < len(found) else ""
            raise _WrongContent(
                f"its {ALGORITHMS[name][0]} is {found} instead of {digits}{more}; it has {size} "
                f"bytes and begins {_beginning(path)}"
            )
    return digest


def _kept(part: Path, file: RemoteFile) -> int:
    """Return the bytes of `part` that a download goes on from."""
    # Only a checksum can tell that both halves are from the same version of the file.
    return _size(part) if file.checksums else 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _is_markup(first: bytes) -> bool:
    """Return whether a file that begins so is a web page: servers send error and login pages."""
    start = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--"))


def _beginning(source: Path | bytes) -> str:
    """Return the first bytes in a form that a person can read."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            source = file.read(40)
    return repr(source[:40])[1:]  # without Python's b

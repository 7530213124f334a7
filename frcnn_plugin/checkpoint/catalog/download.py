"""``frcnn://<name>``: a file of the catalog wherever Detectron2 takes a path, downloaded once.

All files are in one folder of iopath's cache, ``$FVCORE_CACHE`` or ``~/.torch/iopath_cache``. What
somebody copied there is as good as a downloaded file: it is checked in the same way, and never
changed or deleted.

The files have half a gigabyte each and are on servers of 2014. So an interrupted download is
continued, also by a later run: the bytes received so far are in ``<file>.part``, and a Range
request asks for the others. pooch, torch.hub and iopath would start again.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import posixpath
import re
import shutil
import sys
import tarfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import portalocker
from iopath.common.file_io import PathHandler, get_cache_dir
from tqdm import tqdm

from ...atomic_files import digest, replacing, sha256
from ...errors import UserError
from .known_files import KnownFile, RemoteFile, find, members_of

PREFIX = "frcnn://"
ATTEMPTS = 5  # per address and call
BACK_OFF = 1.0  # seconds before the second attempt; doubled before each further one
TIMEOUT = 30.0  # seconds without a byte after which a connection counts as dropped

_CHUNK = 1 << 14  # bytes; no more are lost when a connection breaks
_MOST_BYTES = 2**31  # of a file whose size is not published: Caffe's cannot be larger
_BUSY = (408, 429, *range(500, 600))  # HTTP statuses after which asking again may help

logger = logging.getLogger(__name__)


class _Failed(Exception):
    """This address does not give the file."""


class _WrongContent(Exception):
    """A file is not the expected one; says what it is instead."""


class CatalogHandler(PathHandler):
    """Gives Detectron2 the published file as it is; the checkpointer converts it."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        # `force` asks for a new download, but a name stands for fixed bytes.
        self._check_kwargs(kwargs)
        return str(local_path(find(path.removeprefix(PREFIX))))

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        self._check_kwargs(kwargs)
        if mode not in ("r", "rb"):
            raise UserError(f"{path} can only be read, not opened with mode '{mode}'")
        return open(self._get_local_path(path), mode, buffering)


def cached_path(file: RemoteFile) -> Path:
    """Return where the local copy of `file` is, or would be."""
    return Path(get_cache_dir()) / "frcnn_plugin" / file.file_name


def local_path(known: KnownFile) -> Path:
    """Return the local copy of `known`, downloaded if there is none, and checked.

    Several processes may ask at the same time: one downloads, the others wait.

    Raises:
        UserError: the file cannot be had, or another file is in its place; says what to do.
    """
    path = cached_path(known)
    if not path.is_file():
        try:
            with _only_process(cached_path(known.archive or known)):
                if path.is_file():  # another process has downloaded it meanwhile
                    pass
                elif known.archive:
                    _unpack(known, known.archive, path)
                else:
                    download(known, path, f"copy the file to {path}")
        except (OSError, portalocker.LockException) as error:
            raise UserError(
                f"{path.parent} cannot hold {path.name} ({error}): make room, or set FVCORE_CACHE "
                "to another folder, on a disk of this machine"
            ) from error
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
    """Verify a file once per process, unless its size or time changes: reading takes a second."""
    found = _verify(path, file)
    logger.info("%s: SHA-256 %s; checked by: %s", path, found, file.checked_by)
    return found


def download(file: RemoteFile, path: Path, instead: str) -> None:
    """Download, check, and put into place; continue what an earlier call left in ``<file>.part``.

    The caller makes sure that one process at a time does this, and that the folder exists. If no
    address gives the file, the UserError names each with the reason, and says what to do `instead`
    on a machine without network. A wrong file is deleted, an incomplete one is kept.
    """
    part = path.with_name(f"{path.name}.part")
    if part.is_symlink():  # not ours: writing would follow it
        part.unlink()
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
    if kept := _kept(part, file):
        problems.append(f"{megabytes(kept)} are kept, and the next attempt continues from there")
    raise UserError(
        f"{file.file_name} could not be downloaded ({'; '.join(problems)}). If this machine has no "
        f"network, download it elsewhere and {instead}"
    )


def megabytes(count: int) -> str:
    """Return ``553.4 MB``; a small number in bytes."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count} bytes"


def _fetch(url: str, file: RemoteFile, part: Path) -> None:
    """Complete and check `part`, with as many connections as that takes and are allowed."""
    import requests  # here: every command would wait for it

    for attempt in range(ATTEMPTS):
        kept = _kept(part, file)
        try:
            _receive(url, part, kept, file.size or _MOST_BYTES)
            _verify(part, file)
            return
        except _WrongContent as error:
            part.unlink(missing_ok=True)
            problem = f"not the expected file: {error}"
            again = kept > 0  # perhaps halves of two versions: try again from the start
        except requests.HTTPError as error:
            assert error.response is not None
            problem = f"HTTP {error.response.status_code} {error.response.reason}"
            again = error.response.status_code in _BUSY
        except requests.RequestException as error:
            received = _size(part)
            # What went wrong, without urllib3's objects and addresses.
            cause = getattr(error.args[0], "reason", None) if error.args else None
            why = re.sub(
                r"(<urllib3[^>]*>|HTTPS?Connection\w*\([^)]*\)): ", "", str(cause or error)
            )
            problem = f"the connection failed after {received} bytes ({why})"
            again = attempt > 0 or received > kept  # without a network, waiting does not help
        if not again:
            raise _Failed(problem)
        if attempt < ATTEMPTS - 1:
            wait = BACK_OFF * 2**attempt
            logger.warning("%s: %s; trying again in %g s", url, problem, wait)
            time.sleep(wait)
    raise _Failed(f"{problem}; gave up after {ATTEMPTS} attempts")


def _receive(url: str, part: Path, kept: int, most: int) -> None:
    """Append to `part`, whose first `kept` bytes are good, what one connection gives.

    A file of more than `most` bytes is another one; the rest of it is not asked for.
    """
    import requests

    # Some servers turn Python's own user agent away.
    headers = {"User-Agent": "frcnn_plugin", "Accept-Encoding": "identity"}
    if kept:
        headers["Range"] = f"bytes={kept}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if kept and response.status_code == 416:
            return  # it was complete: an earlier process was killed before the check
        response.raise_for_status()
        if kept and response.status_code == 200:
            logger.info("%s does not continue the old download; starting again", url)
            kept = 0
        coming = int(response.headers.get("Content-Length") or 0)
        pieces = response.iter_content(_CHUNK)
        first = next(pieces, b"")
        # Checked before anything is written: the part of an earlier download must survive a server
        # that is down for maintenance.
        if not kept and _is_markup(first):
            raise _Failed(f"a web page instead of the file (it begins {_beginning(first)})")
        if kept + coming > most:
            raise _WrongContent(f"it has {kept + coming} bytes, not {most}")
        with (
            _open_own(part, "ab" if kept else "wb") as out,
            tqdm(
                desc=part.stem,
                initial=kept,
                total=kept + coming if coming else None,
                unit="B",
                unit_scale=True,
                mininterval=0.1 if sys.stderr.isatty() else 10.0,  # a log needs fewer lines
            ) as bar,
        ):
            for piece in chain([first], pieces):
                if out.tell() + len(piece) > most:  # no size was announced, or a wrong one
                    raise _WrongContent(f"it has more than {most} bytes")
                out.write(piece)
                bar.update(len(piece))
        if _size(part) < kept + coming:  # which urllib3 does not check before 2.0
            raise requests.ConnectionError(f"{coming} were announced")


def _unpack(known: KnownFile, archive: RemoteFile, path: Path) -> None:
    """Take `known` out of its .tgz, and all else in it that the catalog knows; delete the .tgz.

    An archive that was there already stays, as somebody put it there. Its checksum is that of the
    published one in any case, so what it contains needs no distrust.
    """
    packed = cached_path(archive)
    by_hand = packed.is_file()
    if by_hand:
        check_cached(archive)
    else:
        instead = f"copy {archive.file_name} to {packed}, or its {known.member} to {path}"
        download(archive, packed, instead)
    wanted = {member.member: cached_path(member) for member in members_of(archive)}
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
    if not path.is_file():
        raise UserError(f"{packed} does not hold {known.member}")
    if not by_hand:
        packed.unlink()


@contextlib.contextmanager
def _only_process(path: Path) -> Iterator[None]:
    """Wait until no other process is downloading `path`.

    The operating system releases the lock of a killed process. The lock file stays: deleting it
    while somebody waits for it would let two in.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    exclusive = portalocker.LockFlags.EXCLUSIVE
    with _open_own(path.with_name(f"{path.name}.lock"), "ab") as file:  # closing it unlocks it
        try:
            portalocker.lock(file, exclusive | portalocker.LockFlags.NON_BLOCKING)
        except portalocker.AlreadyLocked:
            logger.info("Another process is downloading %s; waiting for it", path.name)
            portalocker.lock(file, exclusive)
        yield


def _open_own(path: Path, mode: str) -> IO[bytes]:
    """Open a file for writing that is no link: in a shared cache others could have put one there.

    An OSError says so.
    """
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))


def _verify(path: Path, expected: RemoteFile) -> str:
    """Return a file's SHA-256; raise _WrongContent if its checksum is not the published one."""
    algorithm, _, digits = expected.checksum.partition(":")
    found = digest(path, algorithm or "sha256")
    if not found.startswith(digits):
        raise _WrongContent(
            f"its {algorithm.upper()} is {found} instead of {digits}; it has {path.stat().st_size} "
            f"bytes and begins {_beginning(path)}"
        )
    return found if algorithm in ("", "sha256") else sha256(path)


def _kept(part: Path, file: RemoteFile) -> int:
    """Return how many bytes of `part` a download continues from."""
    # Only a checksum can tell that both halves are from the same version of the file.
    return _size(part) if file.checksum else 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _is_markup(first: bytes) -> bool:
    """Return whether a file that begins like this is a web page, such as an error or a login."""
    start = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--"))


def _beginning(source: Path | bytes) -> str:
    """Return the first bytes in a form that a person can read."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            source = file.read(40)
    return repr(source[:40])[1:]  # without Python's b

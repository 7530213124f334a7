"""The local copy of a file of the catalog: found, or downloaded once.

Everything is in one folder below iopath's cache, ``$FVCORE_CACHE`` or ``~/.torch/iopath_cache``. A
file that somebody put there by hand is as good as a downloaded one; it is checked in the same way
and never deleted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import portalocker
from iopath.common.file_io import get_cache_dir

from ...atomic_files import write_text
from ...errors import UserError
from .archive import extract
from .download import DownloadFailed, download
from .known_files import KnownFile, RemoteFile, members_of
from .progress import megabytes
from .verify import WrongContent, verify

WAIT_MESSAGE_EVERY = 10.0  # seconds
_POLL = 0.2  # seconds between looks at a lock

logger = logging.getLogger(__name__)


def cached_path(file: RemoteFile) -> Path:
    """Where the local copy of `file` is, or would be."""
    return Path(get_cache_dir()) / "frcnn_plugin" / file.file_name


def local_path(known: KnownFile) -> Path:
    """The local copy of `known`, downloaded if there is none.

    Several processes may ask at the same time: one downloads, the others wait.

    Raises:
        UserError: it cannot be had, or what lies in its place is another file; says what to do.
    """
    path = cached_path(known)
    if not path.is_file():
        _get(known, path)
    check_cached(known)
    return path


def check_cached(known: KnownFile, thorough: bool = False) -> str:
    """Check the local copy.

    Args:
        known: an entry whose local copy exists.
        thorough: read it even if it has been checked since it last changed.

    Returns:
        Its SHA-256.

    Raises:
        UserError: it is not the published file.
    """
    path = cached_path(known)
    digest = "" if thorough else _remembered(path, known)
    if digest:
        return digest
    try:
        digest = verify(path, known)
    except WrongContent as error:
        raise UserError(
            f"{path} is not the published {known.file_name}: {error}. Move it away to have it "
            "downloaded, or replace it by the right file"
        ) from error
    _announce(path, known, digest)
    return digest


def _get(known: KnownFile, path: Path) -> None:
    """Download `known`, unless another process has meanwhile."""
    source = known.archive or known
    with _only_process(cached_path(source)):
        if path.is_file():
            return
        if known.archive is None:
            with _advice(f"copy the file to {path}"):
                digest = download(known, path)
            _announce(path, known, digest)
        else:
            _get_member(known, known.archive, path)


def _get_member(known: KnownFile, archive: RemoteFile, path: Path) -> None:
    """Unpack all that the catalog knows of the archive, so that the archive can go.

    An archive that lay there already stays: somebody put it there.
    """
    packed = cached_path(archive)
    by_hand = packed.is_file()
    if by_hand:
        try:
            verify(packed, archive)
        except WrongContent as error:
            raise UserError(
                f"{packed} is not the published archive: {error}. Move it away to have it "
                "downloaded, or replace it by the right one"
            ) from error
        targets = {path: known}
    else:
        with _advice(f"copy {archive.file_name} to {packed}, or its {known.member} to {path}"):
            download(archive, packed)
        members = {cached_path(member): member for member in members_of(archive)}
        targets = {where: member for where, member in members.items() if not where.is_file()}
        targets[path] = known
    for where, digest in extract(packed, targets).items():
        _announce(where, targets[where], digest)
    if not by_hand:
        packed.unlink()


@contextlib.contextmanager
def _advice(instead: str) -> Iterator[None]:
    """Add to a failed download what to do without a network."""
    try:
        yield
    except DownloadFailed as error:
        raise UserError(
            f"{error}. If this machine has no network, download it elsewhere and {instead}; it is "
            "found there"
        ) from error


@contextlib.contextmanager
def _only_process(path: Path) -> Iterator[None]:
    """Wait until no other process is getting `path`.

    The operating system drops the lock of a killed process. The lock file stays: deleting it while
    somebody waits for it would let two in.
    """
    lock = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("a")
    except OSError as error:
        raise UserError(
            f"{lock} cannot be written ({error.strerror}): set FVCORE_CACHE to a folder of yours"
        ) from error
    with file:  # closing it unlocks it
        _wait_for(file, path)
        yield


def _wait_for(lock: IO[str], path: Path) -> None:
    announced = time.monotonic() - WAIT_MESSAGE_EVERY  # at once
    while True:
        try:
            portalocker.lock(
                lock, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING
            )
            return
        except portalocker.AlreadyLocked:
            if time.monotonic() - announced >= WAIT_MESSAGE_EVERY:
                announced = time.monotonic()
                part = path.with_name(f"{path.name}.part")
                size = megabytes(part.stat().st_size) if part.is_file() else "nothing"
                logger.info("Another process gets %s (%s so far); waiting", path.name, size)
            time.sleep(_POLL)
        except portalocker.LockException as error:
            raise UserError(
                f"{lock.name} cannot be locked ({error}): set FVCORE_CACHE to a folder on a disk "
                "of this machine"
            ) from error


def _marker(path: Path) -> Path:
    return path.with_name(f"{path.name}.checked.json")


def _announce(path: Path, known: KnownFile, digest: str) -> None:
    """Log what was found, and remember it: reading half a gigabyte takes seconds."""
    logger.info("%s: SHA-256 %s; checked by: %s", path, digest, known.checked_by)
    state = path.stat()
    content = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": digest}
    with contextlib.suppress(OSError):  # a folder of others: then it is read every time
        write_text(_marker(path), json.dumps(content))


def _remembered(path: Path, known: KnownFile) -> str:
    """The SHA-256 found when the file was last read, or "" if it must be read again."""
    try:
        content = json.loads(_marker(path).read_text())
        digest = str(content["sha256"])
        before = (content["size"], content["mtime_ns"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    state = path.stat()
    # The catalog may have learnt a checksum since.
    fits = digest.startswith(known.sha256 or known.sha256_prefix)
    return digest if fits and before == (state.st_size, state.st_mtime_ns) else ""

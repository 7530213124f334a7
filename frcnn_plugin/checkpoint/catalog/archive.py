"""Take single files out of a .tgz that came from the network.

Nothing in the archive decides where something is written: the caller names the targets, and all
entries that were not asked for are passed over, whatever they are called.
"""

from __future__ import annotations

import logging
import os
import posixpath
import shutil
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from ...errors import UserError
from .known_files import KnownFile
from .progress import ByteProgress, megabytes
from .verify import WrongContent, verify

# A few kilobytes can be packed to unpack to anything; the largest published file has 0.6 GB, the
# largest archive less than 2 GB unpacked.
MAX_MEMBER = 2 << 30  # bytes
MAX_ARCHIVE = 8 << 30  # bytes, unpacked

_CHUNK = 1 << 20  # bytes

logger = logging.getLogger(__name__)


def extract(archive: Path, targets: Mapping[Path, KnownFile]) -> dict[Path, str]:
    """Unpack, check, and put into place.

    Args:
        archive: a .tgz.
        targets: where to put which of the catalog's members.

    Returns:
        The SHA-256 of each target.

    Raises:
        UserError: the archive is damaged, lacks a member, or holds something else in its place;
            no such target appears.
    """
    wanted = {known.member: (path, known) for path, known in targets.items()}
    found = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for entry in tar:
                name = posixpath.normpath(entry.name)
                if entry.offset_data + entry.size > MAX_ARCHIVE:
                    raise UserError(f"{archive} unpacks to more than {megabytes(MAX_ARCHIVE)}")
                if name in wanted:
                    path, known = wanted.pop(name)
                    found[path] = _extract_one(tar, entry, archive, path, known)
                if not wanted:
                    break
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise UserError(_damaged(archive, str(error))) from error
    except OSError as error:
        # gzip's own errors are OSErrors without a number.
        if error.errno is None:
            raise UserError(_damaged(archive, str(error))) from error
        raise UserError(f"{archive} cannot be unpacked: {error.strerror}") from error
    if wanted:
        raise UserError(
            f"{archive} does not hold {', '.join(wanted)}: it is another archive, delete it"
        )
    return found


def _extract_one(
    tar: tarfile.TarFile, entry: tarfile.TarInfo, archive: Path, path: Path, known: KnownFile
) -> str:
    if not entry.isreg():
        raise UserError(f"{archive}: {known.member} is a link or a folder, not a file")
    if entry.size > (known.size or MAX_MEMBER):
        raise UserError(
            f"{archive}: {known.member} has {entry.size} bytes, more than the "
            f"{known.size or MAX_MEMBER} it may have"
        )
    free = shutil.disk_usage(path.parent).free
    if entry.size > free:
        raise UserError(
            f"{path.parent} has {megabytes(free)} free, and {known.member} needs "
            f"{megabytes(entry.size)}: make room, or set FVCORE_CACHE to a folder on another disk"
        )
    source = tar.extractfile(entry)
    assert source is not None  # a regular file
    temporary = path.with_name(f"{path.name}.unpacking")
    logger.info("Unpacking %s", known.member)
    try:
        with (
            source,
            temporary.open("wb") as out,
            ByteProgress(path.name, entry.size, logger) as progress,
        ):
            while chunk := source.read(_CHUNK):
                out.write(chunk)
                progress.add(len(chunk))
            out.flush()
            os.fsync(out.fileno())
        digest = verify(temporary, known)
        os.replace(temporary, path)
    except WrongContent as error:
        raise UserError(f"{archive}: {known.member} is not the expected file: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def _damaged(archive: Path, reason: str) -> str:
    return f"{archive} is damaged or incomplete ({reason}): delete it, and it is downloaded again"

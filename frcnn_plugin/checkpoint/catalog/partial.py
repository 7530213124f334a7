"""The part of a file that has been downloaded so far, and what it is a part of.

``<file>.part`` holds the first bytes; ``<file>.part.json`` says which version of which URL they are
from, so that two versions are never glued together.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from http.client import HTTPMessage
from pathlib import Path

from ...errors import UserError
from .known_files import RemoteFile


@dataclass(frozen=True)
class Origin:
    """What the bytes of a ``.part`` are from."""

    url: str
    version: str  # strong ETag or Last-Modified; empty if the server gives neither
    total: int  # bytes of the whole file; 0 if the server does not say


def start(part: Path, origin: Origin) -> None:
    """Make an empty part; at no moment does it stand beside the origin of another."""
    try:
        _origin_file(part).unlink(missing_ok=True)
        part.write_bytes(b"")
        _origin_file(part).write_text(json.dumps(asdict(origin)))
    except OSError as error:
        raise UserError(f"{part} cannot be written: {error.strerror}") from error


def append(part: Path, chunk: bytes) -> None:
    """Write more bytes, so that they are there even if the process is killed now."""
    try:
        with part.open("ab") as out:
            out.write(chunk)
    except OSError as error:
        raise UserError(f"{part} cannot be written: {error.strerror}") from error


def discard(part: Path) -> None:
    """Delete it; the next attempt starts anew."""
    _origin_file(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)


def resumable(part: Path, url: str, file: RemoteFile) -> Origin | None:
    """The origin of `part`, if more bytes from `url` may be appended."""
    try:
        origin = Origin(**json.loads(_origin_file(part).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    # Without a version, only a checksum can tell that the file changed in between.
    safe = bool(origin.version or file.checksums)
    return origin if safe and origin.url == url and part.is_file() else None


def version_of(headers: HTTPMessage) -> str:
    """What a server calls the version it sends, or ""."""
    tag = headers.get("ETag", "")
    # A weak tag, W/"...", promises the same meaning, not the same bytes.
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def same_version(origin: Origin, offset: int, headers: HTTPMessage) -> bool:
    """Whether a partial answer continues the part; not every server heeds If-Range."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != offset:
        return False
    version = version_of(headers)
    return match[2] in ("*", str(origin.total)) and version in ("", origin.version)


def _origin_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")

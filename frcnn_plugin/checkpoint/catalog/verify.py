"""Is a file the one that was published? Size and checksums."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .known_files import WORDS, RemoteFile

_CHUNK = 1 << 20  # bytes


class WrongContent(Exception):
    """A file is not the expected one; says what it is instead."""


def verify(path: Path, expected: RemoteFile) -> str:
    """Check a file against all that is published about it.

    Args:
        path: the file.
        expected: what is known of it; where nothing is, every file passes.

    Returns:
        Its SHA-256.

    Raises:
        WrongContent: size or a checksum differs.
    """
    size = path.stat().st_size
    if expected.size and size != expected.size:
        raise WrongContent(
            f"it has {size} bytes instead of {expected.size} and begins {beginning(path)}"
        )
    hashes = {name: hashlib.new(name) for name in {"sha256", *expected.checksums}}
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for digest in hashes.values():
                digest.update(chunk)
    for name, digits in expected.checksums.items():
        found = hashes[name].hexdigest()
        if not found.startswith(digits.lower()):
            more = "..." if len(digits) < len(found) else ""
            raise WrongContent(
                f"its {WORDS[name]} is {found} instead of {digits}{more}; it has {size} bytes and "
                f"begins {beginning(path)}"
            )
    return hashes["sha256"].hexdigest()


def is_markup(first: bytes) -> bool:
    """Whether a file that begins so is a web page: where servers send error and login pages."""
    start = first.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--"))


def beginning(source: Path | bytes) -> str:
    """The first bytes in a form that a person can read."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            source = file.read(40)
    return repr(source[:40])[1:]  # without Python's b

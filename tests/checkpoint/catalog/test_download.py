"""download: one file over HTTP, with everything that goes wrong on the way.

The contents are arbitrary bytes; checksums are computed by hashlib from what the server holds.
"""

from __future__ import annotations

import hashlib
import random
import re
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import requests
from urllib3 import HTTPConnectionPool
from urllib3.exceptions import MaxRetryError, ProxyError, ReadTimeoutError, SSLError

from frcnn_plugin.checkpoint.catalog import download as module
from frcnn_plugin.checkpoint.catalog.known_files import RemoteFile
from frcnn_plugin.errors import UserError

from .http_server import Server

PIECE = 1 << 14  # what is received at once; connections break between two pieces here
CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
CHECKSUM = f"sha256:{SHA256}"
OTHER = random.Random(1).randbytes(300_000)


def remote(server: Server, **fields: Any) -> RemoteFile:
    server.files.setdefault("/w.bin", CONTENT)
    fields.setdefault("urls", (f"{server.url}/w.bin",))
    return RemoteFile(file_name="w.bin", **fields)


def download(file: RemoteFile, path: Path) -> None:
    module.download(file, path, "copy it")


def fails(file: RemoteFile, path: Path) -> str:
    with pytest.raises(UserError) as error:
        download(file, path)
    return str(error.value)


def ranges(server: Server) -> list[str | None]:
    return [asked for _, asked in server.asked]


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def break_off(server: Server, file: RemoteFile, path: Path) -> None:
    """Leave a part behind, as a connection does that breaks five times."""
    server.drop_after = [6 * PIECE] + [0] * 4
    assert "the next attempt continues from there" in fails(file, path)
    server.asked.clear()


def test_plain_download_is_checked_and_leaves_nothing_else(server: Server, tmp_path: Path) -> None:
    download(remote(server, checksum=CHECKSUM), tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    assert names(tmp_path) == {"w.bin"}
    assert ranges(server) == [None]


def test_dropped_connection_is_continued(server: Server, tmp_path: Path) -> None:
    server.drop_after = [6 * PIECE, 3 * PIECE]
    download(remote(server, checksum=CHECKSUM), tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={6 * PIECE}-", f"bytes={9 * PIECE}-"]


def test_later_call_continues(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.drop_after = [12 * PIECE]
    file = remote(server, checksum=CHECKSUM)
    message = fails(file, tmp_path / "w.bin")
    assert message.startswith(
        f"w.bin could not be downloaded ({server.url}/w.bin: the connection failed after 196608 "
        "bytes ("
    )
    assert message.endswith(
        "); gave up after 1 attempts; 0.2 MB are kept, and the next attempt continues from there). "
        "If this machine has no network, download it elsewhere and copy it"
    )
    assert names(tmp_path) == {"w.bin.part"}
    download(file, tmp_path / "w.bin")
    assert ranges(server) == [None, f"bytes={12 * PIECE}-"]
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_attempts_are_bounded(server: Server, tmp_path: Path) -> None:
    server.drop_after = [PIECE] * 100
    message = fails(remote(server, checksum=CHECKSUM), tmp_path / "w.bin")
    assert "failed after 81920 bytes" in message and "gave up after 5 attempts" in message
    assert len(server.asked) == 5


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.drop_after = False, [6 * PIECE]
    download(remote(server, checksum=CHECKSUM), tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    assert ranges(server) == [None, f"bytes={6 * PIECE}-"]


def test_without_a_checksum_nothing_is_continued(server: Server, tmp_path: Path) -> None:
    """Nothing could tell that both halves are from one version of the file."""
    server.drop_after = [6 * PIECE]
    download(remote(server), tmp_path / "w.bin")
    assert ranges(server) == [None, None]
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_halves_of_two_versions_are_noticed_and_started_again(
    server: Server, tmp_path: Path
) -> None:
    file = remote(server, checksum=f"sha256:{hashlib.sha256(OTHER).hexdigest()}")
    break_off(server, file, tmp_path / "w.bin")
    server.files["/w.bin"] = OTHER
    download(file, tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == OTHER
    assert ranges(server) == [f"bytes={6 * PIECE}-", None]


def test_part_that_was_complete_is_only_checked(server: Server, tmp_path: Path) -> None:
    """Killed after the last byte, before the file was put into place."""
    (tmp_path / "w.bin.part").write_bytes(CONTENT)
    download(remote(server, checksum=CHECKSUM), tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    assert ranges(server) == ["bytes=300000-"]  # to which the answer is 416


def test_part_that_is_too_long_is_started_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.bin.part").write_bytes(CONTENT + b"x")
    download(remote(server, checksum=CHECKSUM), tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5"])
def test_wrong_checksum_says_what_came_and_starts_anew(
    server: Server, tmp_path: Path, algorithm: str
) -> None:
    digits = hashlib.new(algorithm, CONTENT).hexdigest()
    download(remote(server, checksum=f"{algorithm}:{digits}"), tmp_path / "v.bin")
    wrong = digits[:-1] + ("0" if digits[-1] != "0" else "1")  # all digits count
    assert (
        f"({server.url}/w.bin: not the expected file: its {algorithm.upper()} is {digits} instead "
        f"of {wrong}; it has 300000 bytes and begins {repr(CONTENT[:40])[1:]})"
    ) in fails(remote(server, checksum=f"{algorithm}:{wrong}"), tmp_path / "w.bin")
    assert names(tmp_path) == {"v.bin"}
    assert ranges(server) == [None, None]


def test_first_digits_are_enough(server: Server, tmp_path: Path) -> None:
    download(remote(server, checksum=f"sha256:{SHA256[:8]}"), tmp_path / "w.bin")
    message = fails(remote(server, checksum="sha256:00b39a1b"), tmp_path / "v.bin")
    assert f"SHA256 is {SHA256} instead of 00b39a1b;" in message


def test_web_page_instead_of_the_file(server: Server, tmp_path: Path) -> None:
    """Dropbox's answer to a link that has been used too often; also without any checksum."""
    server.files["/w.bin"] = b"\n<!DOCTYPE html><html>Too many requests</html>"
    message = fails(remote(server), tmp_path / "w.bin")
    assert r"a web page instead of the file (it begins '\n<!DOCTYPE html>" in message
    assert names(tmp_path) == set()
    assert len(server.asked) == 1


def test_web_page_does_not_destroy_what_was_there(server: Server, tmp_path: Path) -> None:
    file = remote(server, checksum=CHECKSUM)
    break_off(server, file, tmp_path / "w.bin")
    server.files["/w.bin"], server.ranges = b"<html>down for maintenance", False
    assert "a web page" in fails(file, tmp_path / "w.bin")
    server.files["/w.bin"], server.ranges = CONTENT, True
    download(file, tmp_path / "w.bin")
    assert ranges(server)[-1] == f"bytes={6 * PIECE}-"
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_answer_without_length(server: Server, tmp_path: Path) -> None:
    server.length = False
    download(remote(server), tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_not_found_is_final(server: Server, tmp_path: Path) -> None:
    file = remote(server, urls=(f"{server.url}/gone.bin",))
    assert "gone.bin: HTTP 404 Not Found)" in fails(file, tmp_path / "w.bin")
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [408, 429, 503])
def test_busy_server_is_asked_again(server: Server, tmp_path: Path, status: int) -> None:
    server.statuses = [status, status]
    download(remote(server, checksum=CHECKSUM), tmp_path / "w.bin")
    assert len(server.asked) == 3


def test_second_address_is_used_when_the_first_fails(server: Server, tmp_path: Path) -> None:
    server.files["/bad.bin"] = OTHER
    addresses = tuple(f"{server.url}/{name}" for name in ("gone.bin", "bad.bin", "w.bin"))
    download(remote(server, urls=addresses, checksum=CHECKSUM), tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    message = fails(remote(server, urls=addresses[:2], checksum=CHECKSUM), tmp_path / "v.bin")
    assert "gone.bin: HTTP 404" in message
    assert "bad.bin: not the expected file" in message


def test_nothing_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting: BACK_OFF is what it is."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/w.bin"
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("waited"))
    message = fails(RemoteFile(file_name="w.bin", urls=(url,)), tmp_path / "w.bin")
    assert "w.bin: the connection failed after 0 bytes (" in message and "refused" in message
    assert "Max retries" not in message and "HTTPConnection" not in message


@pytest.mark.parametrize(
    "cause, said",
    [
        (ProxyError("no proxy", OSError("Tunnel: 403 Forbidden")), "no proxy.*Tunnel: 403 Forbid"),
        (
            SSLError("[SSL: VERIFY_FAILED] verify failed: self-signed"),
            r"\(\[SSL: VERIFY_FAILED\] v",
        ),
        (OSError("<urllib3.connection.C object at 0x7f>: Failed: [Errno 1]"), r"\(Failed: \[Errno"),
    ],
)
def test_why_a_connection_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: Exception, said: str
) -> None:
    """Whole: which proxy or certificate, without addresses of objects."""
    pool = HTTPConnectionPool("host", 80)
    errors = [MaxRetryError(pool, "/w.bin", cause), ReadTimeoutError(pool, "/", "Read timed out.")]
    for error, words in zip(errors, (said, r"\(Read timed out"), strict=True):
        monkeypatch.setattr(requests, "get", mock.Mock(side_effect=requests.ConnectionError(error)))
        file = RemoteFile(file_name="w.bin", urls=("http://host/w.bin",))
        assert re.search(words, fails(file, tmp_path / "w.bin"))


def test_silent_server_counts_as_dropped(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    server.hang_after = PIECE
    message = fails(remote(server, checksum=CHECKSUM), tmp_path / "w.bin")
    assert f"the connection failed after {2 * PIECE} bytes" in message
    assert ranges(server) == [None, f"bytes={PIECE}-"]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    terminal: bool,
) -> None:
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: terminal)
    download(remote(server), tmp_path / "w.bin")
    assert "w.bin: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("length", [True, False])
def test_no_more_is_received_than_the_file_has(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: bool
) -> None:
    """Nor than any file can have, if its size is not known."""
    server.length = length
    message = fails(remote(server, size=2 * PIECE), tmp_path / "w.bin")
    bytes_in_words = f"300000 bytes, not {2 * PIECE}" if length else f"more than {2 * PIECE} bytes"
    assert f"not the expected file: it has {bytes_in_words}" in message
    assert names(tmp_path) == set()
    monkeypatch.setattr(module, "_MOST_BYTES", 3 * PIECE)
    assert str(3 * PIECE) in fails(remote(server), tmp_path / "w.bin")
    download(remote(server, size=300_000, checksum=CHECKSUM), tmp_path / "w.bin")


@pytest.mark.parametrize("suffix", ["part", "lock"])
def test_links_in_a_shared_cache_are_not_followed(
    server: Server, tmp_path: Path, suffix: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "cache").mkdir()
    target = tmp_path / "cache" / "w.bin"
    target.with_name(f"w.bin.{suffix}").symlink_to(victim)
    if suffix == "part":
        download(remote(server, checksum=CHECKSUM), target)
        assert target.read_bytes() == CONTENT and not target.is_symlink()
    else:
        with pytest.raises(OSError, match="symbolic link"), module._only_process(target):
            pass
    assert victim.read_bytes() == b"mine"

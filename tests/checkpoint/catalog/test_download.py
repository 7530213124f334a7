"""download: one file over HTTP, with everything that goes wrong on the way.

The contents are arbitrary bytes; checksums are computed by hashlib from what the server holds.
"""

from __future__ import annotations

import hashlib
import logging
import random
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from frcnn_plugin.checkpoint.catalog import download as module
from frcnn_plugin.checkpoint.catalog import progress
from frcnn_plugin.checkpoint.catalog.download import DownloadFailed, download
from frcnn_plugin.checkpoint.catalog.known_files import RemoteFile
from frcnn_plugin.errors import UserError

from .http_server import Server

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = random.Random(1).randbytes(300_000)


def remote(server: Server, **fields: Any) -> RemoteFile:
    server.files.setdefault("/w.bin", CONTENT)
    fields.setdefault("urls", (f"{server.url}/w.bin",))
    return RemoteFile(file_name="w.bin", **fields)


def ranges(server: Server) -> list[str | None]:
    return [asked for _, asked, _ in server.asked]


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_plain_download_is_checked_and_leaves_nothing_else(server: Server, tmp_path: Path) -> None:
    file = remote(
        server,
        size=len(CONTENT),
        sha256=SHA256,
        sha1=hashlib.sha1(CONTENT).hexdigest(),
        md5=hashlib.md5(CONTENT).hexdigest(),
    )
    assert download(file, tmp_path / "w.bin") == SHA256
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    assert names(tmp_path) == {"w.bin"}
    assert ranges(server) == [None]


def test_dropped_connection_is_continued(server: Server, tmp_path: Path) -> None:
    server.drop_after = [100_000, 50_000]
    download(remote(server, sha256=SHA256), tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-", "bytes=150000-"]
    assert {condition for _, asked, condition in server.asked if asked} == {'"1"'}


def test_later_call_continues(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    server.drop_after = [200_000]
    file = remote(server, sha256=SHA256)
    with pytest.raises(DownloadFailed) as error:
        download(file, tmp_path / "w.bin")
    assert str(error.value) == (
        f"w.bin could not be downloaded ({server.url}/w.bin: the connection ended after 200000 of "
        "300000 bytes; gave up after 1 attempts; 0.2 MB are kept, the next try goes on there)"
    )
    assert names(tmp_path) == {"w.bin.part", "w.bin.part.json"}
    download(file, tmp_path / "w.bin")
    assert ranges(server) == [None, "bytes=200000-"]
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_attempts_are_bounded(server: Server, tmp_path: Path) -> None:
    server.drop_after = [10] * 100
    with pytest.raises(DownloadFailed, match="ended after 50 of 300000 bytes; gave up after 5"):
        download(remote(server), tmp_path / "w.bin")
    assert len(server.asked) == 5


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges, server.drop_after = False, [100_000]
    download(remote(server, sha256=SHA256), tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-"]


@pytest.mark.parametrize("if_range", [True, False], ids=["heeds If-Range", "ignores If-Range"])
@pytest.mark.parametrize("header", ["etag", "modified"])
def test_versions_are_not_glued_together(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    if_range: bool,
    header: str,
) -> None:
    """Without a checksum, so that only the version can tell."""
    server.etag, server.if_range = "", if_range
    old, new = "Wed, 12 Aug 2015 15:30:43 GMT", "Mon, 03 Apr 2017 16:00:35 GMT"
    if header == "etag":
        old, new = '"old"', '"new"'
    setattr(server, header, old)
    server.drop_after = [100_000]
    file = remote(server)
    with monkeypatch.context() as patch, pytest.raises(DownloadFailed):
        patch.setattr(module, "ATTEMPTS", 1)
        download(file, tmp_path / "w.bin")
    server.files["/w.bin"] = OTHER
    setattr(server, header, new)
    download(file, tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == OTHER
    assert server.asked[1] == ("/w.bin", "bytes=100000-", old)


@pytest.mark.parametrize(
    ("etag", "checksum", "second"),
    [("", "", None), ('W/"1"', "", None), ("", SHA256, "bytes=100000-")],
    ids=["no version", "weak version", "checksum instead"],
)
def test_without_a_version_a_checksum_is_needed_to_continue(
    server: Server, tmp_path: Path, etag: str, checksum: str, second: str | None
) -> None:
    server.etag, server.drop_after = etag, [100_000]
    download(remote(server, sha256=checksum), tmp_path / "w.bin")
    assert ranges(server) == [None, second]
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_glued_versions_fail_the_checksum_and_are_removed(server: Server, tmp_path: Path) -> None:
    server.etag, server.drop_after = "", [100_000] + [0] * 4
    file = remote(server, sha256=SHA256)
    with pytest.raises(DownloadFailed):
        download(file, tmp_path / "w.bin")
    server.files["/w.bin"] = OTHER
    with pytest.raises(DownloadFailed, match="not the expected file: its SHA-256 is "):
        download(file, tmp_path / "w.bin")
    assert names(tmp_path) == set()


def test_part_that_was_complete_is_only_checked(server: Server, tmp_path: Path) -> None:
    """Killed after the last byte, before the file was put into place."""
    server.drop_after = [100_000] + [0] * 4
    file = remote(server, sha256=SHA256)
    with pytest.raises(DownloadFailed):
        download(file, tmp_path / "w.bin")
    (tmp_path / "w.bin.part").write_bytes(CONTENT)
    before = len(server.asked)
    download(file, tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    assert len(server.asked) == before


@pytest.mark.parametrize("damage", ["longer", "json"])
def test_damaged_part_is_started_again(server: Server, tmp_path: Path, damage: str) -> None:
    server.drop_after = [100_000] + [0] * 4
    file = remote(server, sha256=SHA256)
    with pytest.raises(DownloadFailed):
        download(file, tmp_path / "w.bin")
    if damage == "longer":
        (tmp_path / "w.bin.part").write_bytes(CONTENT + b"x")
    else:
        (tmp_path / "w.bin.part.json").write_text('{"url": ')
    download(file, tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_wrong_checksum_says_what_came_and_starts_anew(server: Server, tmp_path: Path) -> None:
    file = remote(server, sha256="0" * 64)
    with pytest.raises(DownloadFailed) as error:
        download(file, tmp_path / "w.bin")
    assert str(error.value) == (
        f"w.bin could not be downloaded ({server.url}/w.bin: not the expected file: its SHA-256 is "
        f"{SHA256} instead of {'0' * 64}; it has 300000 bytes and begins {repr(CONTENT[:40])[1:]})"
    )
    assert names(tmp_path) == set()
    with pytest.raises(DownloadFailed):
        download(file, tmp_path / "w.bin")
    assert ranges(server) == [None, None]


def test_all_digits_count(server: Server, tmp_path: Path) -> None:
    last = "0" if SHA256[-1] != "0" else "1"
    with pytest.raises(DownloadFailed, match=f"instead of {SHA256[:-1]}{last}; it has"):
        download(remote(server, sha256=SHA256[:-1] + last), tmp_path / "w.bin")


def test_checksum_prefix(server: Server, tmp_path: Path) -> None:
    download(remote(server, sha256_prefix=SHA256[:8]), tmp_path / "w.bin")
    with pytest.raises(DownloadFailed, match=r"SHA-256 is \w{64} instead of 00b39a1b\.\.\.;"):
        download(remote(server, sha256_prefix="00b39a1b"), tmp_path / "v.bin")


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_web_page_instead_of_the_file(server: Server, tmp_path: Path, kind: str) -> None:
    """Dropbox's answer to a link that has been used too often; also without any checksum."""
    server.kind = kind
    server.files["/w.bin"] = b"\n<!DOCTYPE html><html>Too many requests</html>"
    with pytest.raises(DownloadFailed) as error:
        download(remote(server), tmp_path / "w.bin")
    assert f"a web page instead of the file (type {kind}; it begins" in str(error.value)
    assert "<!DOCTYPE html>" in str(error.value)
    assert names(tmp_path) == set()
    assert len(server.asked) == 1


def test_web_page_does_not_destroy_what_was_there(server: Server, tmp_path: Path) -> None:
    server.drop_after = [100_000] + [0] * 4
    file = remote(server, sha256=SHA256)
    with pytest.raises(DownloadFailed):
        download(file, tmp_path / "w.bin")
    server.files["/w.bin"], server.etag = b"<html>down for maintenance", '"2"'
    with pytest.raises(DownloadFailed, match=r"0\.1 MB are kept"):
        download(file, tmp_path / "w.bin")
    server.files["/w.bin"], server.etag = CONTENT, '"1"'
    download(file, tmp_path / "w.bin")
    assert ranges(server)[-1] == "bytes=100000-"
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_wrong_size_is_seen_before_anything_is_written(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match="a file of 300000 bytes instead of 553432081"):
        download(remote(server, size=553432081), tmp_path / "w.bin")
    assert names(tmp_path) == set()


def test_wrong_size_of_an_answer_without_length(server: Server, tmp_path: Path) -> None:
    server.length = False
    with pytest.raises(DownloadFailed, match="it has 300000 bytes instead of 300001 and begins"):
        download(remote(server, size=300_001), tmp_path / "w.bin")
    download(remote(server, size=300_000), tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT


def test_not_found_is_final(server: Server, tmp_path: Path) -> None:
    file = remote(server, urls=(f"{server.url}/gone.bin",))
    with pytest.raises(DownloadFailed, match="HTTP 404 Not Found"):
        download(file, tmp_path / "w.bin")
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [408, 429, 503])
def test_busy_server_is_asked_again(server: Server, tmp_path: Path, status: int) -> None:
    server.statuses = [status, status]
    download(remote(server, sha256=SHA256), tmp_path / "w.bin")
    assert len(server.asked) == 3


def test_second_url_is_used_when_the_first_fails(server: Server, tmp_path: Path) -> None:
    server.files["/bad.bin"] = OTHER
    addresses = tuple(f"{server.url}/{name}" for name in ("gone.bin", "bad.bin", "w.bin"))
    download(remote(server, urls=addresses, sha256=SHA256), tmp_path / "w.bin")
    assert (tmp_path / "w.bin").read_bytes() == CONTENT
    with pytest.raises(DownloadFailed) as error:
        download(remote(server, urls=addresses[:2], sha256=SHA256), tmp_path / "v.bin")
    assert "gone.bin: HTTP 404" in str(error.value)
    assert "bad.bin: not the expected file" in str(error.value)


def test_nothing_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting: BACK_OFF is what it is."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/w.bin"
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(DownloadFailed, match=r"w.bin: no connection \(.*refused\)\)$"):
        download(RemoteFile(file_name="w.bin", urls=(url,)), tmp_path / "w.bin")


def test_silent_server_counts_as_dropped(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.1)
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    server.hang_after = 1000
    with pytest.raises(DownloadFailed, match=r"the connection broke .*timed out"):
        download(remote(server), tmp_path / "w.bin")
    assert ranges(server) == [None, "bytes=1000-"]


def test_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 200_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError) as error:
        download(remote(server), tmp_path / "w.bin")
    assert str(error.value) == (
        f"{tmp_path} has 0.2 MB free, and 0.3 MB are to be downloaded: make room, or set "
        "FVCORE_CACHE to a folder on another disk"
    )
    assert names(tmp_path) == set()


def test_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "w.bin.part").mkdir()  # root may write everywhere, so a folder is in the way
    with pytest.raises(UserError, match=r"w\.bin\.part cannot be written: Is a directory"):
        download(remote(server), tmp_path / "w.bin")


def test_progress_goes_to_the_log_without_a_terminal(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    with caplog.at_level(logging.INFO, "frcnn_plugin"):
        download(remote(server), tmp_path / "w.bin")
    assert f"Downloading w.bin from {server.url}/w.bin" in caplog.messages
    assert "w.bin: 0.3 MB of 0.3 MB" in caplog.messages


def test_progress_is_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.ByteProgress("w.bin", 2_000_000, module.logger, start=500_000) as bar:
        bar.add(1_500_000)
    assert "w.bin: 100%" in capsys.readouterr().err

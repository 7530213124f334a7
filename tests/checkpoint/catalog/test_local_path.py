"""``frcnn://``: found, downloaded, copied by hand, wanted by two processes, killed."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.utils.file_io import PathManager

from frcnn_plugin.checkpoint.catalog import download as module
from frcnn_plugin.checkpoint.catalog.known_files import KnownFile, RemoteFile
from frcnn_plugin.errors import UserError

from .http_server import Server
from .test_download import CHECKSUM, CONTENT, PIECE, SHA256, names

ROOT = Path(__file__).resolve().parents[3]
# A process that gets one file. It leaves out the package itself, whose import (torch, Detectron2)
# takes seconds.
CHILD = """
import logging, sys, types
for name in ("frcnn_plugin", "frcnn_plugin.checkpoint"):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [sys.argv[1] + "/" + name.replace(".", "/")]
from frcnn_plugin.checkpoint.catalog.download import local_path
from frcnn_plugin.checkpoint.catalog.known_files import KnownFile
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
path = local_path(KnownFile(name="w", file_name="w.pth", urls=(sys.argv[2],), checksum=sys.argv[3],
                            description="", licence=""))
print("got", path, path.stat().st_size)
"""


Publish = Callable[..., None]


def known(server: Server, name: str = "w", **fields: Any) -> KnownFile:
    server.files.setdefault(f"/{name}.pth", CONTENT)
    values = {"urls": (f"{server.url}/{name}.pth",), "checksum": CHECKSUM} | fields
    return KnownFile(
        name=name, file_name=f"{name}.pth", description="weights", licence="none", **values
    )


@pytest.fixture
def publish(server: Server, cache: Path, set_catalog: Callable[..., None]) -> Publish:
    """A function that makes a file of the server the catalog; its fields can be chosen."""
    return lambda *name, **fields: set_catalog(known(server, *name, **fields))


def get(name: str = "w") -> Path:
    return Path(PathManager.get_local_path(f"frcnn://{name}"))


def refused(name: str = "w") -> str:
    with pytest.raises(UserError) as error:
        get(name)
    return str(error.value)


def start_child(server: Server) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(ROOT), f"{server.url}/w.pth", CHECKSUM],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ},
    )


@pytest.fixture
def started(server: Server) -> Iterator[list[subprocess.Popen[str]]]:
    children: list[subprocess.Popen[str]] = []
    yield children
    for child in children:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited for 20 s"
        time.sleep(0.01)


def test_download_through_detectron2(server: Server, cache: Path, publish: Publish) -> None:
    publish()
    path = PathManager.get_local_path("frcnn://w")
    assert path == str(cache / "w.pth")
    assert Path(path).read_bytes() == CONTENT
    assert PathManager.get_local_path("frcnn://w") == path
    with PathManager.open("frcnn://w", "rb") as file:
        assert file.read() == CONTENT
    assert len(server.asked) == 1


def test_open_for_writing(server: Server, cache: Path, publish: Publish) -> None:
    publish()
    with pytest.raises(UserError, match="frcnn://w can only be read, not opened with mode 'wb'"):
        PathManager.open("frcnn://w", "wb")
    assert server.asked == []


def test_offline_names_the_url_and_the_place(cache: Path, publish: Publish) -> None:
    publish(urls=("http://127.0.0.1:9/w.pth",))  # the discard port: nothing listens
    text = refused()
    assert text.startswith(
        "w.pth could not be downloaded (http://127.0.0.1:9/w.pth: the connection failed after 0"
    )
    assert text.endswith(
        "). If this machine has no network, download it elsewhere and copy the file to "
        f"{cache}/w.pth"
    )


@pytest.mark.parametrize(
    ("checksum", "checked_by"), [(CHECKSUM, "SHA256 (64 digits)"), ("", "nothing")]
)
def test_file_copied_by_hand(
    server: Server,
    cache: Path,
    publish: Publish,
    caplog: pytest.LogCaptureFixture,
    checksum: str,
    checked_by: str,
) -> None:
    publish(checksum=checksum)
    (cache / "w.pth").write_bytes(CONTENT)
    with caplog.at_level("INFO", "frcnn_plugin"):
        assert get() == cache / "w.pth"
    assert f"{cache}/w.pth: SHA-256 {SHA256}; checked by: {checked_by}" in caplog.messages
    assert server.asked == []


def test_wrong_file_copied_by_hand_is_refused_and_kept(
    server: Server, cache: Path, publish: Publish
) -> None:
    publish()
    (cache / "w.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    text = refused()
    assert text.startswith(f"{cache}/w.pth is not the published w.pth: its SHA256 is")
    assert "begins 'version https://git-lfs.github.com/spec/" in text
    assert text.endswith("Move it away to have it downloaded, or replace it by the right file")
    assert (cache / "w.pth").is_file()
    (cache / "w.pth").write_bytes(CONTENT)
    assert PathManager.get_local_path("frcnn://w") == str(cache / "w.pth")
    assert server.asked == []


def test_file_is_read_again_only_when_it_changed(
    server: Server, cache: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    path = PathManager.get_local_path("frcnn://w")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_verify", lambda *args: pytest.fail("read again"))
        PathManager.get_local_path("frcnn://w")
    Path(path).write_bytes(CONTENT[:-1])
    assert "is not the published" in refused()


def test_two_processes_at_once(
    server: Server, cache: Path, started: list[subprocess.Popen[str]]
) -> None:
    known(server)
    started += [start_child(server) for _ in range(2)]
    outputs = [child.communicate(timeout=30)[0] for child in started]
    assert [child.returncode for child in started] == [0, 0], outputs
    assert all(f"got {cache}/w.pth 300000" in output for output in outputs)
    assert len(server.asked) == 1
    assert (cache / "w.pth").read_bytes() == CONTENT


@pytest.fixture
def hanging(server: Server, cache: Path, started: list[subprocess.Popen[str]]) -> None:
    """A process that has received eight pieces when its server falls silent."""
    known(server)
    server.hang_after = 8 * PIECE
    part = cache / "w.pth.part"
    started.append(start_child(server))
    wait_until(lambda: part.is_file() and part.stat().st_size == 8 * PIECE)


@pytest.mark.usefixtures("hanging")
def test_second_process_waits_says_so_and_takes_over_from_a_killed_one(
    server: Server, cache: Path, started: list[subprocess.Popen[str]]
) -> None:
    started.append(start_child(server))
    assert started[1].stdout is not None
    line = started[1].stdout.readline()
    assert line.endswith("Another process is downloading w.pth; waiting for it\n")
    server.hang_after = -1
    started[0].send_signal(signal.SIGKILL)
    output, _ = started[1].communicate(timeout=30)
    assert f"got {cache}/w.pth 300000" in output
    assert [asked for _, asked in server.asked] == [None, f"bytes={8 * PIECE}-"]


def test_cache_that_cannot_be_written(server: Server, cache: Path, publish: Publish) -> None:
    publish()
    (cache / "w.pth.lock").mkdir()  # root may write everywhere, so a folder is in the way
    text = refused()
    assert text.startswith(
        f"{cache} cannot hold w.pth ([Errno 21] Is a directory: '{cache}/w.pth.lock'"
    )
    assert text.endswith(
        "make room, or set FVCORE_CACHE to another folder, on a disk of this machine"
    )


def test_disk_without_locks(
    server: Server, cache: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise module.portalocker.LockException("No locks available")

    monkeypatch.setattr(module.portalocker, "lock", fail)
    publish()
    assert refused().startswith(f"{cache} cannot hold w.pth (No locks available): make room, or")


@pytest.fixture
def packed(
    server: Server, cache: Path, tmp_path: Path, set_catalog: Callable[..., None]
) -> RemoteFile:
    """A .tgz on the server with the entries ``zf`` and ``vgg``."""
    tgz = tmp_path / "m.tgz"
    with tarfile.open(tgz, "w:gz") as tar:
        for name, content in (("m/", b""), ("m/zf.pth", CONTENT), ("./m/vgg.pth", CONTENT[:1000])):
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), tarfile.REGTYPE if content else tarfile.DIRTYPE
            tar.addfile(info, io.BytesIO(content))
    server.files["/m.tgz"] = tgz.read_bytes()
    archive = RemoteFile(
        file_name="m.tgz",
        urls=(f"{server.url}/m.tgz",),
        checksum=f"md5:{hashlib.md5(tgz.read_bytes()).hexdigest()}",
    )
    shared = {"urls": (), "archive": archive, "checksum": ""}
    set_catalog(
        known(server, "zf", member="m/zf.pth", **shared),
        known(server, "vgg", member="m/vgg.pth", **shared),
    )
    return archive


def test_members_of_an_archive(server: Server, cache: Path, packed: RemoteFile) -> None:
    """One download serves all, and the archive does not stay."""
    assert get("zf").read_bytes() == CONTENT
    assert get("vgg").read_bytes() == CONTENT[:1000]
    assert [path for path, _ in server.asked] == ["/m.tgz"]
    assert names(cache) == {"zf.pth", "vgg.pth", "m.tgz.lock"}


def test_unpacking_leaves_a_copied_member_alone(
    server: Server, cache: Path, packed: RemoteFile
) -> None:
    (cache / "vgg.pth").write_bytes(b"by hand")
    PathManager.get_local_path("frcnn://zf")
    assert (cache / "vgg.pth").read_bytes() == b"by hand"


def test_archive_copied_by_hand_stays(server: Server, cache: Path, packed: RemoteFile) -> None:
    (cache / "m.tgz").write_bytes(server.files["/m.tgz"])
    PathManager.get_local_path("frcnn://vgg")
    assert names(cache) == {"zf.pth", "vgg.pth", "m.tgz", "m.tgz.lock"}
    assert server.asked == []


def test_wrong_archive_copied_by_hand(server: Server, cache: Path, packed: RemoteFile) -> None:
    (cache / "m.tgz").write_bytes(server.files["/m.tgz"][:100])
    assert "m.tgz is not the published m.tgz: its MD5 is " in refused("vgg")
    assert (cache / "m.tgz").is_file()


def test_archive_that_cannot_be_had(server: Server, cache: Path, packed: RemoteFile) -> None:
    del server.files["/m.tgz"]
    text = refused("zf")
    assert text.endswith(
        "HTTP 404 Not Found). If this machine has no network, download it elsewhere and copy m.tgz "
        f"to {cache}/m.tgz, or its m/zf.pth to {cache}/zf.pth"
    )


def test_archive_without_the_member(
    server: Server, cache: Path, packed: RemoteFile, publish: Publish
) -> None:
    publish(member="m/w.pth", urls=(), archive=packed)
    assert "m.tgz does not hold m/w.pth" in refused()


def test_member_with_another_checksum(
    server: Server, cache: Path, packed: RemoteFile, publish: Publish
) -> None:
    publish("vgg", member="m/vgg.pth", urls=(), archive=packed)
    assert "vgg.pth is not the published vgg.pth: its SHA256 is " in refused("vgg")


def test_archive_that_cannot_be_unpacked(
    server: Server, cache: Path, packed: RemoteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module.shutil, "copyfileobj", fail)
    said = refused("zf")
    assert said.startswith(f"{cache} cannot hold zf.pth (") and "No space left on device" in said
    assert names(cache) == {"m.tgz", "m.tgz.lock"}

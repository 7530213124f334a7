"""`frcnn weights download`, and `frcnn weights check` of published files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from frcnn_plugin.checkpoint.catalog import known_files as catalog
from frcnn_plugin.checkpoint.catalog.known_files import CATALOG, KnownFile
from tests.checkpoint.catalog.http_server import Server, serving
from tests.cli.conftest import frcnn

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached files, empty."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    folder = tmp_path / "frcnn_plugin"
    folder.mkdir()
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves one file, which is the catalog."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Server(files={"/w.pth": CONTENT})) as it:
        only = KnownFile(
            name="w",
            file_name="w.pth",
            urls=(f"{it.url}/w.pth",),
            sha256=SHA256,
            description="weights",
            licence="none",
        )
        monkeypatch.setattr(catalog, "CATALOG", (only,))
        yield it


def test_list(cache: Path, capsys: pytest.CaptureFixture) -> None:
    (cache / "ZF.v2.caffemodel").write_bytes(bytes(1234))
    frcnn("weights", "download", "--list")
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[2 : 2 + len(CATALOG)]}
    assert set(rows) == {known.name for known in CATALOG}
    for word in ("the original", "553.4 MB", "CC BY 4.0", "SHA-256"):
        assert word in rows["vgg16_caffe_imagenet"]
    assert rows["vgg16_caffe_imagenet"].endswith("no")
    assert "1234 bytes" in rows["zf_caffe_imagenet"]
    assert rows["zf_caffe_imagenet"].endswith("yes")
    assert " ? " in rows["vgg16_py_faster_rcnn_coco"]
    assert f"  zf_caffe_imagenet: {cache}/ZF.v2.caffemodel" in lines
    assert max(map(len, rows.values())) < 170


def test_download_then_check(
    fails: Callable[..., str], cache: Path, server: Server, capsys: pytest.CaptureFixture
) -> None:
    frcnn("weights", "download", "w")
    assert capsys.readouterr().out.splitlines()[-1] == str(cache / "w.pth")
    frcnn("weights", "check")
    assert f"w: SHA-256 {SHA256}, checked by: SHA-256" in capsys.readouterr().out
    (cache / "w.pth").write_bytes(CONTENT[1:])
    said = fails("weights", "check")
    assert said.startswith(f"{cache}/w.pth is not the published w.pth: its SHA-")


def test_check_of_a_named_file_that_is_not_there(
    fails: Callable[..., str], cache: Path, server: Server
) -> None:
    assert fails("weights", "check", "w") == f"w is not at {cache}/w.pth"
    frcnn("weights", "check")  # of what is there: nothing


def test_typing_error_ends_it_before_a_download(
    fails: Callable[..., str], cache: Path, server: Server
) -> None:
    assert fails("weights", "download", "w", "x").startswith("no weight file is called 'x'. ")
    assert server.asked == []


def test_failed_download(fails: Callable[..., str], cache: Path, server: Server) -> None:
    del server.files["/w.pth"]
    said = fails("weights", "download", "w")
    assert said.startswith("w.pth could not be downloaded (http://127.0.0.1:")


def test_nothing_to_do(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        frcnn("weights", "download")
    assert stop.value.code == 2
    assert "give a NAME, or --list" in capsys.readouterr().err

"""extract: single members of an archive from the network, also of a hostile one."""

from __future__ import annotations

import hashlib
import io
import random
import shutil
import tarfile
from pathlib import Path

import pytest

from frcnn_plugin.checkpoint.catalog import archive as module
from frcnn_plugin.checkpoint.catalog.archive import extract
from frcnn_plugin.checkpoint.catalog.known_files import KnownFile
from frcnn_plugin.errors import UserError

ZF, VGG = random.Random(2).randbytes(200_000), random.Random(3).randbytes(150_000)


def known(name: str, content: bytes, member: str = "", size: int = 0) -> KnownFile:
    return KnownFile(
        name=name,
        file_name=f"{name}.caffemodel",
        description="",
        licence="",
        member=member or f"models/{name}.caffemodel",
        size=size,
        sha1=hashlib.sha1(content).hexdigest(),
    )


def write_tgz(path: Path, *entries: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                name, content = entry
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_wanted_members_only(tmp_path: Path) -> None:
    packed = write_tgz(
        tmp_path / "a.tgz",
        link("models", "", tarfile.DIRTYPE),
        ("models/other", b"?"),
        ("./models/zf.caffemodel", ZF),
        ("models/vgg.caffemodel", VGG),
    )
    targets = {tmp_path / "zf": known("zf", ZF), tmp_path / "vgg": known("vgg", VGG)}
    digests = extract(packed, targets)
    assert digests[tmp_path / "zf"] == hashlib.sha256(ZF).hexdigest()
    assert (tmp_path / "zf").read_bytes() == ZF
    assert (tmp_path / "vgg").read_bytes() == VGG
    assert {file.name for file in tmp_path.iterdir()} == {"a.tgz", "zf", "vgg"}


def test_entries_outside_the_folder_are_not_written(tmp_path: Path) -> None:
    inner = tmp_path / "cache"
    inner.mkdir()
    packed = write_tgz(
        inner / "a.tgz",
        ("../evil", b"evil"),
        ("../models/zf.caffemodel", b"evil"),
        (f"{tmp_path}/absolute", b"evil"),
        link("models/way", str(tmp_path)),
        ("models/way/evil", b"evil"),
        ("models/zf.caffemodel", ZF),
    )
    extract(packed, {inner / "zf": known("zf", ZF)})
    assert (inner / "zf").read_bytes() == ZF
    assert {file.name for file in tmp_path.iterdir()} == {"cache"}
    assert {file.name for file in inner.iterdir()} == {"a.tgz", "zf"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_member_that_is_no_file(tmp_path: Path, kind: bytes) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(ZF)
    packed = write_tgz(tmp_path / "a.tgz", link("models/zf.caffemodel", str(secret), kind))
    with pytest.raises(UserError, match=r"models/zf\.caffemodel is a link or a folder, not a file"):
        extract(packed, {tmp_path / "zf": known("zf", ZF)})
    assert not (tmp_path / "zf").exists()


@pytest.mark.parametrize("cut", [20, 100_000, 199_000])
def test_truncated_archive(tmp_path: Path, cut: int) -> None:
    packed = write_tgz(tmp_path / "a.tgz", ("models/zf.caffemodel", ZF))
    packed.write_bytes(packed.read_bytes()[:cut])
    with pytest.raises(UserError) as error:
        extract(packed, {tmp_path / "zf": known("zf", ZF)})
    assert str(error.value).startswith(f"{packed} is damaged or incomplete (")
    assert str(error.value).endswith("): delete it, and it is downloaded again")
    assert {file.name for file in tmp_path.iterdir()} == {"a.tgz"}


def test_not_an_archive(tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(b"<html>")
    with pytest.raises(UserError, match="is damaged or incomplete"):
        extract(tmp_path / "a.tgz", {tmp_path / "zf": known("zf", ZF)})


def test_missing_member(tmp_path: Path) -> None:
    packed = write_tgz(tmp_path / "a.tgz", ("models/vgg.caffemodel", VGG))
    with pytest.raises(UserError, match=r"does not hold models/zf\.caffemodel: it is another arch"):
        extract(packed, {tmp_path / "zf": known("zf", ZF)})


def test_wrong_member_is_not_put_into_place(tmp_path: Path) -> None:
    packed = write_tgz(tmp_path / "a.tgz", ("models/zf.caffemodel", VGG))
    with pytest.raises(UserError, match=r"zf\.caffemodel is not the expected file: its SHA-1 is "):
        extract(packed, {tmp_path / "zf": known("zf", ZF)})
    assert {file.name for file in tmp_path.iterdir()} == {"a.tgz"}


def test_member_larger_than_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = write_tgz(tmp_path / "a.tgz", ("models/zf.caffemodel", bytes(1_000_000)))
    with pytest.raises(UserError, match="has 1000000 bytes, more than the 200000 it may have"):
        extract(packed, {tmp_path / "zf": known("zf", ZF, size=200_000)})
    monkeypatch.setattr(module, "MAX_MEMBER", 999_999)
    with pytest.raises(UserError, match="has 1000000 bytes, more than the 999999 it may have"):
        extract(packed, {tmp_path / "zf": known("zf", ZF)})
    monkeypatch.setattr(module, "MAX_ARCHIVE", 999_999)
    with pytest.raises(UserError, match=r"a\.tgz unpacks to more than 1\.0 MB"):
        extract(packed, {tmp_path / "zf": known("zf", ZF)})


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = write_tgz(tmp_path / "a.tgz", ("models/zf.caffemodel", ZF))
    usage = type("usage", (), {"free": 100_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"has 0\.1 MB free, and models/zf\.caffemodel needs 0\.2"):
        extract(packed, {tmp_path / "zf": known("zf", ZF)})


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    packed = write_tgz(tmp_path / "a.tgz", ("models/zf.caffemodel", ZF))
    (tmp_path / "zf.unpacking").mkdir()  # root may write everywhere, so a folder is in the way
    with pytest.raises(UserError, match=r"a\.tgz cannot be unpacked: Is a directory"):
        extract(packed, {tmp_path / "zf": known("zf", ZF)})

"""The catalog itself: complete, consistent, and searched with helpful errors."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from frcnn_plugin.checkpoint.catalog.known_files import (
    CATALOG,
    FASTER_RCNN_MODELS,
    KnownFile,
    RemoteFile,
    find,
    members_of,
)
from frcnn_plugin.checkpoint.conversion import KNOWN
from frcnn_plugin.errors import UserError

FILES: list[RemoteFile] = [*CATALOG, *dict.fromkeys(k.archive for k in CATALOG if k.archive)]
PAGE = Path(__file__).resolve().parents[3] / "docs" / "weights.md"


def test_names_and_files_are_unique() -> None:
    assert len({known.name for known in CATALOG}) == len(CATALOG) == 8
    assert len({file.file_name for file in FILES}) == len(FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.file_name)
def test_entries_are_well_formed(file: RemoteFile) -> None:
    assert Path(file.file_name).name == file.file_name
    for url in file.urls:
        assert re.fullmatch(r"https?://\S+", url)
        assert file.file_name in url
    if file.checksum:
        algorithm, digits = file.checksum.split(":")
        complete = 2 * hashlib.new(algorithm).digest_size
        assert len(digits) == complete or (algorithm, len(digits)) == ("sha256", 8)
        assert set(digits) <= set("0123456789abcdef")
    # PyTorch's convention: the name ends in the first digits of the SHA-256.
    if match := re.search(r"-([0-9a-f]{8})\.pth$", file.file_name):
        assert file.checksum.startswith(f"sha256:{match[1]}")


@pytest.mark.parametrize("known", CATALOG, ids=lambda known: known.name)
def test_every_entry_can_be_had_and_says_what_it_is(known: KnownFile) -> None:
    assert bool(known.urls) != bool(known.archive)
    assert known.description and known.licence
    # What a file is that bears torchvision's names, its digest alone tells.
    if known.file_name.endswith(".pth"):
        assert known.checksum.removeprefix("sha256:")[:8] in KNOWN
    else:
        assert known.file_name.endswith(".caffemodel")
    if known.archive:
        assert known.archive.urls and known.archive.checksum
        assert known.member.endswith(f"/{known.file_name}")


def test_checked_by() -> None:
    words = {known.name: known.checked_by for known in CATALOG}
    assert words["vgg16_caffe_imagenet"] == "SHA256 (64 digits)"
    assert words["vgg16_caffe_pth"] == "SHA256 (8 digits)"
    assert words["zf_caffe_imagenet"] == "MD5 (32 digits) of the .tgz"
    assert words["vgg16_py_faster_rcnn_voc07"] == "SHA1 (40 digits)"
    assert words["vgg16_py_faster_rcnn_coco"] == "nothing"


def test_find_and_members() -> None:
    assert find("zf_caffe_imagenet").file_name == "ZF.v2.caffemodel"
    names = {known.name for known in members_of(FASTER_RCNN_MODELS)}
    assert names == {"vgg16_py_faster_rcnn_voc07", "zf_py_faster_rcnn_voc07"}


def test_misspelt_name() -> None:
    with pytest.raises(UserError) as error:
        find("vgg16_cafe_imagenet")
    assert str(error.value).startswith(
        "no weight file is called 'vgg16_cafe_imagenet'. Did you mean vgg16_caffe_imagenet or "
    )
    for known in CATALOG:
        assert known.name in str(error.value).partition("Known are")[2]


def test_name_like_none() -> None:
    with pytest.raises(UserError, match=r"no weight file is called '\?'\. Known are vgg16_caffe"):
        find("?")


def test_page_lists_every_entry() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for file in FILES:
        for value in (file.file_name, *file.urls, file.checksum.partition(":")[2]):
            assert value in text, f"docs/weights.md lacks {value}"
    for known in CATALOG:
        assert f"`{known.name}`" in text
        assert known.licence in text

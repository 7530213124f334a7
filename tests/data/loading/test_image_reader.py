"""One reader of image files, and what it makes of every kind."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, detection_utils
from PIL import Image, ImageFile

from frcnn_plugin.data import register_voc, register_xml_folder
from frcnn_plugin.data.loading.image_reader import (
    IMAGE_SUFFIXES,
    image_header,
    read_bgr,
    read_image,
)
from frcnn_plugin.errors import UserError
from frcnn_plugin.predict.inputs import find_images

from ..datasets.voc_folder import add_image, obj

RED, GREEN = (200, 30, 20), (20, 180, 40)


def two_colours() -> Image.Image:
    """4 wide, 2 high; left half red, right half green."""
    image = Image.new("RGB", (4, 2), RED)
    image.paste(GREEN, (2, 0, 4, 2))
    return image


GREY = (80, 80, 80)  # ITU-R 601: 0.299 R + 0.587 G + 0.114 B = 79.7


@pytest.mark.parametrize(
    ("mode", "suffix", "expected", "tolerance"),
    [
        ("RGB", "png", RED, 0),
        ("P", "png", RED, 50),  # the web palette's step is 51
        ("L", "png", GREY, 0),
        ("RGBA", "png", RED, 0),
        ("LA", "png", GREY, 0),
        ("CMYK", "jpg", RED, 11),
    ],
)
def test_modes(
    tmp_path: Path, mode: str, suffix: str, expected: tuple[int, ...], tolerance: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    image = two_colours().resize((64, 32), 0).convert(mode)
    if mode.endswith("A"):
        image.putalpha(7)  # dropped
    image.save(path, quality=95)
    pixels = read_bgr(path)
    assert pixels.shape == (32, 64, 3) and pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert np.abs(pixels[8, 8].astype(int) - expected[::-1]).max() <= tolerance


@pytest.mark.parametrize(
    ("suffix", "dtype", "values", "expected"),
    [
        ("png", np.uint16, [0, 257, 25700, 65535, 128], [0, 1, 100, 255, 0]),
        ("tif", np.uint16, [0, 257, 25700, 65535, 128], [0, 1, 100, 255, 0]),
        ("tif", ">u2", [0, 257, 25700, 65535, 128], [0, 1, 100, 255, 0]),
        ("png", np.uint16, [0, 1, 2, 200, 255], [0, 1, 2, 200, 255]),  # 8 bits in 16
        ("tif", np.int32, [0, 257, 25700, 65535, -9], [0, 1, 100, 255, 0]),
        ("tif", np.int32, [0, 2**30, 2**31 - 1, 5, -9], [0, 128, 255, 0, 0]),
        ("tif", np.float32, [0, 0.2, 0.5, 1, -1], [0, 51, 128, 255, 0]),
        ("tif", np.float32, [0, 0.2, 100, 255, np.nan], [0, 0, 100, 255, 0]),
        ("tif", np.float32, [0, 257, 25700, 65535, np.inf], [0, 1, 100, 255, 0]),
    ],
)
def test_deep_grey(
    tmp_path: Path, suffix: str, dtype: Any, values: list[float], expected: list[int]
) -> None:
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.array([values, values], dtype=dtype)).save(path)
    pixels = read_bgr(path)
    assert pixels.shape == (2, 5, 3) and pixels[1, :, 0].tolist() == expected
    assert (pixels == pixels[:, :, :1]).all()
    assert read_image(path, "L").tolist() == [[[v] for v in expected]] * 2


def test_floats_without_a_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1e12]], dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a.tif cannot be read .* reach 1e\+12: save it with"):
        read_bgr(tmp_path / "a.tif")


def test_an_image_that_turns_into_one_value(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "frcnn_plugin")
    grey = np.array([[-1, -0.5]], dtype=np.float32)
    Image.fromarray(grey).save(tmp_path / "negative.tif")
    only_alpha = two_colours().convert("RGBA")
    only_alpha.paste((9, 9, 9, 0), (0, 0, 4, 2))
    only_alpha.paste((9, 9, 9, 255), (0, 0, 2, 2))
    only_alpha.save(tmp_path / "alpha.png")
    Image.fromarray(grey * 0).save(tmp_path / "blank.tif")  # nothing is lost
    for name in ("negative.tif", "alpha.png", "blank.tif", "negative.tif"):
        read_bgr(tmp_path / name)
    negative, alpha = (record.getMessage() for record in caplog.records)
    assert "negative.tif" in negative and "are 0:" in negative
    assert "alpha.png" in alpha and "are 9:" in alpha


def test_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with pytest.raises(UserError, match=f"there is no file {path}"):
        read_bgr(path)
    two_colours().resize((300, 300)).save(path)
    truncated = path.read_bytes()[:900]
    for data, reason in ((b"no picture", "of no form"), (b"", ""), (truncated, "image file is t")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=rf"a.jpg cannot be read as an image \({reason}"):
            read_bgr(path)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_is_found_everywhere(suffix: str, tmp_path: Path) -> None:
    """Each part of the package once had its own list."""
    add_image(tmp_path, "a", obj("cat"), suffix=suffix.upper())
    image = tmp_path / "JPEGImages" / f"a{suffix.upper()}"
    register_voc("by_layout", tmp_path, "train", ["cat"])
    register_xml_folder("by_xml", tmp_path / "Annotations", ["cat"], tmp_path / "JPEGImages")
    for name in ("by_layout", "by_xml"):
        assert [item["file_name"] for item in DatasetCatalog.get(name)] == [str(image)]
    assert find_images([str(image.parent)]) == [image]
    assert read_bgr(image).shape == (80, 100, 3) and image_header(image) == (100, 80, 1)


def save_turned(path: Path, orientation: object) -> None:
    """Save :func:`two_colours` with an EXIF orientation of whatever type."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    two_colours().save(path, exif=exif)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(tmp_path: Path, suffix: str, orientation: int) -> None:
    """Also for TIFF, which new versions of Pillow turn themselves, and Detectron2 then again."""
    path = tmp_path / f"a.{suffix}"
    save_turned(path, orientation)
    pixels = read_bgr(path)
    if suffix != "tif":
        assert (pixels == detection_utils.read_image(str(path), "BGR")).all()
    width, height = (2, 4) if orientation >= 5 else (4, 2)
    assert pixels.shape == (height, width, 3)
    assert image_header(path) == (width, height, orientation)
    # EXIF 2.3: in 1, 4, 5 and 6 the first pixels of the file are left or at the top.
    is_red_first = int(pixels[0, 0, 2]) > 100
    assert is_red_first is (orientation in (1, 4, 5, 6))


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [
        (3, 1, b"\0\0\0\0"),
        (3, 1, b"\x09\0\0\0"),
        (4, 1, b"\x01\0\x01\0"),  # 65537
        (9, 1, b"\xfa\xff\xff\xff"),  # -6
        (2, 2, b"6\0\0\0"),  # text
        (7, 1, b"\x06\0\0\0"),  # bytes
        (11, 1, b"\0\0\xd0\x40"),  # 6.5
    ],
)
def test_what_is_no_orientation_turns_nothing(
    tmp_path: Path, kind: int, count: int, value: bytes
) -> None:
    path = tmp_path / "a.jpg"
    entry = struct.pack("<HHHI", 1, 0x0112, kind, count) + value
    two_colours().save(path, exif=b"Exif\0\0II*\0\x08\0\0\0" + entry + b"\0\0\0\0")
    assert (read_bgr(path) == detection_utils.read_image(str(path), "BGR")).all()
    assert read_bgr(path).shape == (2, 4, 3) and image_header(path) == (4, 2, 1)


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


@pytest.mark.parametrize("kind", ["eXIf", "profile", "xmp"])
@pytest.mark.parametrize("after_pixels", [False, True])
def test_orientation_anywhere_in_a_png(tmp_path: Path, kind: str, after_pixels: bool) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    if kind == "eXIf":
        piece = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    elif kind == "profile":
        text = f"\nexif\n{len(exif.tobytes())}\n{exif.tobytes().hex()}"
        piece = chunk(b"tEXt", b"Raw profile type exif\0" + text.encode())
    else:
        xml = b'<x tiff:Orientation="6"/>'
        piece = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xml)
    two_colours().save(path)
    data = path.read_bytes()
    at = data.index(b"IEND" if after_pixels else b"IDAT") - 4
    path.write_bytes(data[:at] + piece + data[at:])
    assert read_bgr(path).shape == (4, 2, 3)
    assert image_header(path) == (2, 4, 6)


def test_a_header_is_read_without_decoding(tmp_path: Path) -> None:
    """Of files whose pixels are missing; text after the pixels, as ImageMagick writes it."""
    for suffix in ("png", "jpg", "bmp", "webp", "tif"):
        path = tmp_path / f"a.{suffix}"
        save_turned(path, 6) if suffix in ("png", "jpg") else two_colours().save(path)
        with patch.object(ImageFile.ImageFile, "load", side_effect=AssertionError):
            assert image_header(path)[:2] == ((2, 4) if suffix in ("png", "jpg") else (4, 2))
    data = (tmp_path / "a.png").read_bytes()
    at = data.index(b"IEND") - 4
    text = chunk(b"tEXt", b"date:create\x002020-01-01")
    (tmp_path / "a.png").write_bytes(data[:at] + text + data[at:])
    with patch.object(ImageFile.ImageFile, "load", side_effect=AssertionError):
        assert image_header(tmp_path / "a.png") == (2, 4, 6)


def test_broken_exif_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    two_colours().save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_bgr(path).shape == (2, 4, 3) and image_header(path) == (4, 2, 1)


@pytest.mark.parametrize("reader", [read_bgr, image_header])
def test_a_header_that_asks_for_too_much_memory(
    tmp_path: Path, reader: Callable[[Path], Any]
) -> None:
    two_colours().save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    header = chunk(b"IHDR", (60000).to_bytes(4, "big") * 2 + data[24:29])
    (tmp_path / "a.png").write_bytes(data[:8] + header + data[33:])
    with pytest.raises(UserError, match=r"a.png cannot be read .*3600000000 pixels"):
        reader(tmp_path / "a.png")


def test_postscript_is_not_run(tmp_path: Path) -> None:
    two_colours().save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(UserError, match=r"a.jpg cannot be read .*\(EPS"):
        read_bgr(tmp_path / "a.jpg")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp"])
def test_damaged_files_raise_nothing_but_user_errors(tmp_path: Path, suffix: str) -> None:
    """Bits flipped, ends cut off; what still is an image has the size that its header says."""
    path = tmp_path / f"a.{suffix}"
    rng = random.Random(suffix)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    sound = path.read_bytes()
    refused = 0
    for _ in range(60):
        data = bytearray(sound)
        for _ in range(rng.choice((1, 1, 8))):
            position = rng.randrange(min(len(data), rng.choice((64, len(data)))))
            data[position] ^= 1 << rng.randrange(8)
        path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        try:
            image = read_bgr(path)
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{path} cannot be read as an image (")
            assert "\n" not in str(error)
        else:
            assert image_header(path)[:2] == image.shape[1::-1]
    assert refused > 10


def test_a_flipped_bit_in_a_png_is_found(tmp_path: Path) -> None:
    """Detectron2 reads on: asked for EXIF, Pillow decodes, and the error is dropped."""
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    sound = path.read_bytes()
    start = sound.index(b"IDAT") + 4
    for position in range(start, len(sound) - 16, 97):
        data = bytearray(sound)
        data[position] ^= 1
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a.png cannot be read"):
            read_bgr(path)

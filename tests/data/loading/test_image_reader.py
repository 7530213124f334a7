"""One reader of image files, and what it makes of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import read_image
from PIL import Image

from frcnn_plugin.data import register_voc, register_xml_folder
from frcnn_plugin.data.loading.image_reader import IMAGE_SUFFIXES, read_bgr, read_image_size
from frcnn_plugin.errors import UserError
from frcnn_plugin.predict.inputs import find_images

from ..datasets.voc_folder import add_image, obj

RED, GREEN = (200, 30, 20), (20, 180, 40)


def two_colours() -> Image.Image:
    """4 wide, 2 high; left half red, right half green."""
    image = Image.new("RGB", (4, 2), RED)
    image.paste(GREEN, (2, 0, 4, 2))
    return image


def test_rgb_and_palette(tmp_path: Path) -> None:
    for mode in ("RGB", "P"):
        path = tmp_path / f"{mode}.png"
        two_colours().convert(mode).save(path)
        pixels = read_bgr(path)
        assert pixels.shape == (2, 4, 3) and pixels.dtype == np.uint8
        assert np.abs(pixels[0, 0].astype(int) - RED[::-1]).max() < 26  # the web palette's step: 51
        assert pixels.flags.c_contiguous


def test_orientation(tmp_path: Path) -> None:
    """Orientation 6: the camera was turned, so the first row is the right side (EXIF 2.3)."""
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    two_colours().save(path, exif=exif)
    pixels = read_bgr(path)
    assert pixels.shape == (4, 2, 3)
    assert tuple(pixels[0, 0]) == RED[::-1] and tuple(pixels[3, 1]) == GREEN[::-1]
    assert (pixels == read_image(str(path), "BGR")).all()


def test_grey_alpha_and_cmyk(tmp_path: Path) -> None:
    two_colours().convert("L").save(tmp_path / "grey.png")
    grey = read_bgr(tmp_path / "grey.png")
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B = 79.7
    assert grey.shape == (2, 4, 3) and grey[0, 0].tolist() == [80, 80, 80]
    transparent = two_colours().convert("RGBA")
    transparent.putalpha(7)
    transparent.save(tmp_path / "alpha.png")
    assert tuple(read_bgr(tmp_path / "alpha.png")[0, 0]) == RED[::-1]
    two_colours().convert("LA").save(tmp_path / "la.png")
    assert read_bgr(tmp_path / "la.png")[0, 0].tolist() == [80, 80, 80]
    two_colours().resize((64, 32), 0).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    cmyk = read_bgr(tmp_path / "cmyk.jpg")
    assert cmyk.shape == (32, 64, 3) and np.abs(cmyk[8, 8].astype(int) - RED[::-1]).max() < 12


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 257, 25700], [12850, 65535, 128]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    pixels = read_bgr(tmp_path / name)
    assert pixels[:, :, 0].tolist() == [[0, 1, 100], [50, 255, 0]]
    assert (pixels == pixels[:, :, :1]).all()


def test_eight_bits_in_a_file_of_sixteen(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 200]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert read_bgr(tmp_path / "a.png")[0, :, 0].tolist() == [0, 200]


def test_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with pytest.raises(UserError, match=f"there is no file {path}"):
        read_bgr(path)
    path.write_text("no picture")
    with pytest.raises(UserError, match=r"a.jpg cannot be read as an image \(cannot identify"):
        read_bgr(path)
    two_colours().resize((300, 300)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match=r"a.jpg cannot be read as an image \(image file is trunc"):
        read_bgr(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"a.jpg cannot be read as an image"):
        read_bgr(path)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_is_found_everywhere(
    suffix: str, tmp_path: Path, restore_catalogs: None
) -> None:
    """Each part of the package once had its own list."""
    add_image(tmp_path, "a", obj("cat"), suffix=suffix.upper())
    image = tmp_path / "JPEGImages" / f"a{suffix.upper()}"
    register_voc("by_layout", tmp_path, "train", ["cat"])
    register_xml_folder("by_xml", tmp_path / "Annotations", ["cat"], tmp_path / "JPEGImages")
    for name in ("by_layout", "by_xml"):
        assert [item["file_name"] for item in DatasetCatalog.get(name)] == [str(image)]
    assert find_images([str(image.parent)]) == [image]
    assert read_bgr(image).shape == (80, 100, 3) and read_image_size(image) == (100, 80)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_pixels(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    two_colours().save(tmp_path / "a.png", exif=exif)
    assert read_image_size(tmp_path / "a.png") == read_bgr(tmp_path / "a.png").shape[1::-1]

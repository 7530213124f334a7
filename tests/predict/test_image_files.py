"""Finding and reading pictures, and naming what is made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from frcnn_plugin.errors import UserError
from frcnn_plugin.predict.image_files import find_images, output_names, read_bgr

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
    with pytest.raises(UserError, match=r"a.jpg cannot be read as a picture \(cannot identify"):
        read_bgr(path)
    two_colours().resize((300, 300)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match=r"a.jpg cannot be read as a picture \(image file is trunc"):
        read_bgr(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"a.jpg cannot be read as a picture"):
        read_bgr(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.JPG", "a.png", "notes.txt", "sub/a.png", "sub/deep/c.jpeg", "[x].png"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    return tmp_path


def test_find(folder: Path) -> None:
    def found(*inputs: str) -> list[str]:
        names = find_images([str(folder / name) for name in inputs])
        return [str(name.relative_to(folder)) for name in names]

    assert found(".") == ["[x].png", "a.png", "b.JPG"]
    assert found("sub/a.png", ".") == ["sub/a.png", "[x].png", "a.png", "b.JPG"]
    assert found("a.png", "*.png", "[x].png") == ["a.png", "[x].png"]
    assert found("**/a.png") == ["a.png", "sub/a.png"]
    assert found("notes.txt") == ["notes.txt"]  # named, so tried


def test_find_nothing(folder: Path) -> None:
    empty = folder / "empty"
    empty.mkdir()
    (folder / "v.mp4").write_text("")
    for name, message in (
        (str(empty), f"the folder {empty} holds no pictures (.jpg, .jpeg, "),
        (f"{folder}/*.bmp", f"no file fits the pattern {folder}/*.bmp"),
        (f"{folder}/x.jpg", f"there is no file or folder {folder}/x.jpg"),
        (f"{folder}/v.mp4", f"{folder}/v.mp4 is a video: give it with --video"),
    ):
        with pytest.raises(UserError) as caught:
            find_images([name])
        assert str(caught.value).startswith(message)
    with pytest.raises(
        UserError, match=r"those of subfolders are found with '.*empty/\*\*/\*.jpg'"
    ):
        find_images([str(empty)])


def test_names_do_not_collide() -> None:
    def names(*paths: str) -> list[str]:
        return output_names([Path(path) for path in paths])

    assert names("x/a.jpg", "x/b.jpg") == ["a", "b"]
    assert names("x/a.jpg", "y/a.jpg", "b.png") == ["x__a", "y__a", "b"]
    assert names("x/a.jpg", "x/a.png", "y/a.png") == ["x__a.jpg", "x__a.png", "y__a"]
    assert names("x/A.jpg", "x/a.jpg") == ["A.jpg", "a.jpg_2"]  # some file systems ignore case
    assert names("x/a.jpg", "y/a.jpg", "x__a.png") == ["x__a.jpg", "y__a", "x__a"]
    assert names("a.v1.jpg", "a.v2.jpg") == ["a.v1", "a.v2"]
    assert names() == []

"""Finding image files, and naming what is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from frcnn_plugin.errors import UserError
from frcnn_plugin.predict.image_files import find_images, output_names


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
        (str(empty), f"the folder {empty} holds no images (.jpg, .jpeg, "),
        (f"{folder}/*.bmp", f"no file fits the pattern {folder}/*.bmp"),
        (f"{folder}/x.jpg", f"there is no file or folder {folder}/x.jpg"),
        (
            f"{folder}/v.mp4",
            f"{folder}/v.mp4 is a video: make images of it first: ffmpeg -i {folder}/v.mp4 frames/",
        ),
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

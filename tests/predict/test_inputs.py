"""Image files, found and named, and boxes that a user gives by file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frcnn_plugin.errors import UserError
from frcnn_plugin.predict.inputs import find_images, load_boxes, output_names


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
    assert names("x/a.jpg", "x/a.png", "y/a.png") == ["x__a", "x__a_2", "y__a"]
    assert names("x/A.jpg", "x/a.jpg") == ["A", "a_2"]  # some file systems ignore case
    assert names("x/a.jpg", "y/a.jpg", "x__a.png") == ["x__a", "y__a", "x__a_2"]
    assert names("a.v1.jpg", "a.v2.jpg") == ["a.v1", "a.v2"]
    assert names() == []


A, B = Path("photos/a.jpg"), Path("photos/b.jpg")


def write(folder: Path, content: object) -> Path:
    path = folder / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_by_file_name(tmp_path: Path) -> None:
    path = write(tmp_path, {"a.jpg": [[1, 2, 3.5, 4]], "photos/b.jpg": [], "c.jpg": [[0, 0, 1, 1]]})
    assert load_boxes(path, [B, A]) == [[], [[1, 2, 3.5, 4]]]


def test_coco(tmp_path: Path) -> None:
    """Boxes there are x, y, width, height."""
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}]
    annotations = [{"image_id": 3, "bbox": [10, 20, 5, 6]}, {"image_id": 3, "bbox": [0, 0, 1, 2]}]
    path = write(tmp_path, {"images": images, "annotations": annotations})
    assert load_boxes(path, [A, B]) == [[], [[10, 20, 15, 26], [0, 0, 1, 2]]]


def test_bare_name_of_two_images(tmp_path: Path) -> None:
    path = write(tmp_path, {"a.jpg": []})
    with pytest.raises(UserError, match=r"has no boxes of photos/a.jpg"):
        load_boxes(path, [A, Path("other/a.jpg")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "holds no boxes by image (Expecting property name"),
        ([[1, 2, 3, 4]], "has no attribute 'keys'): give {"),
        ({"a.jpg": [1, 2, 3, 4]}, "box 0 of a.jpg is 1, not four numbers"),
        ({"a.jpg": [[1, 2, 3, 4], [1, 2, 3]]}, "box 1 of a.jpg is [1, 2, 3], not four numbers"),
        (
            {"images": [{"id": 1}], "annotations": []},
            "holds no boxes by image ('file_name'): give",
        ),
        (
            {
                "images": [{"id": 1, "file_name": "a.jpg"}],
                "annotations": [{"image_id": 1, "bbox": ["1", 2, 3, 4]}],
            },
            "box 0 of a.jpg is ['1', 2, 3, 4], not four numbers",
        ),
        (
            {"b.jpg": [], "c.jpg": [], "d.jpg": [], "e.jpg": []},
            "has no boxes of photos/a.jpg; it has those of b.jpg, c.jpg, d.jpg .... An image",
        ),
        ({}, "has no boxes of photos/a.jpg; it has those of no image. An image without any is giv"),
    ],
)
def test_mistakes(tmp_path: Path, content: object, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        load_boxes(path, [A])
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_missing_file() -> None:
    with pytest.raises(UserError, match=r"cannot read the boxes by image: .* 'no.json'"):
        load_boxes("no.json", [A])

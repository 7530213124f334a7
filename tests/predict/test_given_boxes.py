"""Boxes that a user gives by file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frcnn_plugin.errors import UserError
from frcnn_plugin.predict.given_boxes import load_boxes

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
        ("{", "is no JSON file"),
        ([[1, 2, 3, 4]], 'has another format: needed is {"photo.jpg": [[x1, y1, x2, y2], ...]'),
        ({"a.jpg": [1, 2, 3, 4]}, "box 0 of a.jpg is 1, not four numbers"),
        ({"a.jpg": [[1, 2, 3, 4], [1, 2, 3]]}, "box 1 of a.jpg is [1, 2, 3], not four numbers"),
        ({"images": [{"id": 1}], "annotations": []}, "has another format (KeyError('file_name'))"),
        (
            {
                "images": [{"id": 1, "file_name": "a.jpg"}],
                "annotations": [{"bbox": ["1", 2, 3, 4]}],
            },
            "bbox of annotation 0 is ['1', 2, 3, 4], not four numbers",
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
    with pytest.raises(UserError, match=r"there is no file no.json"):
        load_boxes("no.json", [A])

"""Pictures with detections, COCO's format, features: what is written of two images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.structures import Boxes, Instances
from matplotlib.text import Text
from pycocotools.coco import COCO

from frcnn_plugin.predict.outputs import CocoResults, FeatureFile, annotate_image
from frcnn_plugin.visualization.drawings.palette import CLASS_COLOURS

NAMES = ("cat", "dog")


def detections(
    boxes: list, classes: list[int], scores: list[float], size: tuple[int, int] = (300, 480)
) -> Instances:
    result = Instances(size)
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    result.scores = torch.tensor(scores, dtype=torch.float32)
    result.fc7 = torch.arange(len(boxes) * 3.0).reshape(-1, 3)
    result.proposal_index = torch.arange(len(boxes)) + 5
    return result


# Two detections in the one image, none in the other.
TWO = detections([[1, 2, 11, 22], [0, 0, 60, 40]], [1, 0], [0.75, 0.5], (40, 60))
NONE = detections([], [], [], (40, 60))


def grey(height: int = 300, width: int = 480) -> np.ndarray:
    return np.full((height, width, 3), 90, dtype=np.uint8)


def near(picture: np.ndarray, colour: str) -> np.ndarray:
    rgb = list(bytes.fromhex(colour[1:]))
    return np.abs(picture[:, :, ::-1].astype(int) - rgb).max(axis=2) < 40


def test_size_and_colours() -> None:
    found = detections([[100, 100, 200, 150]], [1], [0.9])
    picture = annotate_image(grey(), found, ["a", "b"]).pixels()
    assert picture.shape == (300, 480, 3) and picture.dtype == np.uint8
    rows, columns = near(picture, CLASS_COLOURS[1]).nonzero()
    # The box, and its label above it; letters are 13 pixels.
    assert 98 <= columns.min() <= 101 and 199 <= columns.max() <= 202
    assert 149 <= rows.max() <= 152 and 75 <= rows.min() <= 95
    assert (picture[:60] == 90).all() and (picture[110:140, 110:190] == 90).all()
    assert (annotate_image(grey(), detections([], [], []), ["a"]).pixels() == 90).all()


def test_small_pictures_are_enlarged() -> None:
    found = detections([[5, 5, 30, 15]], [0], [0.5])
    picture = annotate_image(grey(20, 60), found, ["a"]).pixels()
    assert picture.shape == (160, 480, 3)
    assert near(picture, CLASS_COLOURS[0])[115:125, 100:200].any()  # the lower side, at 15 * 8


def labels(shape: tuple[int, int], found: Instances, names: str | list[str]) -> list[Text]:
    return list(annotate_image(grey(*shape), found, names).axes[0].texts)


def test_name_of_the_only_class() -> None:
    drawn = labels((300, 480), detections([[9, 50, 90, 90]], [0], [0.876]), ["a $b_ c"])
    assert [label.get_text() for label in drawn] == ["a $b_ c 0.88"]


def test_labels_do_not_cover_each_other() -> None:
    boxes = [[0, 0, 480, 300], [0, 2, 470, 290], [100, 50, 300, 200], [101, 51, 299, 202]]
    boxes += [[102, 52, 298, 201], [460, 280, 480, 300]]
    drawn = labels((300, 480), detections(boxes, [0] * 6, [0.5] * 6), ["elephant"])
    extents = [label.get_window_extent() for label in drawn]
    for i, a in enumerate(extents):
        assert a.x0 >= 0 and a.y0 >= 0 and a.x1 <= 480 and a.y1 <= 300
        assert not any(a.overlaps(b) for b in extents[:i])


def test_best_is_on_top() -> None:
    drawn = labels((300, 480), detections([[9, 9, 90, 90]] * 3, [0, 1, 2], [0.9, 0.8, 0.7]), "abc")
    orders = [label.get_zorder() for label in drawn]
    assert orders == sorted(orders, reverse=True) and len(set(orders)) == 3


def test_letters_grow_with_the_picture() -> None:
    found = detections([[9, 90, 90, 99]], [0], [0.9])
    (small,), (large,) = (labels(shape, found, "a") for shape in ((300, 480), (900, 1440)))
    assert 1.9 < large.get_fontsize() / small.get_fontsize() < 3.1


def test_coco_json(tmp_path: Path) -> None:
    results = CocoResults(NAMES, weights="w.pth")
    results.add("a.jpg", TWO)
    results.add("b.jpg", NONE)
    path = tmp_path / "found.json"
    results.write(path)
    content = json.loads(path.read_text())
    assert content["info"] == {"weights": "w.pth"}
    assert content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert content["images"] == [
        {"id": 1, "file_name": "a.jpg", "width": 60, "height": 40},
        {"id": 2, "file_name": "b.jpg", "width": 60, "height": 40},
    ]
    assert content["annotations"][0] == {
        "id": 1,
        "image_id": 1,
        "file_name": "a.jpg",
        "category_id": 2,
        "category_name": "dog",
        "bbox": [1.0, 2.0, 10.0, 20.0],
        "area": 200.0,
        "iscrowd": 0,
        "score": 0.75,
    }
    coco = COCO(str(path))
    assert len(coco.getAnnIds(imgIds=[1])) == 2 and coco.getAnnIds(imgIds=[2]) == []
    assert coco.loadRes(content["annotations"]).getAnnIds(catIds=[1]) == [2]
    assert [p.name for p in tmp_path.iterdir()] == ["found.json"]


def test_features(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    with FeatureFile(path, NAMES) as file:
        for name, instances in (("a.jpg", TWO), ("b.jpg", NONE), ("ü.jpg", TWO)):
            file.add(name, instances)
        assert not path.exists()
    content = np.load(path)  # without pickle
    assert content["file_names"].tolist() == ["a.jpg", "b.jpg", "ü.jpg"]
    assert content["image_sizes"].tolist() == [[40, 60]] * 3
    assert content["class_names"].tolist() == ["cat", "dog"]
    assert content["image_index"].tolist() == [0, 0, 2, 2]
    assert content["boxes"].tolist()[0] == [1, 2, 11, 22]
    assert content["scores"].dtype == np.float32 and content["scores"].tolist() == [0.75, 0.5] * 2
    assert content["classes"].tolist() == [1, 0, 1, 0]
    assert content["fc7"].tolist() == [[0, 1, 2], [3, 4, 5]] * 2
    assert content["proposal_index"].dtype == np.int64
    assert content["proposal_index"].tolist() == [5, 6, 5, 6]
    assert [p.name for p in tmp_path.iterdir()] == ["f.npz"]


def test_features_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    with FeatureFile(path, NAMES) as file:
        file.add("b.jpg", NONE)
    content = np.load(path)
    assert content["fc7"].shape == (0, 3) and content["boxes"].shape == (0, 4)
    with FeatureFile(path, NAMES):
        pass
    assert np.load(path)["image_sizes"].shape == (0, 2)


def test_an_error_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), FeatureFile(path, NAMES) as file:
        file.add("a.jpg", TWO)
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["f.npz"]


def test_masks() -> None:
    """Tinted half way to the colour of the class, the best one on top; run lengths in the JSON."""
    found = detections([[10, 100, 150, 190], [60, 100, 250, 190]], [0, 1], [0.9, 0.8])
    masks = torch.zeros(2, 300, 480, dtype=torch.bool)
    masks[0, 110:180, 20:140], masks[1, 110:180, 70:240] = True, True
    found.pred_masks = masks
    image = grey()
    picture = annotate_image(image, found, NAMES).pixels()
    assert (image == 90).all()
    for column, index in ((90, 0), (200, 1)):
        half = [(90 + v) / 2 for v in bytes.fromhex(CLASS_COLOURS[index][1:])][::-1]
        assert np.abs(picture[160, column] - half).max() <= 1
    results = CocoResults(NAMES)
    results.add("a.jpg", found)
    results.add("b.jpg", detections([], [], []))
    decoded = [pycocotools.mask.decode(a["segmentation"]) for a in results._annotations]
    assert (np.stack(decoded).astype(bool) == masks.numpy()).all()

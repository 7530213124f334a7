"""Files of detections: COCO JSON and features."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from frcnn_plugin.predict.coco_json import CocoResults
from frcnn_plugin.predict.feature_npz import FeatureFile

NAMES = ("cat", "dog")


def found(boxes: list, classes: list, scores: list, *, features: bool = False) -> Instances:
    result = Instances((40, 60))
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    result.scores = torch.tensor(scores, dtype=torch.float32)
    if features:
        result.fc7 = torch.arange(len(boxes) * 3.0).reshape(-1, 3)
        result.proposal_index = torch.arange(len(boxes)) + 5
    return result


TWO = found([[1, 2, 11, 22], [0, 0, 60, 40]], [1, 0], [0.75, 0.5], features=True)
NONE = found([], [], [], features=True)


def test_coco_json(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
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

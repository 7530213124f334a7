"""Detections in COCO's format."""

from __future__ import annotations

import json
from pathlib import Path

from pycocotools.coco import COCO

from frcnn_plugin.predict.coco_json import CocoResults

from .found import NAMES, NONE, TWO


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

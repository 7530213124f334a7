"""Why detections cannot be those of a trained detector, in one warning."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

from frcnn_plugin.evaluation.coco import RecordingCOCOEvaluator
from frcnn_plugin.evaluation.detections import diagnose


def test_no_detections():
    text = diagnose([], 20) or ""
    for part in ("no detections at all", "MODEL.WEIGHTS", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"):
        assert part in text


def test_chance_level():
    """1 / 21 = 0.0476, the number that people report."""
    text = diagnose([0.0476, 0.0475, 0.0480], 20) or ""
    assert "all 3 scores lie within 0.001 of 0.0480 (chance is 0.0476)" in text
    assert "is MODEL.WEIGHTS the trained detector, with the same number of classes" in text


@pytest.mark.parametrize("scores", [[0.04, 0.05], [0.3], np.array([0.9, 0.1])])
def test_nothing_wrong(scores):
    assert diagnose(scores, 20) is None


def test_confident_but_never_right():
    text = diagnose([0.2, 0.98], 20, 0.0) or ""
    assert "AP50 is 0 although there are 2 detections, the best with score 0.980" in text
    assert "Is the class list of the test set, in this order, the one that MODEL.WEIGHTS" in text
    for scores, ap50 in (([0.2, 0.98], 0.1), ([0.2, 0.4], 0.0), ([0.9], float("nan"))):
        assert diagnose(scores, 20, ap50) is None


@pytest.fixture
def coco(tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 100, "height": 80}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 40], "area": 1600,
             "iscrowd": 0}
        ],
    }  # fmt: skip
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    register_coco_instances("diagnosed", {}, str(path), str(tmp_path))
    DatasetCatalog.get("diagnosed")
    assert MetadataCatalog.get("diagnosed").thing_classes == ["cat", "dog"]
    return RecordingCOCOEvaluator("diagnosed", output_dir=str(tmp_path), use_fast_impl=False)


@pytest.mark.parametrize(
    ("scores", "classes", "warning"),
    [
        ([], [], "diagnosed: no detections at all"),
        ([0.334, 0.3335], [0, 1], "all 2 scores lie within 0.001 of 0.3340 (chance is 0.3333)"),
        ([0.99], [1], "AP50 is 0 although there are 1 detections"),
        ([0.99], [0], None),
    ],
)
def test_coco_sets(coco, caplog, scores, classes, warning):
    found = Instances((80, 100))
    found.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 50.0, 50.0]] * len(scores)).reshape(-1, 4))
    found.scores = torch.tensor(scores)
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    coco.reset()
    coco.process([{"image_id": 7}], [{"instances": found}])
    with caplog.at_level(logging.WARNING):
        results = coco.evaluate()
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("frcnn_plugin")]
    if warning is None:
        assert ours == [] and results["bbox"]["AP50"] == pytest.approx(100.0)
    else:
        assert len(ours) == 1 and warning in ours[0]

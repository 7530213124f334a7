from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from frcnn_plugin.evaluation.coco import RecordingCOCOEvaluator
from frcnn_plugin.evaluation.record import EvaluationRecord


def make_set(folder: Path) -> None:
    """Categories 7 and 3, so that the host has to renumber them: cat is 0, dog 1, cow 2."""
    boxes = {1: [(7, [0, 0, 10, 10]), (7, [20, 20, 10, 10])], 2: [(9, [5, 5, 20, 20])]}
    annotations = [
        {
            "id": index, "image_id": image, "category_id": category, "bbox": box,
            "area": box[2] * box[3], "iscrowd": 0,
        }
        for index, (image, category, box) in enumerate(
            ((i, c, b) for i, entries in boxes.items() for c, b in entries), start=1
        )
    ]  # fmt: skip
    content = {
        "info": {},
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 60, "height": 60} for i in (1, 2)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in ((7, "cat"), (9, "dog"), (11, "cow"))],
    }  # fmt: skip
    (folder / "set.json").write_text(json.dumps(content))
    register_coco_instances("coco_small", {}, str(folder / "set.json"), str(folder))


def predict(evaluator: COCOEvaluator, image: int, rows: list[tuple[int, list[int], float]]) -> None:
    instances = Instances((60, 60))
    instances.pred_boxes = Boxes(torch.tensor([r[1] for r in rows]).float().reshape(-1, 4))
    instances.scores = torch.tensor([r[2] for r in rows])
    instances.pred_classes = torch.tensor([r[0] for r in rows], dtype=torch.int64)
    evaluator.process([{"image_id": image}], [{"instances": instances}])


def evaluate(kind: type[COCOEvaluator], folder: Path, empty: bool = False) -> dict[str, float]:
    evaluator = kind("coco_small", output_dir=str(folder), use_fast_impl=False)
    evaluator.reset()
    # cat: a hit, then a false one, then nothing on the second cat. dog: hit at once.
    predict(evaluator, 1, [] if empty else [(0, [0, 0, 10, 10], 0.9), (0, [40, 40, 50, 50], 0.8)])
    predict(evaluator, 2, [] if empty else [(1, [5, 5, 25, 25], 0.7)])
    results: dict[str, float] = evaluator.evaluate()["bbox"]
    return results


def test_same_results_as_the_host_and_a_record(tmp_path: Path) -> None:
    make_set(tmp_path)
    results = evaluate(RecordingCOCOEvaluator, tmp_path / "ours")
    host = evaluate(COCOEvaluator, tmp_path / "host")
    assert results == pytest.approx(host, nan_ok=True)

    record = EvaluationRecord.load(tmp_path / "ours" / "evaluation.json")
    assert record.results == pytest.approx(results, nan_ok=True)
    cat, dog, cow = record.classes
    assert (cat.name, cat.num_objects, cat.num_detections) == ("cat", 2, 2)
    # COCO's 101 recalls: those up to 0.5 have precision 1, the others 0.
    assert cat.ap50["coco"] == pytest.approx(100 * 51 / 101)
    assert len(cat.recall) == 51 and set(cat.precision) == {1.0}
    assert dog.ap50["coco"] == pytest.approx(100)
    assert cow.ap50 == {} and cow.recall == []
    assert record.results["AP50"] == pytest.approx((cat.ap50["coco"] + 100) / 2)
    assert [image.image_id for image in record.best] == ["2"]
    assert record.best[0].file_name == str(tmp_path / "2.jpg")
    outcomes = [(b.label, b.outcome) for b in record.worst[0].boxes]
    assert outcomes == [("cat", "found"), ("cat", "missed"), ("cat", "right"), ("cat", "wrong")]


def test_no_detections_leave_no_record(tmp_path: Path) -> None:
    """The host gives nan for everything then."""
    make_set(tmp_path)
    evaluate(RecordingCOCOEvaluator, tmp_path / "ours", empty=True)
    assert not (tmp_path / "ours" / "evaluation.json").exists()

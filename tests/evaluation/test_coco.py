from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from frcnn_plugin.evaluation.coco import RecordingCOCOEvaluator
from frcnn_plugin.evaluation.record import EvaluationRecord


def make_set(folder: Path) -> None:
    """Categories 7 and 3, so that Detectron2 has to renumber them: cat is 0, dog 1, cow 2."""
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


def predict(
    evaluator: COCOEvaluator, image: int, rows: Sequence[tuple[int, list[int], float]]
) -> None:
    instances = Instances((60, 60))
    instances.pred_boxes = Boxes(torch.tensor([r[1] for r in rows]).float().reshape(-1, 4))
    instances.scores = torch.tensor([r[2] for r in rows])
    instances.pred_classes = torch.tensor([r[0] for r in rows], dtype=torch.int64)
    evaluator.process([{"image_id": image}], [{"instances": instances}])


def evaluate(
    kind: type[COCOEvaluator], folder: Path, rows: Sequence[tuple[int, list[int], float]]
) -> dict[str, float]:
    """Evaluate these detections of image 1 and, if there are any, a dog in image 2."""
    evaluator = kind("coco_small", output_dir=str(folder), use_fast_impl=False)
    evaluator.reset()
    predict(evaluator, 1, rows)
    predict(evaluator, 2, [(1, [5, 5, 25, 25], 0.7)] if len(rows) > 2 else [])
    results: dict[str, float] = evaluator.evaluate()["bbox"]
    return results


# A hit, then two false ones, then nothing on the second cat.
ROWS = [(0, [0, 0, 10, 10], 0.9), (0, [40, 40, 50, 50], 0.8), (0, [40, 0, 50, 9], 0.75)]


def test_same_results_as_detectron2_and_a_record(tmp_path: Path) -> None:
    make_set(tmp_path)
    results = evaluate(RecordingCOCOEvaluator, tmp_path / "ours", ROWS)
    host = evaluate(COCOEvaluator, tmp_path / "host", ROWS)
    assert results == pytest.approx(host, nan_ok=True)

    record = EvaluationRecord.load(tmp_path / "ours" / "evaluation.json")
    assert record.results == pytest.approx(results, nan_ok=True)
    cat, dog, cow = record.classes
    assert (cat.name, cat.num_objects, cat.num_detections) == ("cat", 2, 3)
    # COCO's 101 recalls: those up to 0.5 have precision 1, the others 0.
    assert cat.aps["AP"] == pytest.approx(100 * 51 / 101)
    assert dog.aps["AP"] == pytest.approx(100)
    assert cow.aps == {}
    assert record.results["AP50"] == pytest.approx((cat.aps["AP"] + 100) / 2)
    assert [image.image_id for image in record.best] == ["2"]
    assert record.best[0].file_name == str(tmp_path / "2.jpg")
    outcomes = [(b.label, b.outcome) for b in record.worst[0].boxes]
    assert outcomes == [("cat", o) for o in ("found", "missed", "right", "wrong", "wrong")]


def test_files_that_cannot_be_written_do_not_end_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_set(tmp_path)
    expected = evaluate(RecordingCOCOEvaluator, tmp_path / "out", ROWS)
    files = {"instances_predictions.pth", "coco_instances_results.json", "evaluation.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    assert evaluate(RecordingCOCOEvaluator, blocked, ROWS) == pytest.approx(expected, nan_ok=True)
    for name in files:
        assert f"{blocked}/{name} is not written: " in caplog.text


def test_same_files_as_detectron2(tmp_path: Path) -> None:
    make_set(tmp_path)
    for kind, folder in ((RecordingCOCOEvaluator, "ours"), (COCOEvaluator, "host")):
        evaluate(kind, tmp_path / folder, ROWS)
    ours, host = (
        [
            json.loads((tmp_path / folder / "coco_instances_results.json").read_text()),
            torch.load(tmp_path / folder / "instances_predictions.pth"),
        ]
        for folder in ("ours", "host")
    )
    assert ours == host and {entry["category_id"] for entry in ours[0]} == {7, 9}


@pytest.mark.parametrize("name", ["set", "a/b", "../up", "n" * 300])
def test_a_set_without_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    """Converted by Detectron2; its catalog does not keep the way to a file of this run."""
    item = {"bbox": [0, 0, 10, 10], "bbox_mode": BoxMode.XYXY_ABS, "category_id": np.int64(0)}
    image = {"file_name": "a.jpg", "image_id": np.int64(1), "width": 60, "height": 60}
    DatasetCatalog.register(name, lambda: [{**image, "annotations": [item]}])
    MetadataCatalog.get(name).thing_classes = ["cat"]
    (tmp_path / "runs").mkdir()
    for folder in ("one", "two"):
        evaluator = RecordingCOCOEvaluator(name, output_dir=str(tmp_path / "runs" / folder))
        evaluator.reset()
        predict(evaluator, np.int64(1), [(0, [0, 0, 10, 10], 0.9)])
        assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
        (file,) = (tmp_path / "runs" / folder).glob("*_coco_format.json")
        assert json.loads(file.read_text())["annotations"][0]["id"] == 1
        assert (file.parent / "coco_instances_results.json").is_file()
    assert "not written" not in caplog.text
    assert MetadataCatalog.get(name).get("json_file") is None
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("rows", "warning"),
    [
        ([], "coco_small: no detections at all"),
        ([(1, [0, 0, 10, 10], 0.99)], "AP50 is 0 although there are 1 detections"),
        ([(0, [0, 0, 10, 10], 0.99)], None),
    ],
)
def test_warning_of_odd_results(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    rows: list[tuple[int, list[int], float]],
    warning: str | None,
) -> None:
    make_set(tmp_path)
    results = evaluate(RecordingCOCOEvaluator, tmp_path, rows)
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("frcnn_plugin.evaluation")]
    if warning is None:
        assert ours == [] and results["AP50"] == pytest.approx(100 * 51 / 101 / 2)
    else:
        assert len(ours) == 1 and warning in ours[0]
    # Without detections Detectron2 gives nan for everything.
    assert (tmp_path / "evaluation.json").exists() == bool(rows)

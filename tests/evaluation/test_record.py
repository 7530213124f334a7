from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frcnn_plugin.errors import UserError
from frcnn_plugin.evaluation.detections import Detections
from frcnn_plugin.evaluation.ground_truth import GroundTruth
from frcnn_plugin.evaluation.record import ClassRecord, EvaluationRecord, pick_examples

CLASSES = ["cat", "dog"]
A, B, C = [0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]


def truth(*objects: tuple[int, int, list[int], bool], size: int) -> GroundTruth:
    """Objects as (image, class, box, ignored)."""
    return GroundTruth(
        image_ids=[f"im{i}" for i in range(size)],
        boxes=np.array([o[2] for o in objects], dtype=float).reshape(-1, 4),
        classes=np.array([o[1] for o in objects], dtype=np.int64),
        images=np.array([o[0] for o in objects], dtype=np.int64),
        ignored=np.array([o[3] for o in objects], dtype=bool),
        files=[(f"im{i}.jpg", 60, 60) for i in range(size)],
    )


def detections(*rows: tuple[int, int, list[int], float]) -> Detections:
    """Rows as (image, class, box, score)."""
    return Detections(
        np.array([r[2] for r in rows], dtype=float).reshape(-1, 4),
        np.array([r[3] for r in rows], dtype=float),
        np.array([r[1] for r in rows], dtype=np.int64),
        np.array([r[0] for r in rows], dtype=np.int64),
    ).best_first()


def test_order_and_f1() -> None:
    """By hand: im0 1 of 1 right, F1 1; im1 1 of 2 found, 2/3; im2 a wrong one and a miss, 0;
    im3 no object and no confident detection: not judged; im4 no object, a wrong one: 0;
    im5 2 of 2, F1 1, the better of the two perfect ones."""
    objects = truth(
        (0, 0, A, False), (1, 0, A, False), (1, 1, B, False), (2, 0, A, False),
        (5, 0, A, False), (5, 1, B, False), size=6,
    )  # fmt: skip
    found = detections(
        (0, 0, A, 0.9), (1, 0, A, 0.8), (2, 1, A, 0.7), (3, 0, A, 0.49), (4, 0, B, 0.6),
        (5, 0, A, 0.5), (5, 1, B, 0.95),
    )  # fmt: skip
    best, worst = pick_examples(found, objects, CLASSES, ">=")
    assert [image.image_id for image in best] == ["im5", "im0", "im1"]  # half of five, rounded up
    assert [image.image_id for image in worst] == ["im2", "im4"]  # two errors, one error
    assert [round(image.f1, 3) for image in best] == [1.0, 1.0, 0.667]
    outcomes = [(box.label, box.outcome, box.score) for box in worst[0].boxes]
    assert outcomes == [("cat", "missed", None), ("dog", "wrong", 0.7)]
    assert (best[0].width, best[0].height) == (60, 60)
    assert Path(best[0].file_name).is_absolute(), "the report may be made in another folder"


def test_ignored_objects_and_second_detections() -> None:
    """On a difficult object: ignored. A second one on a found object: wrong."""
    objects = truth((0, 0, A, False), (0, 0, B, True), size=1)
    found = detections((0, 0, A, 0.9), (0, 0, A, 0.8), (0, 0, B, 0.7))
    (image,), worst = pick_examples(found, objects, CLASSES, ">=")
    assert [box.outcome for box in image.boxes] == ["found", "ignored", "right", "wrong", "ignored"]
    assert image.f1 == pytest.approx(2 / 3)
    assert worst == []


def test_found_is_what_the_detection_overlaps_most() -> None:
    """Two objects, 12 apart; a detection between them belongs to the nearer one only."""
    objects = truth((0, 0, [0, 0, 100, 10], False), (0, 0, [12, 0, 112, 10], False), size=1)
    (image,), _ = pick_examples(detections((0, 0, [8, 0, 108, 10], 0.9)), objects, CLASSES, ">=")
    assert [box.outcome for box in image.boxes] == ["missed", "found", "right"]


def test_nothing_right_is_nobodys_best() -> None:
    objects = truth((0, 0, A, False), (1, 0, A, False), size=2)
    best, worst = pick_examples(detections(), objects, CLASSES, ">=")
    assert best == [] and [image.image_id for image in worst] == ["im0", "im1"]


def test_number_limits_both() -> None:
    objects = truth(*[(i, 0, A, False) for i in range(20)], size=20)
    found = detections(*[(i, 0, A, 0.9) for i in range(10)])
    best, worst = pick_examples(found, objects, CLASSES, ">=", number=4)
    assert [image.image_id for image in best] == ["im0", "im1", "im2", "im3"]
    assert [image.image_id for image in worst] == ["im10", "im11", "im12", "im13"]


def test_no_images() -> None:
    assert pick_examples(detections(), truth(size=0), CLASSES, ">=") == ([], [])


def test_record_round_trip(tmp_path: Path) -> None:
    """Results stay exact; what is only drawn is rounded."""
    found = detections((0, 0, [0.123456, 0, 10, 10], 0.987654321))
    best, worst = pick_examples(found, truth((0, 0, A, False), size=1), CLASSES, ">=")
    third = 100 / 3
    record = EvaluationRecord(
        dataset="set", metric="11point", match=">=", num_images=1, results={"AP50": third},
        classes=[ClassRecord("cat", 3, 1, {"area": third}, [1 / 3], [1.0])],
        min_score=0.5, best=best, worst=worst,
    )  # fmt: skip
    record.save(tmp_path / "deep" / "evaluation.json")
    loaded = EvaluationRecord.load(tmp_path / "deep" / "evaluation.json")
    assert loaded.results == {"AP50": third} and loaded.classes[0].ap50 == {"area": third}
    assert loaded.classes[0].recall == [0.33333]
    assert loaded.best[0].boxes[1].box == [0.12, 0, 10, 10]
    assert loaded.best[0].boxes[1].score == 0.98765
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["evaluation.json"]


@pytest.mark.parametrize("text", ["", "[]", '{"classes": [{"name": 1}]}', '{"classes": 3}', "{}"])
def test_damaged_record(tmp_path: Path, text: str) -> None:
    file = tmp_path / "evaluation.json"
    file.write_text(text)
    with pytest.raises(UserError, match=r"evaluation.json holds no evaluation .*--eval-only"):
        EvaluationRecord.load(file)
    file.unlink()
    with pytest.raises(UserError, match="cannot read the evaluation"):
        EvaluationRecord.load(file)

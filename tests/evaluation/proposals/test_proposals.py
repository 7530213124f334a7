import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from frcnn_plugin.data.proposals.files import Proposals, load_proposals
from frcnn_plugin.errors import UserError
from frcnn_plugin.evaluation.average_precision import paired_iou
from frcnn_plugin.evaluation.ground_truth import GroundTruth, from_dicts
from frcnn_plugin.evaluation.proposals import (
    ProposalCollector,
    ProposalEvaluator,
    RecallCurves,
    draw_recall,
    measure_recall,
)
from frcnn_plugin.evaluation.proposals.evaluator import ProposalShards
from frcnn_plugin.evaluation.proposals.recall import match_one_to_one

# Image "a" has objects P and Q, "b" has R and a difficult one, "c" has none.
P, Q, R, DIFFICULT = [0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 100, 50], [60, 60, 90, 90]


def obj(box, **extra):
    return {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, **extra}


def load():
    return [
        {"image_id": "a", "annotations": [obj(P), obj(Q)]},
        {"image_id": "b", "annotations": [obj(R), obj(DIFFICULT, difficult=1)]},
        {"image_id": "c", "annotations": []},
    ]


@pytest.fixture
def name():
    DatasetCatalog.register("three_images", load)
    MetadataCatalog.get("three_images").thing_classes = ["cat"]
    return "three_images"


def output(boxes, logits):
    instances = Instances((80, 100))
    instances.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.objectness_logits = torch.tensor(logits, dtype=torch.float32)
    return {"proposals": instances}


# P itself comes third; [0,0,10,8] covers P with IoU .8; [20,0,30,6] covers Q with IoU .6.
OUTPUTS = {
    "a": output([P, [0, 0, 10, 8], [20, 0, 30, 6]], [-1, 3, 2]),
    # covers R with IoU .9; the difficult object exactly
    "b": output([[0, 0, 90, 50], DIFFICULT], [0.5, 0.6]),
    "c": output([], []),
}


def process(evaluator, ids="abc"):
    for image_id in ids:
        evaluator.process([{"image_id": image_id}], [OUTPUTS[image_id]])


def test_recall_by_hand(name, caplog):
    evaluator = ProposalEvaluator(name, counts=(1, 2, 3))
    process(evaluator)
    with caplog.at_level(logging.INFO):
        results = evaluator.evaluate()["proposals"]
    third = 100 / 3
    # Best one: P with .8; the difficult object's proposal comes before R's.
    assert results["R@0.5@1"] == results["R@0.7@1"] == pytest.approx(third)
    # P .8, Q .6, R .9
    assert results["R@0.5@2"] == pytest.approx(100)
    assert results["R@0.7@2"] == pytest.approx(2 * third)
    # P 1.0 instead; AR: Q at 3 thresholds (.50 .55 .60), R at 9, P at 10, of 10
    assert results["AR@3"] == pytest.approx(third * (0.3 + 0.9 + 1.0))
    assert results["AR@1"] == pytest.approx(third * 0.7)  # .50 to .80
    assert list(results) == [f"{m}@{k}" for k in (1, 2, 3) for m in ("AR", "R@0.5", "R@0.7")]
    assert "3 images, 3 objects, 1.7 proposals per image" in caplog.text
    assert "        3    73.33   100.00   100.00    66.67    66.67    66.67" in caplog.text


def test_one_proposal_covers_one_object():
    """Two objects of IoU .8 with each other and one box: only the closer one is found."""
    truth = from_dicts([{"image_id": "a", "annotations": [obj([0, 0, 10, 8]), obj(P)]}])
    found = Proposals(["a"], [np.array([P], "f4")], [np.zeros(1, "f4")])
    curves = measure_recall(found, truth, (300,), "x")
    assert curves.at(300, 0.5) == curves.at(300, 1.0) == 0.5


def test_pairs_of_highest_iou_first():
    # Object 0 would take box 0 (.7), but object 1 and box 0 (.9) come first; 0 gets box 1 (.6).
    iou, gt, box = np.array([0.7, 0.6, 0.9, 0.8]), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert sorted(match_one_to_one(iou, gt, box)) == [0.6, 0.9]
    assert len(match_one_to_one(*(np.zeros(0, dtype=int),) * 3)) == 0


def slow_recall(proposals, truth, count, thresholds):
    """The rule, pair by pair."""
    covered = []
    for image, (boxes, logits) in enumerate(zip(proposals.boxes, proposals.logits, strict=True)):
        boxes = boxes[np.argsort(-logits, kind="stable")][:count].astype(float)
        gts = truth.boxes[(truth.images == image) & ~truth.ignored]
        table = np.array([paired_iou(boxes, np.tile(g, (len(boxes), 1))) for g in gts])
        for _ in gts:
            best = 0.0
            if len(boxes) and table.max() > 0:
                g, b = np.unravel_index(table.argmax(), table.shape)
                best = table[g, b]
                table[g], table[:, b] = -1, -1
            covered.append(best)
    return [np.mean(np.array(covered) >= t) for t in thresholds]


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_rule_pair_by_pair(seed):
    """Crowded images of small whole numbers, so that equal IoUs abound."""
    random = np.random.default_rng(seed)

    def boxes(n):
        corner = random.integers(0, 4, (n, 2))
        return np.hstack([corner, corner + random.integers(2, 8, (n, 2))]).astype(float)

    n = 12
    images = np.sort(random.integers(0, n, 50))
    truth = GroundTruth(
        [str(i) for i in range(n)], boxes(50), images * 0, images, random.random(50) < 0.2
    )
    sizes = random.integers(0, 30, n)
    proposals = Proposals(
        truth.image_ids,
        [boxes(k).astype(np.float32) for k in sizes],
        [random.integers(0, 5, k).astype(np.float32) for k in sizes],
    )
    curves = measure_recall(proposals, truth, (3, 10, 100), "x")
    for count, recall in curves.recall.items():
        assert recall == pytest.approx(slow_recall(proposals, truth, count, curves.ious))


def test_writes_the_file_and_the_curves(name, tmp_path):
    path = tmp_path / "made" / "p.pkl"
    evaluator = ProposalEvaluator(name, path)
    process(evaluator, "cab")
    process(evaluator, "a")  # again, as a sampler that fills a batch
    results = evaluator.evaluate()["proposals"]
    written = load_proposals(path)
    assert written.ids == ["a", "b", "c"]
    assert written.logits[0].tolist() == [3, 2, -1]
    assert written.boxes[0].tolist() == [[0, 0, 10, 8], [20, 0, 30, 6], P]
    assert written.boxes[2].shape == (0, 4)
    assert {f.name for f in path.parent.iterdir()} == {"p.pkl", "p.recall.json", "p.recall.png"}
    curves = RecallCurves.load(path.parent / "p.recall.json")
    assert curves.metrics() == results
    assert curves.mean_proposals == pytest.approx(5 / 3)
    assert json.loads((path.parent / "p.recall.json").read_text())["dataset"] == name


def test_curves_without_a_file(name, tmp_path):
    evaluator = ProposalEvaluator(name, output_dir=tmp_path)
    process(evaluator)
    evaluator.evaluate()
    assert {f.name for f in tmp_path.iterdir()} == {"recall.json", "recall.png"}


def test_curves_that_cannot_be_written_or_drawn_do_not_end_a_run(
    name, tmp_path, caplog, monkeypatch
):
    def fail(*_, **__):
        raise RuntimeError("out of ink")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    (tmp_path / "recall.json").mkdir()
    evaluator = ProposalEvaluator(name, output_dir=tmp_path)
    process(evaluator)
    assert evaluator.evaluate()["proposals"]["R@0.5@300"] == pytest.approx(100)
    assert "recall.json cannot be written: Is a directory" in caplog.text
    assert "recall.png is not written: RuntimeError: out of ink" in caplog.text


def test_collector_writes_and_measures_nothing(name, tmp_path):
    collector = ProposalCollector(name, tmp_path / "p.pkl")
    process(collector)
    assert collector.evaluate() == {}
    assert [f.name for f in tmp_path.iterdir()] == ["p.pkl"]
    collector.reset()
    with pytest.raises(UserError, match=r"3 of 3 images were not processed \(first: 'a'\)"):
        collector.evaluate()


def test_incomplete_file_is_not_written(name, tmp_path):
    evaluator = ProposalEvaluator(name, tmp_path / "p.pkl")
    process(evaluator, "ac")
    with pytest.raises(UserError) as caught:
        evaluator.evaluate()
    assert str(caught.value) == (
        f"three_images: 1 of 3 images were not processed (first: 'b'); {tmp_path}/p.pkl would be "
        f"incomplete and is not written"
    )
    assert not list(tmp_path.iterdir())


def test_missing_images_count_as_not_found(name, caplog):
    evaluator = ProposalEvaluator(name)
    process(evaluator, "a")
    assert evaluator.evaluate()["proposals"]["R@0.5@300"] == pytest.approx(200 / 3)
    assert "2 of 3 images were not processed; they count as without proposals" in caplog.text


def test_image_of_another_set(name):
    evaluator = ProposalEvaluator(name)
    evaluator.process([{"image_id": "z"}], [OUTPUTS["a"]])
    with pytest.raises(UserError, match=r"\(first: 'z'\) are not in data set 'three_images'"):
        evaluator.evaluate()


def test_model_that_detects():
    evaluator = ProposalCollector("three_images")
    with pytest.raises(UserError, match="returned instances instead of proposals: PaperRCNN does"):
        evaluator.process([{"image_id": "a"}], [{"instances": 0}])


def test_impossible_proposals_are_left_out(name, tmp_path, caplog):
    evaluator = ProposalEvaluator(name, tmp_path / "p.pkl")
    nan, inf = float("nan"), float("inf")
    boxes = [[0, 0, nan, 5], [0, 0, 5, inf], P, [4, 4, 4, 9], Q]
    evaluator.process([{"image_id": "a"}], [output(boxes, [1, 2, nan, 4, 5])])
    process(evaluator, "bc")
    evaluator.evaluate()
    assert load_proposals(tmp_path / "p.pkl").boxes[0].tolist() == [Q]
    assert "4 proposals have a logit or box that is nan or infinite, or no area" in caplog.text


def test_nothing_to_be_found(caplog):
    DatasetCatalog.register("empty", lambda: [{"image_id": "c"}])
    evaluator = ProposalEvaluator("empty")
    process(evaluator, "c")
    assert evaluator.evaluate() == {}
    assert "no ground truth (difficult objects not counted) in 1 images" in caplog.text


def test_no_proposals(name):
    evaluator = ProposalEvaluator(name, counts=[300])
    for image_id in "abc":
        evaluator.process([{"image_id": image_id}], [OUTPUTS["c"]])
    assert set(evaluator.evaluate()["proposals"].values()) == {0.0}


def made_curves(counts, dataset="voc07_test"):
    ious = [x / 100 for x in range(50, 101)]
    return RecallCurves(dataset, 1, 1, 1.0, ious, {c: [1.5 - x for x in ious] for c in counts})


@pytest.mark.parametrize(
    ("counts", "panels"), [((50, 300, 1000, 2000), 3), ((300,), 1), ((10, 50), 2)]
)
def test_a_panel_per_number(counts, panels):
    curves = {"RPN": made_curves(counts), "SS": made_curves(counts[-1:])}
    figure = draw_recall(curves)
    assert [len(axes.lines) for axes in figure.axes] == [1] * (panels - 1) + [2]


def test_curves_file_errors(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the recall curves: .*No such file"):
        RecallCurves.load(tmp_path / "a.json")
    for text in ("{", "[]", '{"recall": {"300": []}}', '{"dataset": "x"}'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match=r"a\.json holds no recall curves"):
            RecallCurves.load(tmp_path / "a.json")


def test_shards_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("where a folder should be")
    with pytest.raises(UserError, match=r"cannot write the proposals: \[Errno 20\]"):
        ProposalShards(tmp_path / "file" / "shards").open({})

import json
import logging
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation import PascalVOCDetectionEvaluator, print_csv_format
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm

from frcnn_plugin.data import register_coco, register_voc, register_xml_folder
from frcnn_plugin.data.datasets.checks import check_datasets
from frcnn_plugin.errors import UserError
from frcnn_plugin.evaluation import VOCEvaluator, load_ground_truth
from frcnn_plugin.evaluation.detections import Detections
from frcnn_plugin.evaluation.record import EvaluationRecord
from frcnn_plugin.host import replace_metadata
from frcnn_plugin.process import launch

from ..data.datasets.voc_folder import add_image, add_line, obj, write_image

CLASSES = ["cat", "dog", "cow"]


def output(boxes, scores, classes):
    instances = Instances((80, 100))
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return {"instances": instances}


def annotation(category, box, **flags):
    return {"category_id": category, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS, **flags}


def register(name, images, **metadata):
    """Registers {image_id: annotations}."""
    dicts = [{"image_id": key, "annotations": value} for key, value in images.items()]
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(thing_classes=CLASSES, **metadata)


def evaluate(name, predictions, **kwargs):
    evaluator = VOCEvaluator(name, **kwargs)
    for image_id, prediction in predictions.items():
        evaluator.process([{"image_id": image_id}], [output(*prediction)])
    return evaluator.evaluate()


def no_prediction():
    return [], [], []


# Example E19 (docs/worked_examples.md) as boxes: cat TP, FP, TP, TP with 3 gt. A dog found at
# once. No cow.
IMAGES = {
    "a": [annotation(0, [0, 0, 10, 10]), annotation(0, [20, 20, 30, 30])],
    "b": [annotation(0, [0, 0, 10, 10]), annotation(1, [50, 50, 60, 60])],
    "c": [],
}
PREDICTIONS = {
    "a": ([[0, 0, 10, 10], [20, 20, 30, 30]], [0.9, 0.7], [0, 0]),
    "b": ([[0, 0, 10, 10], [50, 50, 60, 60]], [0.6, 0.5], [0, 1]),
    "c": ([[0, 0, 10, 10]], [0.8], [0]),
}


def test_results(caplog):
    register("small", IMAGES)
    with caplog.at_level(logging.INFO):
        results = evaluate("small", PREDICTIONS)
    bbox = results["bbox"]
    # Means over cat (example E19) and dog (1); cow has no objects and is left out.
    assert bbox["AP50-11point"] == pytest.approx(50 * (0.8409091 + 1), abs=1e-4)
    assert bbox["AP50-area"] == pytest.approx(50 * (0.8333333 + 1), abs=1e-4)
    assert bbox["AP50"] == bbox["AP50-area"] == bbox["AP75"]
    assert bbox["AP"] == pytest.approx(bbox["AP50"])
    assert bbox["AP50/cat"] == pytest.approx(83.33333, abs=1e-4)
    assert bbox["AP50/dog"] == pytest.approx(100)
    assert "AP50/cow" not in bbox
    assert all(type(value) is float and math.isfinite(value) for value in bbox.values())

    lines = caplog.records[-1].getMessage().splitlines()
    assert lines[0] == (
        "small: headline metric area, match at IoU >= 0.5, difficult and crowd objects "
        "ignored; 3 images, 4 objects (+ 0 ignored), 5 detections"
    )
    assert lines[2].split() == ["cat", "3", "4", "84.09", "83.33"]
    assert lines[3].split() == ["dog", "1", "1", "100.00", "100.00"]
    assert lines[4].split() == ["cow", "0", "0", "-", "-"]
    assert lines[5].split() == ["mean", "4", "5", "92.05", "91.67"]
    assert lines[6].startswith("1 classes have no objects here ('-')")
    assert lines[7] == (
        "mean AP50 91.67, AP75 91.67, AP at IoU .50:.95 91.67 (area; all in percent)"
    )
    print_csv_format(results)


@pytest.mark.parametrize(
    ("year", "metric", "headline"),
    [
        (None, "auto", "area"), (2007, "auto", "11point"), (2010, "auto", "area"),
        (2012, "auto", "area"), (2012, "11point", "11point"), (2007, "area", "area"),
    ],
)  # fmt: skip
def test_headline(year, metric, headline):
    register("small", IMAGES, **({} if year is None else {"year": year}))
    bbox = evaluate("small", PREDICTIONS, metric=metric)["bbox"]
    assert bbox["AP50"] == bbox[f"AP50-{headline}"]
    assert bbox["AP50-11point"] != bbox["AP50-area"]


def test_ap_is_the_mean_over_thresholds():
    # IoU 7/10 passes .50 ... .70, so 5 thresholds of 10 (and .70 itself only with ">=").
    register("small", {"a": [annotation(0, [0, 0, 10, 10])]})
    prediction = {"a": ([[0, 0, 10, 7]], [0.9], [0])}
    bbox = evaluate("small", prediction)["bbox"]
    assert bbox["AP"] == pytest.approx(50) and bbox["AP50"] == pytest.approx(100)
    assert bbox["AP75"] == 0
    assert evaluate("small", prediction, match=">")["bbox"]["AP"] == pytest.approx(40)


@pytest.mark.parametrize("flag", ["difficult", "iscrowd"])
def test_e19d_ignored_objects(flag):
    # Example E19d: TP, difficult, FP, TP with 2 gt.
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]]
    truth = [annotation(0, boxes[0]), annotation(0, boxes[1], **{flag: 1}),
             annotation(0, boxes[3])]  # fmt: skip
    register("small", {"a": truth})
    bbox = evaluate("small", {"a": (boxes, [0.9, 0.8, 0.7, 0.6], [0] * 4)})["bbox"]
    assert bbox["AP50-11point"] == pytest.approx(84.8485, abs=1e-4)
    assert bbox["AP50-area"] == pytest.approx(83.3333, abs=1e-4)


def test_scores_are_exact():
    # Rounded to three digits the scores would tie and the wrong one could come first.
    register("small", {"a": [annotation(0, [0, 0, 10, 10])]})
    boxes = [[50, 50, 60, 60], [0, 0, 10, 10]]
    bbox = evaluate("small", {"a": (boxes, [0.90001, 0.90002], [0, 0])})["bbox"]
    assert bbox["AP50"] == pytest.approx(100)


def test_numeric_ids_and_xywh_boxes():
    truth = {"category_id": 0, "bbox": [5, 5, 10, 10], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0}
    register("small", {7: [truth]})
    bbox = evaluate("small", {7: ([[5, 5, 15, 15]], [0.9], [0])})["bbox"]
    assert bbox["AP50"] == bbox["AP"] == pytest.approx(100)


def test_image_seen_twice_counts_once_and_reset_forgets():
    register("small", IMAGES)
    evaluator = VOCEvaluator("small")
    evaluator.process([{"image_id": "a"}], [output([[0, 0, 9, 9]], [0.3], [2])])
    evaluator.reset()
    for image_id in "aabca":
        evaluator.process([{"image_id": image_id}], [output(*PREDICTIONS[image_id])])
    assert evaluator.evaluate() == evaluate("small", PREDICTIONS)


def test_no_detections(caplog):
    register("small", IMAGES)
    bbox = evaluate("small", {image_id: no_prediction() for image_id in IMAGES})["bbox"]
    assert bbox["AP"] == bbox["AP50"] == bbox["AP50/cat"] == 0.0
    assert "small: no detections at all: is MODEL.WEIGHTS the trained detector" in caplog.text


def test_untrained_predictor(caplog):
    register("small", IMAGES)
    boxes = [[0, 0, 10, 10]] * 4
    evaluate("small", {"a": (boxes, [0.2501, 0.2503, 0.2499, 0.25], [0, 1, 2, 0])})
    assert "all 4 scores lie within 0.001 of 0.2503 (chance is 0.2500)" in caplog.text
    assert "2 of 3 images were not processed" in caplog.text


def test_nan_scores(caplog):
    register("small", IMAGES)
    clean = evaluate("small", PREDICTIONS)
    boxes = [*PREDICTIONS["c"][0], [0, 0, 5, 5], [0, float("inf"), 5, 5]]
    dirty = {**PREDICTIONS, "c": (boxes, [0.8, float("nan"), 0.99], [0, 0, 0])}
    assert evaluate("small", dirty) == clean
    assert "2 of 7 detections have a score or box that is nan or infinite" in caplog.text


def test_no_ground_truth(caplog):
    register("small", {"a": [annotation(0, [0, 0, 10, 10], difficult=1)], "b": []})
    assert evaluate("small", {"a": ([[0, 0, 10, 10]], [0.9], [0])}) == {}
    assert "small: no ground truth (difficult objects not counted) in 2 images" in caplog.text


def test_wrong_predictions():
    register("small", IMAGES)
    with pytest.raises(UserError, match=r"1 images that the model saw \(first: 'z'\) are not in"):
        evaluate("small", {**PREDICTIONS, "z": no_prediction()})
    with pytest.raises(UserError, match=r"class 3 but .* has 3 classes.*NUM_CLASSES 3"):
        evaluate("small", {"a": ([[0, 0, 1, 1]], [0.5], [3])})


def test_wrong_arguments():
    register("small", IMAGES)
    with pytest.raises(UserError, match="match is '==': use one of >=, >"):
        VOCEvaluator("small", match="==")
    with pytest.raises(UserError, match="metric is '07': use one of auto, 11point, area"):
        VOCEvaluator("small", metric="07")
    with pytest.raises(UserError, match="'nameless' has no class names"):
        VOCEvaluator("nameless")


def test_submission_files(tmp_path):
    register("small", IMAGES, split="val")
    evaluate("small", PREDICTIONS, output_dir=str(tmp_path / "out"))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    files = [f"comp4_det_val_{name}.txt" for name in ("cat", "cow", "dog")]
    assert names == ["coco_instances_results.json", *files, "evaluation.json"]
    # 1-based inclusive: continuous x1, y1 plus 1.
    assert (tmp_path / "out" / "comp4_det_val_dog.txt").read_text() == (
        "b 0.50000000 51.000 51.000 60.000 60.000\n"
    )
    assert len((tmp_path / "out" / "comp4_det_val_cat.txt").read_text().splitlines()) == 4
    assert (tmp_path / "out" / "comp4_det_val_cow.txt").read_text() == ""


@pytest.mark.parametrize("split", ["./lists/.test", "/abs/olute.txt", "sub/train", "s" * 300])
def test_no_name_keeps_a_submission_from_being_written(tmp_path, split):
    classes = ["a/b", "a_b", "c" * 300, "c" * 300 + "d", "..", "a\\b"]
    register("small", IMAGES, split=split)
    replace_metadata("small", thing_classes=classes)
    evaluate("small", PREDICTIONS, output_dir=str(tmp_path / "deep" / "out"))
    names = [path.name for path in (tmp_path / "deep" / "out").glob("comp4_det_*.txt")]
    assert len(names) == len(classes)
    assert len(list(tmp_path.rglob("*"))) == 2 + len(classes) + 2  # nothing anywhere else


def test_results_in_cocos_format(tmp_path):
    """Ids as the data set has them; boxes XYWH."""
    register("small", {7: IMAGES["a"], "b": IMAGES["b"]})
    prediction = {7: ([[20, 20, 31, 30]], [0.75], [2]), "b": ([[1, 2, 3, 5]], [0.5], [0])}
    evaluate("small", prediction, output_dir=str(tmp_path))
    expected = [
        {"image_id": 7, "category_id": 2, "bbox": [20, 20, 11, 10], "score": 0.75},
        {"image_id": "b", "category_id": 0, "bbox": [1, 2, 2, 3], "score": 0.5},
    ]
    file = tmp_path / "coco_instances_results.json"
    assert json.loads(file.read_text()) == expected
    replace_metadata("small", thing_dataset_id_to_contiguous_id={5: 0, 6: 1, 9: 2})
    evaluate("small", prediction, output_dir=str(tmp_path))
    assert [entry["category_id"] for entry in json.loads(file.read_text())] == [9, 5]


def test_files_that_cannot_be_written_do_not_end_a_run(tmp_path, caplog):
    register("small", IMAGES, split="val")
    blocked = tmp_path / "out"
    blocked.write_text("a file where the folder should be")
    results = evaluate("small", PREDICTIONS, output_dir=str(blocked))
    assert results == evaluate("small", PREDICTIONS)
    assert f"{blocked}/comp4_det_val_*.txt is not written: [Errno" in caplog.text
    for name in ("evaluation.json", "coco_instances_results.json"):
        assert f"{blocked}/{name} is not written: [Errno" in caplog.text


def random_folder(root, rng):
    """40 images with objects as Detectron2's loader needs them: all tags, whole numbers."""
    tags = "<pose>Frontal</pose><truncated>0</truncated><difficult>{}</difficult>"
    for number in range(40):
        objects = []
        for _ in range(rng.integers(0, 6)):
            x, y = rng.integers(1, 50, 2)
            box = (x, y, x + rng.integers(8, 40), y + rng.integers(8, 30))
            extra = tags.format(int(rng.random() < 0.25))
            objects.append(obj(CLASSES[rng.integers(3)], box, extra))
        add_image(root, f"{number:06d}", *objects, split="test")


def random_predictions(root, rng):
    """Noisy copies of the objects, and noise; boxes to .1, scores to .001 and all different."""
    register_voc("read_back", root, "test", CLASSES)
    scores = iter(rng.permutation(999) / 1000 + 0.001)
    predictions = {}
    for item in DatasetCatalog.get("read_back"):
        boxes, classes = [], []
        for annotation in item["annotations"] * 2:
            boxes.append(np.add(annotation["bbox"], rng.normal(0, 1.5, 4)))
            classes.append(annotation["category_id"])
        for _ in range(3):
            x, y = rng.uniform(0, 50, 2)
            boxes.append([x, y, x + rng.uniform(8, 40), y + rng.uniform(8, 30)])
            classes.append(int(rng.integers(3)))
        predictions[item["image_id"]] = (
            np.round(boxes, 1).tolist(), [next(scores) for _ in boxes], classes,
        )  # fmt: skip
    return predictions


@pytest.mark.parametrize(("year", "metric"), [(2007, "11point"), (2012, "area")])
def test_agrees_with_detectron2s_evaluator(tmp_path, year, metric):
    rng = np.random.default_rng(year)
    random_folder(tmp_path, rng)
    predictions = random_predictions(tmp_path, rng)
    register_pascal_voc("theirs", str(tmp_path), "test", year, CLASSES)
    MetadataCatalog.get("theirs").evaluator_type = "pascal_voc"
    host = PascalVOCDetectionEvaluator("theirs")
    host.reset()
    for image_id, prediction in predictions.items():
        host.process([{"image_id": image_id}], [output(*prediction)])
    expected = host.evaluate()["bbox"]
    ours = evaluate("theirs", predictions, match=">")["bbox"]
    assert 5 < expected["AP75"] < expected["AP50"] < 95  # not a trivial case
    for key in ("AP", "AP50", "AP75"):
        assert ours[key] == pytest.approx(expected[key], abs=1e-9)
    assert ours["AP50"] == ours[f"AP50-{metric}"]


def test_difficult_is_respected_for_detectron2s_names(tmp_path):
    # Detectron2's dicts do not say what is difficult; ours for the same folder do.
    rng = np.random.default_rng(3)
    random_folder(tmp_path, rng)
    predictions = random_predictions(tmp_path, rng)
    register_pascal_voc("theirs", str(tmp_path), "test", 2007, CLASSES)
    MetadataCatalog.get("theirs").evaluator_type = "pascal_voc"
    theirs, ours = (evaluate(n, predictions, metric="area") for n in ("theirs", "read_back"))
    assert theirs == ours


@pytest.mark.parametrize("year", [2007, 2012])
def test_our_sets_for_their_evaluator(tmp_path, year):
    """What is difficult or ignored is so for both evaluators."""
    rng = np.random.default_rng(year)
    random_folder(tmp_path, rng)
    predictions = random_predictions(tmp_path, rng)
    arguments = (str(tmp_path), "test", CLASSES, year)
    register_voc("plain", *arguments)
    register_voc("named", *arguments, evaluator="pascal_voc")
    assert evaluate("named", predictions) == evaluate("plain", predictions)
    host = PascalVOCDetectionEvaluator("named")
    host.reset()
    for image_id, prediction in predictions.items():
        host.process([{"image_id": image_id}], [output(*prediction)])
    ours = evaluate("named", predictions, match=">")["bbox"]
    assert ours["AP50"] == pytest.approx(host.evaluate()["bbox"]["AP50"], abs=1e-9)
    check_datasets(["named"], len(CLASSES))
    for name, evaluator in (("fewer", "voc"), ("fewer_named", "pascal_voc")):
        fewer = {"ignore": CLASSES[2:], "evaluator": evaluator}
        register_voc(name, *arguments[:2], CLASSES[:2], year, **fewer)
    one, other = (load_ground_truth(name) for name in ("fewer", "fewer_named"))
    assert np.array_equal(one.boxes, other.boxes) and np.array_equal(one.classes, other.classes)


def test_evaluators_of_a_set(tmp_path):
    arguments = (str(tmp_path), "test", CLASSES)
    for bad in ({"year": None}, {"year": 2008}, {"rename": {"cow": "cat"}}, {"counts_from": 0}):
        with pytest.raises(UserError, match=r"'a': .* year 2007 .*neither rename nor counts_from"):
            register_voc("a", *arguments, **{"year": 2012, "evaluator": "pascal_voc", **bad})
    with pytest.raises(UserError, match="'a': evaluator must be voc or coco or pascal_voc; got 'C"):
        register_voc("a", *arguments, evaluator="COCO")
    with pytest.raises(UserError, match="evaluator must be voc or coco; got 'pascal_voc'"):
        register_xml_folder("a", str(tmp_path), CLASSES, evaluator="pascal_voc")
    with pytest.raises(UserError, match="evaluator must be voc or coco; got 'pascal_voc'"):
        register_coco("a", "a.json", str(tmp_path), evaluator="pascal_voc")
    assert "a" not in DatasetCatalog


def test_record_for_the_report(tmp_path):
    register("recorded", IMAGES)
    results = evaluate("recorded", PREDICTIONS, output_dir=str(tmp_path))["bbox"]
    record = EvaluationRecord.load(tmp_path / "evaluation.json")
    assert record.results == dict(results)
    assert (record.dataset, record.metric, record.num_images) == ("recorded", "area", 3)
    cat, dog, cow = record.classes
    assert cat.aps["AP50-area"] == results["AP50/cat"]
    assert dog.aps == {"AP50-11point": 100.0, "AP50-area": 100.0}
    assert (cow.num_objects, cow.aps) == (0, {})
    # The image without objects has a false one.
    assert [image.image_id for image in record.best] == ["a", "b"]
    assert [image.image_id for image in record.worst] == ["c"]


NUM_IMAGES = 7


def moving_box(index):
    return [float(index), 0.0, float(index + 10), 10.0]


def load():
    return [
        {"image_id": str(index), "annotations": [annotation(0, moving_box(index))]}
        for index in range(NUM_IMAGES)
    ]


def evaluate_my_share(output_file):
    """Every process takes every second image; the last comes twice, as a padding sampler does."""
    if "two_processes" not in DatasetCatalog:
        DatasetCatalog.register("two_processes", load)
    MetadataCatalog.get("two_processes").thing_classes = ["cat"]
    evaluator = VOCEvaluator("two_processes")
    mine = [*range(comm.get_rank(), NUM_IMAGES, comm.get_world_size()), NUM_IMAGES - 1]
    for index in mine:
        # Image 0 is missed, and the best score of all is a false one.
        found = output([moving_box(index + 50 * (index == 0))], [0.9 - 0.1 * index], [0])
        evaluator.process([{"image_id": str(index)}], [found])
    results = evaluator.evaluate()
    assert bool(results) == comm.is_main_process()
    if comm.is_main_process():
        output_file.write_text(json.dumps([comm.get_world_size(), results["bbox"]]))


def test_two_processes_give_what_one_gives(tmp_path):
    launch(evaluate_my_share, 2, args=(tmp_path / "two.json",))
    evaluate_my_share(tmp_path / "one.json")
    two, one = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "one"))
    assert (two[0], one[0]) == (2, 1)
    assert two[1] == one[1]
    # By hand: FP, then 6 TP of 7 gt; precision 6/7 up to recall 6/7 = .857.
    assert abs(two[1]["AP50-11point"] - 100 * 9 / 11 * 6 / 7) < 1e-6
    assert abs(two[1]["AP50-area"] - 100 * 6 / 7 * 6 / 7) < 1e-6


def test_best_of_each_class_over_the_set() -> None:
    """One per image of two: of the three cats the worst goes, of the two dogs none."""
    found = Detections(
        np.zeros((5, 4)),
        np.array([0.9, 0.8, 0.7, 0.6, 0.5]),
        np.array([0, 1, 0, 0, 1]),
        np.zeros(5),
    )
    assert found.best_of_classes(2).scores.tolist() == [0.9, 0.8, 0.7, 0.5]
    assert len(found.select(np.zeros(5, dtype=bool)).best_of_classes(2).scores) == 0


def test_set_whose_answers_are_not_public(tmp_path, caplog):
    """No XML file is read, no AP is printed, and the files lie as the VOC server takes them."""
    add_image(tmp_path, "a", obj("cat"), split="test")  # an XML file, of an image with a cat
    write_image(tmp_path / "JPEGImages" / "b.jpg")
    add_line(tmp_path, "b", split="test")
    register_voc("secret", tmp_path, "test", CLASSES, year=2012, annotated=False)
    assert [item["annotations"] for item in DatasetCatalog.get("secret")] == [[], []]
    predictions = {"a": ([[10, 20, 50, 60]], [0.5], [0]), "b": no_prediction()}
    with caplog.at_level(logging.INFO, logger="frcnn_plugin"):
        assert evaluate("secret", predictions, output_dir=str(tmp_path / "out")) == {}
    assert "secret: 1 detections; the set has no annotations, so no AP. To submit" in caplog.text
    assert "AP50" not in caplog.text
    folder = tmp_path / "out" / "results" / "VOC2012" / "Main"
    assert sorted(file.name for file in folder.iterdir()) == [
        f"comp4_det_test_{name}.txt" for name in sorted(CLASSES)
    ]
    text = (folder / "comp4_det_test_cat.txt").read_text()
    assert text == "a 0.50000000 11.000 21.000 50.000 60.000\n"
    assert (folder / "comp4_det_test_dog.txt").read_text() == ""


def test_voc_2012_test_is_such_a_set():
    assert MetadataCatalog.get("voc12_test").annotated is False
    assert MetadataCatalog.get("voc12_val").annotated is True

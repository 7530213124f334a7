"""Data sets in COCO's format: registered from the config, checked before they are loaded."""

import copy
import json
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from frcnn_plugin.data import check_datasets, register_coco, register_from_config_entries
from frcnn_plugin.errors import UserError

from .voc_folder import write_image

GOOD = {
    "images": [
        {"id": 1, "file_name": "day/a.jpg", "width": 100, "height": 80},
        {"id": 2, "file_name": "b.png", "width": 100, "height": 80},
    ],
    "categories": [{"id": 8, "name": "dog"}, {"id": 3, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 20, 30, 40], "area": 1200},
        {"id": 2, "image_id": 1, "category_id": 8, "bbox": [0, 0, 100, 80], "area": 8000},
    ],
}


@pytest.fixture
def content():
    return copy.deepcopy(GOOD)


@pytest.fixture
def register(tmp_path):
    write_image(tmp_path / "images" / "day" / "a.jpg")
    write_image(tmp_path / "images" / "b.png")

    def write(content, **more):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "my.json").write_text(text)
        entry = {"name": "mine", "json": str(tmp_path / "my.json")}
        register_from_config_entries([{**entry, "images": str(tmp_path / "images"), **more}])

    return write


def problem(num_classes=2, train=("mine",)):
    with pytest.raises(UserError) as caught:
        check_datasets(["mine"], num_classes, train=train)
    return str(caught.value)


def test_a_sound_file(register, content, caplog):
    with caplog.at_level(logging.INFO, logger="frcnn_plugin"):
        register(content)
        register(content)  # the same again
        check_datasets(["mine"], 2, train=["mine"])
    assert "category ids are mapped: 3 (cat) to 0, 8 (dog) to 1" in caplog.text
    ours = [r for r in caplog.records if r.name.startswith("frcnn_plugin")]
    assert not [r for r in ours if r.levelno >= logging.WARNING]
    metadata = MetadataCatalog.get("mine")
    assert metadata.thing_classes == ["cat", "dog"] and metadata.evaluator_type == "coco"
    dicts = DatasetCatalog.get("mine")
    assert [len(d["annotations"]) for d in dicts] == [2, 0]
    assert [a["category_id"] for a in dicts[0]["annotations"]] == [0, 1]


def test_class_count_and_expected_classes(register, content):
    register(content, classes=["cat", "dog"])
    assert MetadataCatalog.get("mine").thing_classes == ["cat", "dog"]
    check_datasets(["mine"], 2)
    assert problem(20) == (
        "NUM_CLASSES is 20 but dataset 'mine' has 2 classes (cat, dog). Type: "
        "MODEL.ROI_HEADS.NUM_CLASSES 2 (background is not counted)"
    )


def test_other_classes_than_expected(register, content):
    register(content, classes=["dog", "cat"])
    text = problem()
    assert "its categories are cat, dog (in the order of their ids), but" in text
    assert "classes: dog, cat. Leave classes out to take those of the file" in text


def test_voc_metric(register, content):
    for annotation in content["annotations"]:
        del annotation["area"]
    register(content, evaluator="voc")
    check_datasets(["mine"], 2)
    assert MetadataCatalog.get("mine").evaluator_type == "voc"


def test_area_is_needed_for_cocos_metric_only(register, content):
    del content["annotations"][1]["area"]
    register(content)
    check_datasets(["mine"], 2, train=["mine"])
    text = problem(train=())
    assert "annotation 2 has no area, which COCO's metric needs" in text
    assert "`evaluator: voc`" in text


def test_background_is_said_to_be_none(register, content):
    content["categories"].insert(0, {"id": 0, "name": "__background__"})
    register(content)
    assert (
        "category 0 is '__background__': background is not counted as a class, remove it and its "
        "annotations. MODEL.ROI_HEADS.NUM_CLASSES then is 2"
    ) in problem(3)


def test_missing_files(register, content, tmp_path):
    register(content)
    (tmp_path / "images" / "b.png").unlink()
    text = problem()
    assert f"1 of 2 images are not in {tmp_path}/images (b.png)" in text
    assert "`images` must be the folder that every file_name starts from" in text
    (tmp_path / "my.json").unlink()
    assert f"mine: missing {tmp_path}/my.json" in problem()


def edit(path, value):
    """A function that sets one value in a file's content; value None deletes it."""

    def change(content):
        node = content
        for key in path[:-1]:
            node = node[key]
        if value is None:
            del node[path[-1]]
        else:
            node[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            edit(["images"], None),
            "it needs the lists images, categories, annotations; missing images",
        ),
        (edit(["annotations"], {}), "not COCO's format for detection: .*missing annotations"),
        (edit(["categories"], []), "categories is empty"),
        (edit(["categories", 0, "name"], None), "a category has no name: {'id': 8}"),
        (edit(["categories", 0, "name"], "cat"), "category name cat occurs more than once"),
        (edit(["categories", 0, "id"], 3), "category id 3 occurs more than once"),
        (edit(["images", 1, "id"], 1), "image id 1 occurs more than once"),
        (edit(["images", 1, "width"], None), "an image has no width: {'id': 2, 'file_name'"),
        (edit(["annotations", 1, "id"], 1), "annotation id 1 occurs more than once; it must"),
        (edit(["annotations", 0, "bbox"], None), "an annotation has no bbox: {'id': 1"),
        (
            edit(["annotations", 0, "category_id"], 4),
            r"annotation 1 has category_id 4, which is not among the categories \(3 cat, 8 dog\)",
        ),
        (edit(["annotations", 0, "image_id"], 9), "annotation 1 is of image_id 9, which is not in"),
        (edit(["annotations", 0, "bbox"], []), r"bbox must be four numbers.*got \[\]"),
        (edit(["annotations", 0, "bbox"], [1, 2, float("nan"), 4]), r"got \[1, 2, nan, 4\]"),
        (edit(["annotations", 0, "bbox"], [1, 2, "3", 4]), r"got \[1, 2, '3', 4\]"),
        (edit(["annotations"], []), "no objects in its 2 images .*nothing to train on"),
    ],
)
def test_mistakes(register, content, change, message):
    change(content)
    register(content)
    with pytest.raises(UserError, match=message):
        check_datasets(["mine"], 2, train=["mine"])


def test_not_json(register):
    register("images: []")
    assert "my.json: not readable as JSON (Expecting value" in problem()


def test_odd_boxes_and_unused_categories_are_counted(register, content, caplog):
    content["categories"].append({"id": 1, "name": "animals"})
    boxes = [[10, 10, 0, 5], [10, 10, -3, 5], [60, 20, 90, 60], [-0.5, 0, 50, 80]]
    for number, box in enumerate(boxes, start=3):
        content["annotations"].append(
            {"id": number, "image_id": 1, "category_id": 3, "bbox": box, "area": 1}
        )
    register(content)
    check_datasets(["mine"], 3, train=["mine"])
    assert "mine: 2 boxes without area, not trained on: annotation 3 'cat' [10, 10, 0, 5]" in (
        caplog.text
    )
    assert "1 boxes that leave the image, clipped" in caplog.text
    assert "annotation 5 'cat' [60, 20, 90, 60] in an image of 100x80" in caplog.text
    assert "mine: no object of animals in" in caplog.text
    assert "some exports add a group's name as a category" in caplog.text


def test_a_test_set_without_answers(register, content, caplog):
    del content["annotations"]
    register(content)
    check_datasets(["mine"], 2)
    assert "mine: no objects in its 2 images" in caplog.text


def test_a_name_that_is_taken(register, content):
    register(content)
    with pytest.raises(UserError, match="'mine' is already registered with other arguments"):
        register_coco("mine", "/other.json", "/images")
    with pytest.raises(UserError, match="'coco_2017_val' is already registered by other code"):
        register_coco("coco_2017_val", "/other.json", "/images")


def test_relative_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_coco("mine", "sub/my.json", "./pictures")
    metadata = MetadataCatalog.get("mine")
    assert metadata.json_file == str(tmp_path / "sub" / "my.json")
    assert metadata.image_root == "pictures"

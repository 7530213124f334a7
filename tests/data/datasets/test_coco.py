"""Data sets in COCO's format: registered from the config, checked before they are loaded."""

import copy
import json
import logging
import random
import re
import time

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from frcnn_plugin.data import check_datasets, register_coco, register_from_config_entries
from frcnn_plugin.data.datasets.coco import coco_source
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
        entry = {"name": "mine", "json": str(tmp_path / "my.json"), **more}
        register_from_config_entries([{**entry, "images": str(tmp_path / "images")}])

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
    assert "my.json are mapped: 3 (cat) to 0, 8 (dog) to 1" in caplog.text
    ours = [r for r in caplog.records if r.name.startswith("frcnn_plugin")]
    assert not [r for r in ours if r.levelno >= logging.WARNING]
    metadata = MetadataCatalog.get("mine")
    assert metadata.thing_classes == ["cat", "dog"] and metadata.evaluator_type == "coco"
    dicts = DatasetCatalog.get("mine")
    assert [len(d["annotations"]) for d in dicts] == [2, 0]
    assert [a["category_id"] for a in dicts[0]["annotations"]] == [0, 1]


def test_expected_classes(register, content):
    register(content, name="right", classes=["cat", "dog"])
    assert MetadataCatalog.get("right").thing_classes == ["cat", "dog"]
    check_datasets(["right"], 2)
    register(content, classes=["dog", "cat"])
    text = problem()
    assert "its categories are cat, dog (in the order of their ids), but" in text
    assert text.endswith("classes: dog, cat. Leave classes out to take those of the file")
    register(content, name="other", classes=["cat"])
    with pytest.raises(UserError, match=r"or leave the others out with ignore: \['dog'\]"):
        check_datasets(["other"], 1)


@pytest.mark.parametrize("texts", ["of annotations", "of images and categories"])
def test_ids_that_are_texts_in_one_list(register, content, texts):
    register(content, name="right")
    lists = ("images", "categories") if texts != "of annotations" else ()
    for entry in [entry for name in lists for entry in content[name]]:
        entry["id"] = str(entry["id"])
    for entry in content["annotations"] if not lists else ():
        entry |= {key: str(entry[key]) for key in ("image_id", "category_id")}
    register(content)
    check_datasets(["mine"], 2, train=["mine"])
    right, mine = ([d["annotations"] for d in DatasetCatalog.get(n)] for n in ("right", "mine"))
    assert [len(objects) for objects in mine] == [2, 0]
    assert {str(o["bbox"]): o["category_id"] for o in right[0]}.keys() == {
        str(o["bbox"]) for o in mine[0]
    }
    names = [MetadataCatalog.get(n).thing_classes for n in ("right", "mine")]
    for one, other in zip(right[0], mine[0], strict=True):
        assert names[0][one["category_id"]] == names[1][other["category_id"]]
    content["annotations"][0]["image_id"] = "9"
    register(content, name="wrong")
    with pytest.raises(UserError, match="annotation 1 is of image_id '9', which is not in images"):
        check_datasets(["wrong"], 2)


def test_file_names_of_windows(register, content, tmp_path):
    content["images"][0]["file_name"] = "day\\a.jpg"
    register(content)
    check_datasets(["mine"], 2, train=["mine"])
    assert DatasetCatalog.get("mine")[0]["file_name"] == f"{tmp_path}/images/day/a.jpg"
    write_image(tmp_path / "images" / "day\\a.jpg")  # of this very name: it is meant
    register(content, name="odd")
    assert DatasetCatalog.get("odd")[0]["file_name"] == f"{tmp_path}/images/day\\a.jpg"


def test_voc_metric(register, content):
    register(content, evaluator="voc")
    assert MetadataCatalog.get("mine").evaluator_type == "voc"


def test_background_is_said_to_be_none(register, content):
    content["categories"].insert(0, {"id": 0, "name": "__background__"})
    register(content)
    assert (
        "category 0 is '__background__': background is not counted as a class. Leave it out with "
        "ignore: ['__background__'], or remove it and its annotations. "
        "MODEL.ROI_HEADS.NUM_CLASSES then is 2"
    ) in problem(3)


def test_missing_files(register, content, tmp_path):
    register(content)
    (tmp_path / "images" / "b.png").unlink()
    text = problem()
    assert f"1 of 2 images cannot be used: there is no file {tmp_path}/images/b.png" in text
    (tmp_path / "images" / "day" / "a.jpg").unlink()
    text = problem()
    assert f"none of its 2 images is in {tmp_path}/images (day/a.jpg, b.png)" in text
    assert "`images` must be the folder that every file_name starts from" in text
    (tmp_path / "my.json").unlink()
    assert f"mine: missing {tmp_path}/my.json" in problem()


NULL = object()


def edit(path, value):
    """A function that sets one value in a file's content; value None deletes it, NULL is null."""

    def change(content):
        node = content
        for key in path[:-1]:
            node = node[key]
        if value is None:
            del node[path[-1]]
        else:
            node[path[-1]] = None if value is NULL else value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(["images"], None), "the lists images, categories, annotations; missing images"),
        (edit(["annotations"], {}), "not COCO's format for detection: .*missing annotations"),
        (edit(["categories"], []), "categories is empty"),
        (edit(["categories", 0, "name"], None), "a category has no name: {'id': 8}"),
        (edit(["categories", 0, "name"], "cat"), "category name cat occurs more than once"),
        (edit(["categories", 0, "id"], 3), "category id 3 occurs more than once"),
        (edit(["images", 1, "id"], 1), "image id 1 occurs more than once"),
        (edit(["annotations", 1, "id"], 1), "annotation id 1 occurs more than once; it must"),
        (edit(["annotations", 0, "bbox"], None), "an annotation has no bbox: {'id': 1"),
        (edit(["annotations", 0, "category_id"], 4), r"1 has category_id 4, .*\(3 cat, 8 dog\)"),
        (edit(["annotations", 0, "image_id"], 9), "annotation 1 is of image_id 9, which is not in"),
        (edit(["annotations", 0, "bbox"], []), r"bbox must be four numbers.*got \[\]"),
        (edit(["annotations", 0, "bbox"], [1, 2, float("nan"), 4]), r"got \[1, 2, nan, 4\]"),
        (edit(["annotations", 0, "bbox"], [1, 2, "3", 4]), r"got \[1, 2, '3', 4\]"),
        (edit(["annotations"], [[]]), "an annotation number 1 must be a mapping; got \\[\\]"),
        (edit(["images", 1], "b.png"), "an image number 2 must be a mapping; got 'b.png'"),
        (edit(["categories", 0], 3), "a category number 1 must be a mapping; got 3"),
        (edit(["annotations"], NULL), "annotations; missing annotations"),
        (edit(["annotations", 0, "id"], [1]), "id of an annotation must be a whole number or a te"),
        (edit(["annotations", 0, "image_id"], [1]), r"annotation 1 is of image_id \[1\], which is"),
        (edit(["annotations", 0, "image_id"], "x"), "annotation 1 is of image_id 'x', which is"),
        (edit(["annotations", 0, "category_id"], {}), r"annotation 1 has category_id {}, which is"),
        (edit(["annotations", 0, "category_id"], "x"), r"category_id 'x', .*\(3 cat, 8 dog\)"),
        (edit(["annotations", 0, "id"], "1"), "all numbers or all texts; 1 of 2 are texts .*'1'"),
        (edit(["images", 0, "id"], True), "id of an image must be a whole number or a text"),
        (edit(["images", 0, "width"], "100"), "width and height of image 1 must .* got '100'"),
        (edit(["images", 0, "height"], -1), "must be whole numbers of pixels; got 100 and -1"),
        (edit(["images", 0, "height"], 60.5), "must be whole numbers of pixels; got 100 and 60.5"),
        (edit(["images", 0, "file_name"], 7), "file_name must be the name of a file"),
        (edit(["images", 0, "file_name"], "a\0"), "file_name must be the name of a file"),
        (edit(["categories", 0, "name"], "a\x1b[31m"), "name of category 8 holds control char"),
        (edit(["categories", 0, "name"], NULL), "name of category 8 is not a text"),
        (edit(["annotations", 0, "iscrowd"], "0"), "annotation 1: iscrowd must be 0 or 1; got '0'"),
        (edit(["annotations", 0, "ignore"], [1]), "annotation 1: ignore must be 0 or 1"),
        (edit(["annotations", 0, "area"], "12"), "annotation 1: area must be a number; got '12'"),
        (edit(["annotations", 0, "bbox"], [1, 2, 3, 10**400]), "bbox must be four numbers"),
        (edit(["annotations", 0, "bbox"], NULL), "bbox must be four numbers.*got None"),
        (edit(["annotations"], []), "no objects in its 2 images .*nothing to train on"),
    ],
)
def test_mistakes(register, content, change, message):
    change(content)
    register(content)
    with pytest.raises(UserError, match=message):
        check_datasets(["mine"], 2, train=["mine"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("images: []", "Expecting value"), ("", "Expecting value"), ("[" * 10**5, "recursion"),
        (f"[{'9' * 10**4}]", "digits"), ("\udcff", "codec can't decode"), ("[1", "delimiter"),
    ],
    ids=range(6),
)  # fmt: skip
def test_not_json(register, tmp_path, text, why):
    register("")
    (tmp_path / "my.json").write_bytes(text.encode(errors="surrogateescape"))
    assert re.search(rf"my.json: not readable as JSON \(.*{why}", problem())


@pytest.mark.parametrize("text", ["3", "null", "[]", '"a"'])
def test_other_json(register, text):
    register(text)
    assert "my.json: not COCO's format for detection" in problem()


def test_fractions_of_the_image(register, content):
    for annotation in content["annotations"]:
        annotation["bbox"] = [0.25, 0.125, 0.5, 0.625]
    register(content)
    assert "they seem to be fractions of the image; multiply them" in problem()


def test_odd_boxes_are_counted(register, content, caplog):
    boxes = [[10, 10, 0, 5], [10, 10, -3, 5], [200, 0, 5, 5], [60, 20, 90, 60], [-0.5, 0, 50, 80]]
    for number, box in enumerate(boxes, start=3):
        content["annotations"].append(
            {"id": number, "image_id": 1, "category_id": 3, "bbox": box, "area": 1}
        )
    register(content)
    check_datasets(["mine"], 2, train=["mine"])
    assert "mine: 3 of 7 boxes are dropped: " in caplog.text
    assert (
        "1 of 7 boxes leave their image and are clipped: annotation 6 'cat': it leaves the image "
        "(bbox [60, 20, 90, 60]; image 100x80); is bbox [x, y, width, height] and not two corners?"
    ) in caplog.text
    boxes = [a["bbox"] for a in DatasetCatalog.get("mine")[0]["annotations"]]
    assert boxes[2:] == [[60, 20, 40, 60], [0, 0, 49.5, 80]]


def test_objects_that_are_there_twice(register, content, caplog):
    """The same box, class and image: also where classes that were merged are meant."""
    first, _ = content["annotations"]
    content["annotations"] += [
        {**first, "id": 3}, {**first, "id": 4, "category_id": 8}, {**first, "id": 5, "image_id": 2},
        {**first, "id": 6, "iscrowd": 1},
    ]  # fmt: skip
    register(content)
    assert [len(d["annotations"]) for d in DatasetCatalog.get("mine")] == [4, 1]
    assert "1 of 6 boxes are dropped: annotation 3 'cat': it is there twice" in caplog.text
    register(content, name="merged", rename={"dog": "cat"})
    assert [len(d["annotations"]) for d in DatasetCatalog.get("merged")] == [3, 1]


def test_unused_categories(register, content, caplog):
    """An export's group: counted in a warning; left out by ignore, or by a list without it."""
    content["categories"].append({"id": 1, "name": "animals"})
    register(content)
    check_datasets(["mine"], 3)
    assert "mine: no object of animals in" in caplog.text
    assert "leave it out with ignore: ['animals']" in caplog.text
    ways = {"listed": {"classes": ["cat", "dog"]}, "ignored": {"ignore": ["animals"]}}
    for name, more in ways.items():
        register(content, name=name, **more)
        check_datasets([name], 2)
        dicts = DatasetCatalog.get(name)
        assert [a["category_id"] for a in dicts[0]["annotations"]] == [0, 1]
        assert MetadataCatalog.get(name).thing_classes == ["cat", "dog"]
        assert MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id == {3: 0, 8: 1}


def test_ignore_and_rename(register, content):
    content["categories"] += [{"id": 2, "name": "puppy"}, {"id": 9, "name": "background"}]
    for number, category in ((3, 2), (4, 9)):
        content["annotations"].append(
            {"id": number, "image_id": 2, "category_id": category, "bbox": [1, 1, 8, 8]}
        )
    register(content, ignore=["background"], rename={"puppy": "dog", "cat": "Cat"})
    check_datasets(["mine"], 2, train=["mine"])
    metadata = MetadataCatalog.get("mine")
    assert metadata.thing_classes == ["dog", "Cat"]  # in the order of the lowest ids
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 3: 1}
    found = [[a["category_id"] for a in d["annotations"]] for d in DatasetCatalog.get("mine")]
    assert found == [[1, 0], [0]]
    register(content, name="other", ignore=["Background"])
    with pytest.raises(UserError, match="no category is called Background, which `ignore` or"):
        check_datasets(["other"], 2)


SEGMENTATIONS = [
    [[]], [[1, 2, 3, 4]], [[1, 2], [3, 4]], [1, 2, 3, 4, 5, 6], {"size": [80, 100]}, {"counts": []},
    {"counts": ["x"], "size": [80, 100]}, {"counts": [1], "size": None}, "text", 7, None, [None],
    {},
]  # fmt: skip


@pytest.mark.parametrize("value", SEGMENTATIONS, ids=str)
def test_no_object_falls_by_its_segmentation(register, content, value):
    content["annotations"][0]["segmentation"] = value
    content["annotations"][1]["segmentation"] = [[0, 0, 99, 0, 99, 79], [5, 6]]
    register(content)
    check_datasets(["mine"], 2, train=["mine"])
    first, second = DatasetCatalog.get("mine")[0]["annotations"]
    assert first["bbox"] == [10, 20, 30, 40] and "segmentation" not in first
    assert second["segmentation"] == [[0, 0, 99, 0, 99, 79]]


def test_run_lengths_are_handed_on_as_detectron2_does(register, content):
    content["annotations"][0]["segmentation"] = {"counts": [0, 8000], "size": [80, 100]}
    register(content)
    register_coco_instances("theirs", {}, *_paths("mine"))
    (ours, _), (theirs, _) = (DatasetCatalog.get(n)[0]["annotations"] for n in ("mine", "theirs"))
    assert ours["segmentation"] == theirs["segmentation"]


def _paths(name):
    metadata = MetadataCatalog.get(name)
    return metadata.json_file, metadata.image_root


def test_what_detectron2s_loader_would_lose_is_said(register, content, caplog):
    register(content)
    register_coco_instances("theirs", {}, *_paths("mine"))
    check_datasets(["theirs"], 2)
    assert "Detectron2's loader of" not in caplog.text
    content["annotations"][0]["segmentation"] = [[1, 2, 3, 4]]
    content["annotations"][1]["iscrowd"] = None
    register(content)
    register_coco_instances("again", {}, *_paths("mine"))
    check_datasets(["again"], 2)
    assert "leaves out, 2 of 2 objects, because their segmentation is not" in caplog.text


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
@pytest.mark.parametrize(("value", "expected"), [(None, 0), (0, 0), (True, 1), (1, 1)])
def test_crowds(register, content, key, value, expected):
    content["annotations"][0][key] = value
    register(content)
    assert [a["iscrowd"] for a in DatasetCatalog.get("mine")[0]["annotations"]] == [expected, 0]


def test_what_cocos_metric_sees(register, content):
    """Numbered from 1, with a sound area, in the image."""
    areas = [None, 0, -1, 1e12, 5]
    content["annotations"] = [
        {"id": 7 * i, "image_id": 1, "category_id": 8, "bbox": [90, i, 30, 40], "area": area}
        for i, area in enumerate(areas)
    ]
    register(content)
    seen = coco_source("mine").read()["annotations"]
    assert [entry["id"] for entry in seen] == [1, 2, 3, 4, 5]
    assert [entry["area"] for entry in seen] == [400, 400, 400, 400, 5]
    assert [entry["bbox"] for entry in seen] == [[90, i, 10, 40] for i in range(5)]
    assert all(entry["iscrowd"] == 0 for entry in seen)


def test_same_dicts_as_detectron2s_loader(register, content):
    for number, annotation in enumerate(content["annotations"]):
        annotation["iscrowd"] = number
    register(content)
    register_coco_instances("theirs", {}, *_paths("mine"))
    ours, theirs = (DatasetCatalog.get(name) for name in ("mine", "theirs"))
    assert ours == theirs
    ours, theirs = (MetadataCatalog.get(name).as_dict() for name in ("mine", "theirs"))
    assert {**ours, "name": ""} == {**theirs, "name": ""}


@pytest.mark.parametrize("value", [None, NULL, 0])
def test_a_size_that_is_missing_is_that_of_the_image(register, content, value):
    for key in ("width", "height"):
        edit(["images", 0, key], value)(content)
    register(content)
    check_datasets(["mine"], 2)
    assert [(d["width"], d["height"]) for d in DatasetCatalog.get("mine")] == [(100, 80)] * 2


def test_a_size_that_boxes_are_for_but_the_image_has_not(register, content):
    edit(["images", 0, "width"], 200)(content)
    edit(["annotations", 1, "bbox"], [0, 0, 200, 80])(content)
    register(content)
    assert "1 of 2 images are not of the size that their annotations are for: a.jpg" in problem()


@pytest.mark.parametrize("second", ["day/a.jpg", "./day/a.jpg", "day//a.jpg"])
def test_an_image_under_two_ids_is_said(register, content, caplog, second):
    content["images"][1]["file_name"] = second
    register(content)
    check_datasets(["mine"], 2)
    assert "mine: 1 images have several ids, so that the objects of one are" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_encodings(register, content, tmp_path, encoding):
    register(content)
    (tmp_path / "my.json").write_text(json.dumps(content), encoding=encoding)
    check_datasets(["mine"], 2)


def test_texts_as_ids(register, content):
    text = json.dumps(content)
    for key in ("id", "image_id", "category_id"):
        text = re.sub(rf'"{key}": (\d+)', rf'"{key}": "\1"', text)
    register(text)
    check_datasets(["mine"], 2, train=["mine"])
    assert [d["image_id"] for d in DatasetCatalog.get("mine")] == ["1", "2"]


def test_2000_images_are_read_in_seconds(tmp_path):
    """Nothing that is done per object or image is slow, or done for all others."""
    rng = random.Random(0)
    images = [
        {"id": i, "file_name": "a.jpg" if i else "b.jpg", "width": 100, "height": 80}
        for i in range(2_000)
    ]
    annotations = [
        {
            "id": i, "image_id": i % 2_000, "category_id": i % 80, "iscrowd": 0, "area": 500.0,
            "bbox": [rng.uniform(-9, 80), rng.uniform(0, 40), 10.0, 60.0],
            "segmentation": [[rng.uniform(0, 400) for _ in range(20)]],
        }
        for i in range(16_000)
    ]  # fmt: skip
    categories = [{"id": i, "name": f"class {i}"} for i in range(80)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "big.json").write_text(json.dumps(content))
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / name)
    register_coco("big", str(tmp_path / "big.json"), str(tmp_path))
    start = time.process_time()
    check_datasets(["big"], 80, train=["big"])
    assert time.process_time() - start < 2.5


def test_a_test_set_without_answers(register, content, caplog):
    del content["annotations"]
    register(content)
    check_datasets(["mine"], 2)
    assert "mine: no objects in its 2 images" in caplog.text


def test_a_name_that_is_taken(register, content):
    register(content)
    with pytest.raises(UserError, match="'mine' is already registered with other arguments"):
        register(content, evaluator="voc")


def test_relative_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_coco("mine", "sub/my.json", "./pictures")
    metadata = MetadataCatalog.get("mine")
    assert metadata.json_file == str(tmp_path / "sub" / "my.json")
    assert metadata.image_root == "pictures"

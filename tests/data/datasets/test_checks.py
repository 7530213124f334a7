import json
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from detectron2.structures import BoxMode

from frcnn_plugin.data import check_datasets, register_voc
from frcnn_plugin.errors import UserError

from .voc_folder import add_image, obj, write_image

SEVEN = ["cat", "dog", "cow", "hen", "pig", "ox", "bee"]


@pytest.fixture
def root(tmp_path):
    add_image(tmp_path, "a", obj("cat"))
    return tmp_path


def test_all_well(root):
    register_voc("my_train", root, "train", SEVEN)
    check_datasets(["my_train", "my_train"], 7, train=["my_train"])
    check_datasets(["my_train"], None)
    check_datasets([], 20)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("voc07_trianval", "did you mean voc07_trainval"),
        ("qqqq", ".*DATASETS.REGISTER"),
        # Not "cityscapes_fine_sem_seg_test", which shares some letters.
        ("fine_seg_test", "voc07_trainval is, for example. .*DATASETS.REGISTER"),
    ],
)
def test_unknown_name(name, hint):
    with pytest.raises(UserError, match=f"'{name}' is not registered; {hint}"):
        check_datasets([name], 20)


def test_class_count(root):
    register_voc("my_train", root, "train", SEVEN)
    with pytest.raises(UserError) as caught:
        check_datasets(["my_train"], 20)
    assert str(caught.value) == (
        "NUM_CLASSES is 20 but dataset 'my_train' has 7 classes "
        "(cat, dog, cow, hen, pig, ox, bee). Type: MODEL.ROI_HEADS.NUM_CLASSES 7 "
        "(background is not counted), or -1 for as many as the data sets have"
    )


def test_class_count_of_a_set_with_background():
    DatasetCatalog.register("theirs", lambda: [{"image_id": 1}])
    MetadataCatalog.get("theirs").thing_classes = ["__background__", "cat"]
    with pytest.raises(UserError, match="'theirs' lists '__background__' as a class"):
        check_datasets(["theirs"], 2)


def test_class_lists_that_differ(root):
    register_voc("one", root, "train", ["cat", "dog"])
    register_voc("two", root, "train", ["dog", "cat"])
    register_voc("three", root, "train", ["cat"])
    with pytest.raises(UserError, match="class 0 is 'cat' in the one and 'dog' in the other"):
        check_datasets(["one", "two"], 2)
    with pytest.raises(UserError, match="'one' and 'three' differ in their classes: 2 and 1"):
        check_datasets(["one", "three"], None)


def test_missing_files_of_detectron2s_own_voc_names(tmp_path):
    register_pascal_voc("voc_2007_here", str(tmp_path / "VOC2007"), "test", 2007)
    MetadataCatalog.get("voc_2007_here").evaluator_type = "pascal_voc"
    with pytest.raises(UserError) as caught:
        check_datasets(["voc_2007_here"], 20)
    message = str(caught.value)
    assert f"missing {tmp_path}/VOC2007/ImageSets/Main/test.txt" in message
    assert "'voc07_here' accepts VOCdevkit/VOC2007 too" in message


def test_missing_files_of_coco(tmp_path):
    register_coco_instances("my_coco", {}, str(tmp_path / "a.json"), str(tmp_path / "images"))
    with pytest.raises(UserError) as caught:
        check_datasets(["my_coco"], 80)
    message = str(caught.value)
    assert f"my_coco: missing {tmp_path}/a.json" in message
    assert "annotations/instances_*.json" in message and "make demo" in message
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UserError, match=f"my_coco: missing {tmp_path}/images"):
        check_datasets(["my_coco"], 80)


def test_coco_sets_of_detectron2(tmp_path):
    write_image(tmp_path / "images" / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    register_coco_instances("my_coco", {}, str(tmp_path / "a.json"), str(tmp_path / "images"))
    with pytest.raises(UserError, match=r"'my_coco' has 2 classes \(cat, dog\)"):
        check_datasets(["my_coco"], 80)
    write_image(tmp_path / "images" / "a.jpg", (80, 100))
    register_coco_instances("other", {}, str(tmp_path / "a.json"), str(tmp_path / "images"))
    with pytest.raises(UserError, match="other: 1 of 1 images are not of the size"):
        check_datasets(["other"], 2)


def test_empty_sets(tmp_path, caplog):
    add_image(tmp_path, "a", obj("cat", extra="<difficult>1</difficult>"))
    (tmp_path / "ImageSets" / "Main" / "none.txt").write_text("\n")
    register_voc("no_images", tmp_path, "none", ["cat"])
    with pytest.raises(UserError, match=r"no_images: no images; .*ImageSets/Main/<split>\.txt"):
        check_datasets(["no_images"], 1)
    register_voc("no_objects", tmp_path, "train", ["cat"])
    with pytest.raises(UserError, match="no_objects: no objects in its 1 images"):
        check_datasets(["no_objects"], 1, train=["no_objects"])
    with caplog.at_level(logging.WARNING):
        check_datasets(["no_objects"], 1)
    assert "no_objects: no objects" in caplog.text


def test_official_counts(monkeypatch, root, tmp_path, caplog):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    add_image(tmp_path / "VOC2007", "000005", obj("cat"), split="trainval")
    with caplog.at_level(logging.WARNING):
        check_datasets(["voc07_trainval"], 20, train=["voc07_trainval"])
    assert "voc07_trainval: 1 images, but PASCAL's image set has 5011" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{}, {"image_id": None}], "1 of its 2 dicts have no image_id"),
        ([{"image_id": 1}, {"image_id": "1"}], r"1 image ids occur more than once \(1\)"),
        ([{"width": 80, "height": 100}], "a.jpg is 100x80, its annotation says 80x100"),
    ],
)
def test_dicts_of_other_code_that_end_a_run_late(tmp_path, changes, message):
    file = str(write_image(tmp_path / "a.jpg"))
    dicts = [
        {"image_id": n, "file_name": file, "width": 100, "height": 80, **change}
        for n, change in enumerate(changes)
    ]
    DatasetCatalog.register("theirs", lambda: dicts)
    MetadataCatalog.get("theirs").thing_classes = ["cat"]
    with pytest.raises(UserError, match=f"theirs: .*{message}"):
        check_datasets(["theirs"], 1)


def test_class_names_are_needed_to_evaluate():
    DatasetCatalog.register("theirs", lambda: [{"image_id": 1}])
    with pytest.raises(UserError, match="theirs: evaluation needs the names of its classes"):
        check_datasets(["theirs"], None)


def test_an_image_with_several_ids(tmp_path, caplog):
    for name in "abc":
        add_image(tmp_path, name, obj("cat"), filename="a.jpg")
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    register_voc("my_train", tmp_path, "train", ["cat"])
    check_datasets(["my_train"], 1)
    assert "my_train: 1 images have several ids, so that the objects of one are" in caplog.text
    assert f"{tmp_path}/JPEGImages/a.jpg of a and b" in caplog.text


def test_sets_of_other_code():
    item = {"category_id": 0, "bbox": [0, 0, 5, 5], "bbox_mode": BoxMode.XYXY_ABS}
    DatasetCatalog.register("theirs", lambda: [{"image_id": 1, "annotations": [item]}])
    check_datasets(["theirs"], 5, train=["theirs"])  # no class names: nothing to compare
    DatasetCatalog.register("lazy", lambda: iter(()))  # not a list: not counted
    check_datasets(["lazy"], 5, train=["lazy"])

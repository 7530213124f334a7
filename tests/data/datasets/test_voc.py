import importlib
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from frcnn_plugin.data import register_voc
from frcnn_plugin.data.datasets import voc
from frcnn_plugin.data.datasets.roots import datasets_root, resolve_root
from frcnn_plugin.errors import UserError

from .voc_folder import add_image, obj


def test_registered_set_loads(tmp_path):
    add_image(tmp_path, "a", obj("dog"))
    register_voc("mine", tmp_path, "train", ["cat", "dog"])
    (item,) = DatasetCatalog.get("mine")
    assert item["annotations"][0]["category_id"] == 1
    metadata = MetadataCatalog.get("mine")
    assert metadata.thing_classes == ["cat", "dog"]
    assert (metadata.split, metadata.year) == ("train", 2007)
    assert metadata.evaluator_type == "voc"
    assert metadata.dirname == str(tmp_path)


def test_options_reach_the_loader(tmp_path):
    add_image(tmp_path, "a", obj("cat", extra="<difficult>1</difficult>"))
    add_image(tmp_path, "b", obj("cat", (10, 10, 5, 20)), split="bad")
    register_voc("all", tmp_path, "train", ["cat"], year=2012, use_difficult=True)
    assert DatasetCatalog.get("all")[0]["annotations"][0]["iscrowd"] == 0
    assert MetadataCatalog.get("all").year == 2012
    register_voc("strict", tmp_path, "bad", ["cat"], strict=True)
    with pytest.raises(UserError, match=r"b\.xml: object 1 'cat'"):
        DatasetCatalog.get("strict")


def test_registering_twice(tmp_path):
    register_voc("mine", tmp_path, "train", ["cat"])
    register_voc("mine", str(tmp_path), "train", ("cat",))
    with pytest.raises(UserError, match="'mine' is already registered with other arguments"):
        register_voc("mine", tmp_path, "train", ["cat", "dog"])
    with pytest.raises(UserError, match="'coco_2017_val' is already registered by other code"):
        register_voc("coco_2017_val", tmp_path, "train", ["cat"])


def test_registering_again_after_a_second_import(tmp_path, monkeypatch):
    register_voc("mine", tmp_path, "train", ["cat"])
    # A second copy of the module; reloading would give other tests another class VOCSource.
    monkeypatch.setattr("frcnn_plugin.data.datasets.voc", voc)
    monkeypatch.delitem(sys.modules, voc.__name__)
    importlib.import_module(voc.__name__).register_voc("mine", tmp_path, "train", ["cat"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("cat", r"must be a list of names, such as \[cat, dog\]; got 'cat'"),
        ([], "distinct and at least one"),
        (["cat", "cat"], "distinct and at least one"),
        (["cat", 3], "must hold names only; got 3"),
        (["cat", True], "must hold names only; got True"),
        (["background", "cat"], "has 'background': background is not counted"),
        (["__background__", "cat"], "has '__background__': background is not counted"),
    ],
)
def test_bad_class_lists(tmp_path, classes, message):
    with pytest.raises(UserError, match=message):
        register_voc("mine", tmp_path, "train", classes)
    assert "mine" not in DatasetCatalog


def test_roots(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve_root("mine") == tmp_path / "mine"
    assert str(resolve_root("./mine")) == "mine"
    assert str(resolve_root("../mine")) == "../mine"
    assert str(resolve_root("/data/mine")) == "/data/mine"
    assert str(resolve_root("~/mine")) == "/home/someone/mine"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert str(datasets_root()) == "datasets"
    monkeypatch.setenv("DETECTRON2_DATASETS", "")
    assert str(datasets_root()) == "datasets"


def test_folder_may_come_later(monkeypatch, tmp_path):
    register_voc("mine", "sets/mine", "train", ["cat"])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    add_image(tmp_path / "sets" / "mine", "a", obj("cat"))
    assert len(DatasetCatalog.get("mine")) == 1
    assert MetadataCatalog.get("mine").dirname == str(tmp_path / "sets" / "mine")


def test_missing_folder_or_split(tmp_path):
    register_voc("mine", tmp_path / "nowhere", "train", ["cat"])
    with pytest.raises(UserError) as caught:
        DatasetCatalog.get("mine")
    message = str(caught.value)
    assert message.startswith(f"mine: missing {tmp_path}/nowhere\n")
    assert "root must be a folder holding Annotations/, ImageSets/Main/ and JPEGImages/" in message
    assert "VOCtrainval" not in message  # not PASCAL's own set

    add_image(tmp_path / "set", "a", split="trainval")
    register_voc("other", tmp_path / "set", "train", ["cat"])
    with pytest.raises(UserError) as caught:
        DatasetCatalog.get("other")
    message = str(caught.value)
    assert message.startswith(f"other: missing {tmp_path}/set/ImageSets/Main/train.txt\n")
    assert "Image sets that are there: trainval" in message


def test_folder_that_is_under_the_current_one(monkeypatch, tmp_path):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    add_image(tmp_path / "datasets" / "mine", "a")
    register_voc("mine", "datasets/mine", "train", ["cat"])
    with pytest.raises(UserError) as caught:
        DatasetCatalog.get("mine")
    message = str(caught.value)
    assert message.startswith("mine: missing datasets/datasets/mine\n")
    assert f"There is {tmp_path}/datasets/mine: write ./datasets/mine for it" in message
    register_voc("right", "./datasets/mine", "train", ["cat"])
    assert len(DatasetCatalog.get("right")) == 1

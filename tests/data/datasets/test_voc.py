"""Registering VOC-format data sets: in VOC's layout, PASCAL's own, and folders of XML files."""

import importlib
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from frcnn_plugin.data import (
    OFFICIAL_IMAGE_COUNTS,
    VOC_CLASSES,
    check_datasets,
    register_builtin,
    register_from_config_entries,
    register_voc,
    register_xml_folder,
)
from frcnn_plugin.data.datasets import voc
from frcnn_plugin.data.datasets.voc_files import classes_in_folder
from frcnn_plugin.errors import UserError

from .voc_folder import add, add_image, obj, write_image

NAMES = [
    "voc07_train", "voc07_val", "voc07_trainval", "voc07_test",
    "voc12_train", "voc12_val", "voc12_trainval",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _forget_class_names():
    classes_in_folder.cache_clear()


def problem(name="mine"):
    with pytest.raises(UserError) as caught:
        DatasetCatalog.get(name)
    return str(caught.value)


# ---- VOC's layout -------------------------------------------------------------------------------


def test_registered_set_loads(tmp_path):
    add_image(tmp_path, "a", obj("dog"))
    register_voc("mine", tmp_path, "train", ["cat", "dog"])
    (item,) = DatasetCatalog.get("mine")
    assert item["annotations"][0]["category_id"] == 1
    metadata = MetadataCatalog.get("mine")
    assert metadata.thing_classes == ["cat", "dog"]
    assert (metadata.split, metadata.year) == ("train", None)
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


def test_files_that_count_from_0(tmp_path):
    add_image(tmp_path, "a", obj("cat", (0, 0, 99, 79)), obj("cat", (11, 21, 50, 60)))
    entry = {"name": "mine", "root": str(tmp_path), "split": "train", "classes": ["cat"]}
    register_from_config_entries([{**entry, "counts_from": 0}])
    (item,) = DatasetCatalog.get("mine")
    boxes = [found["bbox"] for found in item["annotations"]]
    assert boxes == [[0, 0, 100, 80], [11, 21, 51, 61]]
    with pytest.raises(UserError, match="'other': counts_from must be 0 or 1; got 2"):
        register_from_config_entries([{**entry, "name": "other", "counts_from": 2}])


def test_folders_in_other_capitals(tmp_path):
    add_image(tmp_path, "a", obj("cat"))
    for name in ("Annotations", "JPEGImages", "ImageSets/Main", "ImageSets"):
        (tmp_path / name).rename(tmp_path / name.lower().replace("imagesets/", "ImageSets/"))
    register_voc("mine", tmp_path, "train", ["cat"])
    assert len(DatasetCatalog.get("mine")[0]["annotations"]) == 1


def test_folder_may_come_later(monkeypatch, tmp_path):
    register_voc("mine", "sets/mine", "train", ["cat"])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    add_image(tmp_path / "sets" / "mine", "a", obj("cat"))
    assert len(DatasetCatalog.get("mine")) == 1
    assert MetadataCatalog.get("mine").dirname == str(tmp_path / "sets" / "mine")


def test_missing_folder_or_split(tmp_path):
    register_voc("mine", tmp_path / "nowhere", "train", ["cat"])
    message = problem()
    assert message.startswith(f"mine: missing {tmp_path}/nowhere\n")
    assert "root must be a folder holding Annotations/, ImageSets/Main/ and JPEGImages/" in message
    assert "VOCtrainval" not in message  # not PASCAL's own set

    add_image(tmp_path / "set", "a", split="trainval")
    register_voc("other", tmp_path / "set", "train", ["cat"])
    message = problem("other")
    assert message.startswith(f"other: missing {tmp_path}/set/ImageSets/Main/train.txt\n")
    assert "Image sets found: trainval" in message


# ---- PASCAL's own sets --------------------------------------------------------------------------


def test_names_and_metadata():
    for name in NAMES:
        metadata = MetadataCatalog.get(name)
        assert name in DatasetCatalog
        assert metadata.thing_classes == list(VOC_CLASSES)
        assert metadata.evaluator_type == "voc"
        assert metadata.year == (2007 if "07" in name else 2012)
        assert metadata.split == name.split("_")[1]
    register_builtin()  # a second time


def test_official_counts():
    # train + val = trainval as PASCAL's site gives them.
    assert OFFICIAL_IMAGE_COUNTS["voc07_trainval"] == 5011 == 2501 + 2510
    assert OFFICIAL_IMAGE_COUNTS["voc07_test"] == 4952
    assert OFFICIAL_IMAGE_COUNTS["voc12_trainval"] == 11540 == 5717 + 5823
    assert list(OFFICIAL_IMAGE_COUNTS) == NAMES


def test_both_layouts_are_found_at_load_time_and_may_be_mixed(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for layout, split in (("VOCdevkit/VOC2007", "trainval"), ("VOC2007", "test")):
        add_image(tmp_path / layout, split, obj("person"), split=split)
        (item,) = DatasetCatalog.get(f"voc07_{split}")
        assert item["annotations"][0]["category_id"] == VOC_CLASSES.index("person")
        assert MetadataCatalog.get(f"voc07_{split}").dirname == str(tmp_path / layout)


def test_import_is_light_and_touches_no_folder(tmp_path):
    code = (
        "import sys; from frcnn_plugin.data import register_builtin; register_builtin()\n"
        "assert not {'matplotlib', 'scipy', 'frcnn_plugin.engine'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        check=True,
        env={**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "nowhere")},
    )
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "missing", ["", "JPEGImages", "ImageSets", "ImageSets/Main", "ImageSets/Main/test.txt"]
)
def test_missing_data_says_all_one_needs(monkeypatch, tmp_path, missing):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    root = tmp_path / "VOC2007"
    add_image(root, "000001", split="test")
    path = root / missing if missing else root
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = problem("voc07_test")
    assert message.startswith(f"voc07_test: missing {path}\n")
    for part in (
        f"DETECTRON2_DATASETS is {tmp_path}",
        "$DETECTRON2_DATASETS/VOCdevkit/VOC2007 and $DETECTRON2_DATASETS/VOC2007",
        "VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar", "VOCtrainval_11-May-2012.tar",
        "into one folder: they merge",
        "make demo",
    ):  # fmt: skip
        assert part in message


def test_missing_folder_of_ones_own(monkeypatch, tmp_path):
    """Its path is not below $DETECTRON2_DATASETS, so what that is comes last."""
    monkeypatch.setenv("DETECTRON2_DATASETS", "/elsewhere")
    register_from_config_entries([{"name": "own", "root": str(tmp_path / "no"), "split": "train"}])
    first, last = problem("own").split("\n")
    assert first == f"own: missing {tmp_path}/no"
    assert "under $DETECTRON2_DATASETS (/elsewhere), one that starts with ./" in last
    assert last.endswith("For XML files in another layout: xml, not root and split")


def test_missing_data_without_the_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert f"DETECTRON2_DATASETS is not set, so {tmp_path}/datasets" in problem("voc12_val")


# ---- Folders of XML files, as people have them --------------------------------------------------


def load(name: str) -> dict[str, list[int]]:
    """Class ids by image file, relative to the two last folders."""
    return {
        "/".join(Path(item["file_name"]).parts[-2:]): [
            annotation["category_id"] for annotation in item["annotations"]
        ]
        for item in DatasetCatalog.get(name)
    }


def test_one_folder_for_both(tmp_path):
    for name, suffix in (("a", ".jpg"), ("b", ".jpeg"), ("c", ".PNG"), ("d", ".bmp")):
        add(tmp_path / "my", tmp_path / "my", name, obj("dog"), suffix=suffix)
    register_from_config_entries(
        [{"name": "mine", "xml": str(tmp_path / "my"), "classes": ["cat", "dog"]}]
    )
    check_datasets(["mine"], 2, train=["mine"])
    assert load("mine") == {"my/a.jpg": [1], "my/b.jpeg": [1], "my/c.PNG": [1], "my/d.bmp": [1]}
    assert MetadataCatalog.get("mine").evaluator_type == "voc"


def test_two_folders_with_sub_folders(tmp_path):
    xml, images = tmp_path / "labels", tmp_path / "images"
    add(xml, images, "day/a", obj("cat"))
    add(xml, images, "night/a", obj("dog"), suffix=".png")
    register_xml_folder("mine", xml, ["cat", "dog"], images)
    assert load("mine") == {"day/a.jpg": [0], "night/a.png": [1]}
    assert [d["image_id"] for d in DatasetCatalog.get("mine")] == ["day/a", "night/a"]


def test_images_that_only_the_xml_names(tmp_path):
    xml, images = tmp_path / "labels", tmp_path / "images"
    add(xml, images, "0001", obj("cat"), filename=r"C:\Users\me\images\photo one.jpg")
    (images / "0001.jpg").rename(images / "photo one.jpg")
    register_xml_folder("mine", xml, ["cat"], images)
    assert load("mine") == {"images/photo one.jpg": [0]}


@pytest.fixture
def twenty(tmp_path):
    for index in range(20):
        add(tmp_path, tmp_path, f"{index:02d}", obj("cat"))
    return tmp_path


def ids_of(folder: Path, split: str, **shares: float) -> list[str]:
    name = f"mine{len(DatasetCatalog)}"
    entry = {"name": name, "xml": str(folder), "classes": ["cat"], "split": split, **shares}
    register_from_config_entries([entry])
    return [item["image_id"] for item in DatasetCatalog.get(name)]


def test_parts(twenty, tmp_path_factory):
    two = [ids_of(twenty, split, train_fraction=0.7) for split in ("train", "test")]
    three = [
        ids_of(twenty, split, train_fraction=0.7, val_fraction=0.1)
        for split in ("train", "val", "test")
    ]
    for parts, sizes in ((two, [14, 6]), (three, [14, 2, 4])):
        assert [len(part) for part in parts] == sizes
        assert sorted(i for part in parts for i in part) == [f"{n:02d}" for n in range(20)]
        assert all(part == sorted(part) for part in parts)
    assert two[0] == three[0]  # whether or not a part of the rest is for validation
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(twenty, copy)
    assert ids_of(copy, "test", train_fraction=0.7) == two[1]  # another machine, another folder


def test_a_list(twenty, tmp_path):
    listing = tmp_path / "train.txt"
    listing.write_text("03.jpg\n\n00\n07.xml\n")
    register_xml_folder("mine", twenty, ["cat"], image_list=str(listing))
    assert [d["image_id"] for d in DatasetCatalog.get("mine")] == ["03", "00", "07"]
    listing.write_text("99\n")
    with pytest.raises(UserError, match=r"99"):
        DatasetCatalog.get("mine")


def test_automatic_class_names(tmp_path, caplog):
    """Of all files, so that both sides of a split agree."""
    for index, name in enumerate(["dog", "cat", "ant"]):
        add(tmp_path, tmp_path, str(index), obj(name))
    entry = {"xml": str(tmp_path), "classes": "auto", "train_fraction": 0.5}
    with caplog.at_level(logging.INFO):
        register_from_config_entries(
            [{**entry, "name": f"my_{split}", "split": split} for split in ("train", "test")]
        )
    assert "my_train: 3 classes: ant, cat, dog" in caplog.text
    for split in ("train", "test"):
        assert MetadataCatalog.get(f"my_{split}").thing_classes == ["ant", "cat", "dog"]
    with pytest.raises(UserError, match=r"NUM_CLASSES is 20 but dataset 'my_train' has 3 classes"):
        check_datasets(["my_train", "my_test"], 20)
    check_datasets(["my_train", "my_test"], 3)


def test_automatic_class_names_of_vocs_layout(tmp_path):
    add(tmp_path / "Annotations", tmp_path / "JPEGImages", "a", obj("hen"))
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    register_from_config_entries(
        [{"name": "mine", "root": str(tmp_path), "split": "train", "classes": "auto"}]
    )
    check_datasets(["mine"], 1, train=["mine"])
    assert MetadataCatalog.get("mine").thing_classes == ["hen"]


def test_files_that_come_later(tmp_path):
    """A config may be read where the data are not, to run a detector."""
    folder = tmp_path / "later"
    register_xml_folder("mine", folder, None)
    assert MetadataCatalog.get("mine").get("thing_classes") is None
    add(folder, folder, "a", obj("cat"))
    check_datasets(["mine"], 1)
    assert MetadataCatalog.get("mine").thing_classes == ["cat"]


def test_images_without_xml_are_named(tmp_path, caplog):
    xml, images = tmp_path / "labels", tmp_path / "images"
    add(xml, images, "a", obj("cat"))
    write_image(images / "b.jpg")
    register_xml_folder("lacking", xml, ["cat"], images)
    assert list(load("lacking")) == ["images/a.jpg"]
    assert (
        f"lacking: 1 images in {images} have no XML file in {xml} and are left out" in caplog.text
    )


def test_coco_metric_needs_numbers(tmp_path):
    add(tmp_path, tmp_path, "photo_a", obj("cat"))
    register_xml_folder("mine", tmp_path, ["cat"], evaluator="coco")
    assert [d["image_id"] for d in DatasetCatalog.get("mine")] == [1]
    check_datasets(["mine"], 1, train=["mine"])
    assert MetadataCatalog.get("mine").evaluator_type == "coco"


def test_missing_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_xml_folder("mine", "nothing", ["cat"])
    assert problem().startswith(
        f"mine: `xml` names {tmp_path}/nothing, which is not a folder. A rel"
    )
    (tmp_path / "empty").mkdir()
    register_xml_folder("empty", "empty", ["cat"])
    assert (
        problem("empty") == f"empty: there are no .xml files in {tmp_path}/empty: name their folder"
    )
    register_xml_folder("no_images", "empty", ["cat"], images="pictures")
    assert "`images` names" in problem("no_images")


def test_automatic_names_of_nothing(tmp_path):
    add(tmp_path / "a", tmp_path / "a", "a")
    with pytest.raises(UserError, match="auto found no object in the 1 XML files in"):
        register_xml_folder("mine", tmp_path / "a", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "train"}, "split and train_fraction come together, as in train_fraction: 0.8"),
        ({"train_fraction": 0.8}, "split and train_fraction come together"),
        (
            {"split": "val", "train_fraction": 0.8},
            "split must be one of train, test; got 'val'. val is one with a val_fraction",
        ),
        ({"val_fraction": 0.1}, "split and train_fraction come together"),
        ({"split": "test", "train_fraction": 0.8, "val_fraction": 0.2}, ".* got 0.8 and 0.2"),
        ({"split": "test", "train_fraction": 0.8, "val_fraction": -0.1}, ".* got 0.8 and -0.1"),
        ({"split": "test", "train_fraction": 80.0}, ".* leave something .* got 80.0 and 0.0"),
        ({"split": "test", "train_fraction": float("nan")}, ".* got nan and 0.0"),
        (
            {"split": "test", "train_fraction": 0.8, "image_list": "a.txt"},
            "give either a list or a train_fraction, not both",
        ),
    ],
)
def test_unclear_descriptions(arguments, message):
    with pytest.raises(UserError, match=f"data set 'mine': {message}"):
        register_xml_folder("mine", "/data/my", ["cat"], **arguments)


def test_a_share_that_leaves_nothing(tmp_path):
    add(tmp_path, tmp_path, "a", obj("cat"))
    register_xml_folder("mine", tmp_path, ["cat"], split="test", train_fraction=0.8)
    assert (
        "mine: of 1 XML files, 1 are for train, 0 are for test; choose other fractions" in problem()
    )

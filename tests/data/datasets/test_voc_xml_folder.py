"""Folders of XML as people have them."""

import logging
import shutil
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from frcnn_plugin.data import check_datasets, register_from_config_entries, register_xml_folder
from frcnn_plugin.data.datasets.class_names import classes_in_folder
from frcnn_plugin.data.datasets.voc_xml_folder import choose
from frcnn_plugin.errors import UserError

from .voc_folder import obj, write_image


@pytest.fixture(autouse=True)
def _forget_class_names():
    classes_in_folder.cache_clear()


def add(
    xml: Path, images: Path, name: str, *objects: str, suffix: str = ".jpg", filename=""
) -> None:
    """One image with its XML; sub-folders in ``name`` are made in both."""
    write_image(images / f"{name}{suffix}")
    path = xml / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    tag = f"<filename>{filename}</filename>" if filename else ""
    path.write_text(f"<annotation>{tag}{''.join(objects)}</annotation>")


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
    metadata = MetadataCatalog.get("mine")
    assert metadata.evaluator_type == "voc" and metadata.dirname == str(tmp_path / "my")


def test_two_folders_with_sub_folders(tmp_path):
    xml, images = tmp_path / "labels", tmp_path / "images"
    add(xml, images, "day/a", obj("cat"))
    add(xml, images, "night/a", obj("dog"), suffix=".png")
    (xml / ".ipynb_checkpoints").mkdir()
    (xml / ".ipynb_checkpoints" / "a.xml").write_text("not read")
    (xml / "._a.xml").write_text("what macOS leaves")
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


def test_a_share_of_the_files(twenty, tmp_path_factory):
    names = {}
    for split in ("train", "test"):
        register_xml_folder(f"my_{split}", twenty, ["cat"], split=split, train_fraction=0.75)
        names[split] = [d["image_id"] for d in DatasetCatalog.get(f"my_{split}")]
    assert len(names["train"]) == 15 and len(names["test"]) == 5
    assert sorted(names["train"] + names["test"]) == [f"{index:02d}" for index in range(20)]
    assert names["train"] == sorted(names["train"])
    # Another machine, another folder: the same images.
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(twenty, copy)
    register_xml_folder("copied", copy, ["cat"], split="test", train_fraction=0.75)
    assert [d["image_id"] for d in DatasetCatalog.get("copied")] == names["test"]


def test_the_choice_does_not_depend_on_the_order():
    """SHA-256 of "b" starts with 3e, of "a" with ca, of "c" with 2e."""
    assert choose(["a", "b", "c"], 0.34) == {"c"} == choose(["c", "b", "a"], 0.34)
    assert choose(["a", "b", "c"], 0.67) == {"c", "b"}


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


def problem(name="mine"):
    with pytest.raises(UserError) as caught:
        DatasetCatalog.get(name)
    return str(caught.value)


def test_missing_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_xml_folder("mine", "nothing", ["cat"])
    assert problem().startswith(f"mine: `xml` names {tmp_path}/nothing, which is no folder. A rel")
    (tmp_path / "empty").mkdir()
    register_xml_folder("empty", "empty", ["cat"])
    assert problem("empty") == f"empty: there are no .xml files in {tmp_path}/empty"
    register_xml_folder("no_images", "empty", ["cat"], images="pictures")
    assert "`images` names" in problem("no_images")


def test_missing_image(tmp_path):
    add(tmp_path, tmp_path, "a", obj("cat"))
    (tmp_path / "a.jpg").unlink()
    register_xml_folder("mine", tmp_path, ["cat"])
    assert f"1 of 1 images are not in {tmp_path} (a)" in problem()


def test_unknown_class(tmp_path):
    add(tmp_path, tmp_path, "a", obj("Cat"))
    register_xml_folder("mine", tmp_path, ["cat"])
    assert "a.xml: object 1 has class 'Cat'; known classes: cat" in problem()


def test_automatic_names_of_nothing(tmp_path):
    add(tmp_path / "a", tmp_path / "a", "a")
    with pytest.raises(UserError, match="auto found no object in the 1 XML files in"):
        register_xml_folder("mine", tmp_path / "a", None)
    add(tmp_path / "b", tmp_path / "b", "a", obj("__background__"))
    with pytest.raises(UserError, match="auto found objects of class '__background__'"):
        register_xml_folder("other", tmp_path / "b", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "train"}, "split and train_fraction come together, as in train_fraction: 0.8"),
        ({"train_fraction": 0.8}, "split and train_fraction come together"),
        ({"split": "val", "train_fraction": 0.8}, "split must be train or test; got 'val'"),
        ({"split": "test", "train_fraction": 80.0}, r"train_fraction must be .*got 80.0"),
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
    assert "train_fraction 0.8 of 1 XML files leaves one side empty" in problem()


def test_a_name_that_is_taken(tmp_path):
    register_xml_folder("mine", tmp_path, ["cat"])
    register_xml_folder("mine", tmp_path, ["cat"])
    with pytest.raises(UserError, match="'mine' is already registered with other arguments"):
        register_xml_folder("mine", tmp_path, ["dog"])

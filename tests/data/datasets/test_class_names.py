"""Class names as users and files give them."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from frcnn_plugin.data import check_datasets, register_from_config_entries, register_voc
from frcnn_plugin.data.datasets.class_names import ClassMap, name_problem
from frcnn_plugin.data.datasets.voc_files import classes_in_folder
from frcnn_plugin.errors import UserError

from .voc_folder import add_image, obj


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("cat", r"must be a list of names, such as \[cat, dog\]; got 'cat'"),
        ([], "distinct and at least one"),
        (["cat", "cat"], "distinct and at least one"),
        (["cat", 3], "must hold names only; got 3"),
        (["cat", True], "must hold names only; got True"),
        (["cat", "\x1b[31mdog"], r"classes: a name holds control characters \('.x1b\[31mdog'\)"),
        (["cat", "d" * 1001], "classes: a name has more than 1,000 characters"),
        (["background", "cat"], "has 'background': background is not counted"),
        (["__background__", "cat"], "has '__background__': background is not counted"),
    ],
)
def test_bad_class_lists(tmp_path, classes, message):
    with pytest.raises(UserError, match=message):
        register_voc("mine", tmp_path, "train", classes)
    assert "mine" not in DatasetCatalog


@pytest.mark.parametrize(
    "name", ["cat", "dining table", "a/b", "犬", "می\u200cخواهم", "no-break\xa0space", "c" * 300]
)
def test_names_of_any_language(name):
    assert name_problem(name) == ""


@pytest.mark.parametrize(
    "name", [" ", "a\nb", "a\x07", "\x1b[2J", "\x9b2J", "a\u2028b", "a\u2029b", "\udc80"]
)
def test_names_that_harm_a_terminal_or_a_file(name):
    assert name_problem(name).isprintable() and name_problem(name)


def classes_of(tmp_path, num_classes, **entry):
    """Classes by image of a set with a cat, a kitten and a dog, and an image of a dog."""
    classes_in_folder.cache_clear()
    if not (tmp_path / "Annotations").exists():
        add_image(tmp_path, "a", obj("cat"), obj("kitten"), obj("dog"))
        add_image(tmp_path, "b", obj("dog"))
    name = f"mine{len(DatasetCatalog)}"
    register_from_config_entries([{"name": name, "root": str(tmp_path), "split": "train", **entry}])
    check_datasets([name], num_classes, train=[name])
    names = MetadataCatalog.get(name).thing_classes
    return [
        [names[found["category_id"]] for found in item["annotations"]]
        for item in DatasetCatalog.get(name)
    ]


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"classes": "auto"}, [["cat", "kitten", "dog"], ["dog"]]),
        ({"classes": "auto", "ignore": ["dog"]}, [["cat", "kitten"], []]),
        ({"classes": "auto", "rename": {"kitten": "cat"}}, [["cat", "cat", "dog"], ["dog"]]),
        ({"classes": ["pet"], "rename": dict.fromkeys(["cat", "kitten", "dog"], "pet")},
         [["pet", "pet", "pet"], ["pet"]]),
        ({"classes": ["dog", "cat"], "ignore": ["kitten"]}, [["cat", "dog"], ["dog"]]),
        ({"classes": ["cat", "dog"], "ignore": ["kitten"], "rename": {"cat": "dog", "dog": "cat"}},
         [["dog", "cat"], ["cat"]]),
    ],
)  # fmt: skip
def test_classes_left_out_and_merged(tmp_path, entry, found):
    number = len({name for names in found for name in names})
    assert classes_of(tmp_path, number, **entry) == found


def test_background_is_none_unless_left_out(tmp_path):
    add_image(tmp_path, "a", obj("cat"), obj("Background"))
    with pytest.raises(UserError, match=r"objects of class 'Background'.*ignore: \[Background\]"):
        classes_of(tmp_path, 1, classes="auto")
    assert classes_of(tmp_path, 1, classes="auto", ignore=["Background"]) == [["cat"]]


@pytest.mark.parametrize(
    ("ignore", "rename", "message"),
    [
        ("bg", None, "ignore must be a list of names"),
        (["bg", 3], None, "ignore must hold names only; got 3"),
        ((), ["cat"], "rename must map names of the files to others, such as {kitten: cat}"),
        ((), {"cat": 3}, "rename must hold names only; got 3"),
        ((), {"cat": "\x1b"}, "rename: a name holds control characters"),
        (["cat"], {"cat": "dog"}, "'cat' is in both ignore and rename"),
    ],
)
def test_mistakes(ignore, rename, message):
    with pytest.raises(UserError, match=f"data set 'mine': {message}"):
        ClassMap.of("mine", ignore, rename)


def test_classes_that_do_not_fit_together(tmp_path, caplog):
    with pytest.raises(UserError, match="'cat' is in both classes and ignore"):
        register_voc("mine", tmp_path, "train", ["cat"], ignore=["cat"])
    with pytest.raises(UserError, match=r"has class 'kitty'; known classes: cat, dog"):
        classes_of(tmp_path, 2, classes=["cat", "dog"], rename={"kitten": "kitty"})
    with pytest.raises(UserError, match="ignore leaves no class of cat, dog, kitten"):
        classes_of(tmp_path, 0, classes="auto", ignore=["cat", "dog", "kitten"])
    classes_of(tmp_path, 3, classes="auto", ignore=["hen"])
    assert "ignore and rename name hen, but the classes in" in caplog.text

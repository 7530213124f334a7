import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from frcnn_plugin.data import register_from_config_entries
from frcnn_plugin.errors import UserError

from .voc_folder import add_image, obj


def test_config_entry(tmp_path):
    add_image(tmp_path, "a", obj("dog"))
    entry = {"name": "my_train", "root": str(tmp_path), "split": "train", "classes": ["cat", "dog"]}
    register_from_config_entries([entry])
    register_from_config_entries([entry])
    assert DatasetCatalog.get("my_train")[0]["annotations"][0]["category_id"] == 1
    register_from_config_entries(
        [{**entry, "name": "other", "year": 2012, "use_difficult": True, "strict": True}]
    )
    assert MetadataCatalog.get("other").year == 2012
    register_from_config_entries([])


GOOD = {"name": "my_train", "root": "/data/my", "split": "train", "classes": ["cat", "dog"]}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (GOOD, r"DATASETS.REGISTER must be a list, such as \[\{name: my_train"),
        ("my_train", r"DATASETS.REGISTER must be a list"),
        (["my_train"], r"REGISTER\[0\] must be a mapping such as .*; got 'my_train'"),
        (
            [{**GOOD, "evaluator": "lvis"}],
            r"evaluator must be voc or coco or pascal_voc; got 'lvis'",
        ),
        (
            [{"name": "a", "xml": "/x"}],
            r"missing classes \(classes: auto takes the names that occur in the files\); example",
        ),
        ([{"name": "a", "xml": "/x", "root": "/y"}], r"unknown key root; known keys: name, xml"),
        ([{"name": "a", "json": "/x"}], r"missing images; example: \{name: my_train, json"),
        (
            [{"name": "a", "json": "/x", "images": "/y", "strict": True}],
            r"strict; known keys: name, json, images, classes, evaluator, ignore, rename\. Example",
        ),
        (
            [{"name": "a", "xml": "/x", "classes": ["b"], "split": "train", "train_fraction": 1}],
            r"\.train_fraction must be float; got 1 \(int\)",
        ),
        ([{**GOOD, "class": ["cat"]}], r"REGISTER\[0\]: unknown key class; known keys: name, root"),
        ([GOOD, {"name": "b", "root": "/x"}], r"REGISTER\[1\]: missing split; example: "),
        ([{"classes": ["cat"]}], r"REGISTER\[0\]: missing name, root, split"),
        (
            [{**GOOD, "classes": "cat dog"}],
            "'my_train': classes must be a list of names, .*got 'cat dog'",
        ),
        ([{**GOOD, "classes": ["cat", 7]}], r"'my_train': classes must hold names only; got 7"),
        ([{**GOOD, "year": "2007"}], r"\.year must be int; got '2007' \(str\)"),
        ([{**GOOD, "year": True}], r"\.year must be int; got True \(bool\)"),
        ([{**GOOD, "strict": 1}], r"\.strict must be bool; got 1 \(int\)"),
        ([{**GOOD, "split": 2007}], r"\.split must be str; got 2007 \(int\)"),
        ([{**GOOD, "root": ""}], r"REGISTER\[0\]\.root is empty"),
        ([{**GOOD, "classes": None}], r"REGISTER\[0\]\.classes is empty"),
        ([{**GOOD, "name": "voc_2007_test"}], "'voc_2007_test' is already registered by other"),
    ],
)
def test_bad_config_entries(entries, message):
    with pytest.raises(UserError, match=message):
        register_from_config_entries(entries)

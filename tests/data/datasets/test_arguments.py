"""Class lists and folders as users give them."""

import pytest
from detectron2.data import DatasetCatalog

from frcnn_plugin.data import register_voc
from frcnn_plugin.data.datasets.arguments import datasets_root, resolve_root
from frcnn_plugin.errors import UserError


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

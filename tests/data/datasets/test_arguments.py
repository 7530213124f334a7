"""Folders as users give them, and texts as messages show them."""

from frcnn_plugin.data.datasets.arguments import datasets_root, examples, resolve_root


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


def test_messages_are_short_and_without_control_characters():
    text = examples(["plain é", "\x1b[31mred", "x" * 5000, "more"])
    assert text.startswith(r"plain é, '\x1b[31mred', xxx") and text.endswith("x..., ...")
    assert len(text) < 600

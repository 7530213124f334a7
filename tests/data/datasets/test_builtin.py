import os
import shutil
import subprocess
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from frcnn_plugin.data import OFFICIAL_IMAGE_COUNTS, VOC_CLASSES, register_builtin
from frcnn_plugin.errors import UserError

from .voc_folder import add_image, obj

NAMES = [
    "voc07_train", "voc07_val", "voc07_trainval", "voc07_test",
    "voc12_train", "voc12_val", "voc12_trainval",
]  # fmt: skip


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


@pytest.mark.parametrize("layout", ["VOCdevkit/VOC2007", "VOC2007"])
def test_both_layouts_are_found_at_load_time(monkeypatch, tmp_path, layout):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    add_image(tmp_path / layout, "000005", obj("person"), split="test")
    (item,) = DatasetCatalog.get("voc07_test")
    assert item["annotations"][0]["category_id"] == VOC_CLASSES.index("person")
    assert MetadataCatalog.get("voc07_test").dirname == str(tmp_path / layout)


def test_layouts_may_be_mixed(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    add_image(tmp_path / "VOCdevkit" / "VOC2007", "000005", split="trainval")
    add_image(tmp_path / "VOC2007", "000001", split="test")
    assert DatasetCatalog.get("voc07_trainval")[0]["image_id"] == "000005"
    assert DatasetCatalog.get("voc07_test")[0]["image_id"] == "000001"


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
    with pytest.raises(UserError) as caught:
        DatasetCatalog.get("voc07_test")
    message = str(caught.value)
    assert message.startswith(f"voc07_test: missing {path}\n")
    for part in (
        f"DETECTRON2_DATASETS is {tmp_path}",
        "$DETECTRON2_DATASETS/VOCdevkit/VOC2007 and $DETECTRON2_DATASETS/VOC2007",
        "VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar", "VOCtrainval_11-May-2012.tar",
        "into one folder: they merge",
        "make demo",
    ):  # fmt: skip
        assert part in message


def test_missing_data_without_the_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"DETECTRON2_DATASETS is not set, so {tmp_path}/datasets"):
        DatasetCatalog.get("voc12_val")

import filecmp
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest

from frcnn_plugin.cli.__main__ import main
from frcnn_plugin.data import SHAPE_CLASSES, load_voc_instances, synthetic, write_synthetic_voc
from frcnn_plugin.data.synthetic import draw_scene, tight_box
from frcnn_plugin.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_synthetic_voc(tmp_path_factory.mktemp("data") / "shapes", 60, 20, seed=3)


def load(root, split="trainval"):
    return load_voc_instances(root, split, SHAPE_CLASSES, strict=True)


def test_set_is_varied(folder):
    dicts = load(folder) + load(folder, "test")
    assert (len(load(folder)), len(load(folder, "test"))) == (60, 20)
    objects = [obj for item in dicts for obj in item["annotations"]]
    assert {obj["category_id"] for obj in objects} == {0, 1, 2}
    assert any(item["width"] > item["height"] for item in dicts)
    assert any(item["width"] < item["height"] for item in dicts)
    assert all(160 <= min(item["width"], item["height"]) <= 260 for item in dicts)
    assert any(not item["annotations"] for item in dicts)
    assert 0.02 < np.mean([obj["difficult"] for obj in objects]) < 0.25
    borders = [
        obj["bbox"][0] == 0 or obj["bbox"][3] == item["height"]
        for item in dicts
        for obj in item["annotations"]
    ]
    assert any(borders)
    scales = [
        math.sqrt(np.prod(np.subtract(obj["bbox"][2:], obj["bbox"][:2])))
        / min(item["width"], item["height"])
        for item in dicts
        for obj in item["annotations"]
        if not obj["difficult"]
    ]
    assert min(scales) < 0.3 and max(scales) > 0.6


def test_same_seed_same_files(folder, tmp_path):
    again = write_synthetic_voc(tmp_path / "again", 60, 20, seed=3)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert len(names) == 2 * 80 + 5
    _, different, errors = filecmp.cmpfiles(folder, again, names, shallow=False)
    assert not different and not errors


def test_image_depends_on_its_own_number_only(folder, tmp_path):
    few = write_synthetic_voc(tmp_path / "few", 5, 2, seed=3)
    one, other = load(folder)[4], load(few)[4]
    assert one["annotations"] == other["annotations"]
    assert Path(one["file_name"]).read_bytes() == Path(other["file_name"]).read_bytes()
    assert load(folder, "test")[1]["annotations"] == load(few, "test")[1]["annotations"]


def test_other_seed_other_files(folder, tmp_path):
    other = write_synthetic_voc(tmp_path / "other", 5, 0, seed=4)
    assert [a["annotations"] for a in load(folder)[:5]] != [a["annotations"] for a in load(other)]


def test_boxes_are_tight():
    # One shape on a plain ground, before JPEG: the box is where the picture differs from it.
    checked = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        picture, shapes = draw_scene(rng, 120, 90, 1)
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        if np.ptp(border, axis=0).max() > 30 or len(shapes) != 1:
            continue  # not a plain ground, or the shape touches the border
        differs = np.linalg.norm(picture - np.median(border, axis=0), axis=2) > 60
        found, (box,) = tight_box(differs), [shape.box() for shape in shapes]
        # Half-covered pixels at the rim may fall on either side.
        assert np.abs(np.subtract(found, box)).max() <= 1
        checked += 1
    assert checked >= 5


def test_tight_box_is_continuous():
    mask = np.zeros((6, 8), dtype=bool)
    mask[2, 3] = mask[4, 5] = True
    assert tight_box(mask) == (3, 2, 6, 5)


def test_overlaps_are_limited(folder):
    for item in load(folder):
        boxes = [obj["bbox"] for obj in item["annotations"] if not obj["difficult"]]
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
                height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
                areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
                # 0.3 when drawn; what is drawn later may still shorten a box.
                assert width * height / (areas - width * height) < 0.45


def test_existing_set_is_left(folder):
    before = (folder / "JPEGImages" / "000001.jpg").stat().st_mtime_ns
    with pytest.raises(UserError, match="other arguments"):
        write_synthetic_voc(folder, 60, 20, seed=4)
    write_synthetic_voc(folder, 60, 20, seed=3)
    assert (folder / "JPEGImages" / "000001.jpg").stat().st_mtime_ns == before


def test_other_contents_are_not_touched(tmp_path):
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(UserError, match="exists and is not this synthetic set"):
        write_synthetic_voc(tmp_path, 2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_other_arguments_and_missing_files(tmp_path):
    root = write_synthetic_voc(tmp_path / "set", 2, 1)
    with pytest.raises(UserError, match="other arguments"):
        write_synthetic_voc(root, 3, 1)
    (root / "JPEGImages" / "000002.jpg").unlink()
    with pytest.raises(UserError, match="files missing"):
        write_synthetic_voc(root, 2, 1)


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "set").mkdir()
    assert len(load(write_synthetic_voc(tmp_path / "set", 2, 1))) == 2


def test_failure_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "_write_annotation", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_synthetic_voc(tmp_path / "set", 2, 1)
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments(tmp_path):
    with pytest.raises(UserError, match="no images asked for: num_trainval 0, num_test 0"):
        write_synthetic_voc(tmp_path / "set", 0, 0)
    with pytest.raises(
        UserError, match=r"short_side must be two growing numbers .* got \(90, 80\)"
    ):
        write_synthetic_voc(tmp_path / "set", 1, 1, short_side=(90, 80))


def test_command(tmp_path, capsys):
    args = ["make-data", str(tmp_path / "set"), "--num-trainval", "3", "--num-test", "1"]
    assert main([*args, "--seed", "5"]) == 0
    assert json.loads((tmp_path / "set" / "synthetic.json").read_text())["seed"] == 5
    assert main([*args, "--seed", "6"]) == 1
    assert "error: " in capsys.readouterr().err


def coco(root, split="trainval"):
    return json.loads((root / "COCO" / f"{split}.json").read_text())


def test_masks_are_those_of_the_boxes(folder):
    """The same images and objects as in the XML files, in the same order; masks fill the boxes."""
    content, expected = coco(folder), load(folder)
    assert [image["file_name"] for image in content["images"]] == [
        Path(item["file_name"]).name for item in expected
    ]
    objects = iter(content["annotations"])
    for image, item in zip(content["images"], expected, strict=True):
        for obj in item["annotations"]:
            entry = next(objects)
            assert entry["image_id"] == image["id"]
            assert entry["category_id"] == obj["category_id"] + 1
            assert entry["ignore"] == obj["difficult"]
            mask = pycocotools.mask.decode(entry["segmentation"]).astype(bool)
            assert mask.shape == (image["height"], image["width"])
            assert mask.sum() == entry["area"]
            x1, y1, x2, y2 = tight_box(mask)
            assert entry["bbox"] == [x1, y1, x2 - x1, y2 - y1]
            assert obj["bbox"] == [x1, y1, x2, y2]
    assert next(objects, None) is None


def test_masks_are_added_to_an_earlier_set(tmp_path):
    root = write_synthetic_voc(tmp_path / "set", 3, 2)
    before = [coco(root, split) for split in ("trainval", "test")]
    shutil.rmtree(root / "COCO")
    times = {file: file.stat().st_mtime_ns for file in root.rglob("*.*")}
    write_synthetic_voc(root, 3, 2)
    assert [coco(root, split) for split in ("trainval", "test")] == before
    assert {file: file.stat().st_mtime_ns for file in times} == times

"""`frcnn predict`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO

from frcnn_plugin.checkpoint.checkpointer import AtomicCheckpointer
from frcnn_plugin.checkpoint.metadata import KEY
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.predict import FasterRCNNPredictor
from tests.cli.conftest import frcnn
from tests.random_detector import random_detector, squares
from tests.small_demo import DEMO, SMALL

ROOT = Path(__file__).resolve().parents[2]
OPTS = [
    *SMALL,
    *("MODEL.ANCHOR_GENERATOR.SIZES", "[[32,64,128]]"),
    *("INPUT.MIN_SIZE_TEST", "128", "INPUT.MAX_SIZE_TEST", "192"),
    *("DATASETS.TRAIN", "('predict_test',)"),
]
NAMES = ("circle", "square", "triangle")
# Runs the command in a process that is killed, as by a power cut, at the second image.
KILLED = """
import os, signal, sys
from frcnn_plugin.cli.__main__ import main
from frcnn_plugin.predict.outputs import DetectionWriter
stock, calls = DetectionWriter.add, []
def add(self, *args, **kwargs):
    calls.append(stock(self, *args, **kwargs))
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
DetectionWriter.add = add
main(["predict", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as training leaves it."""
    MetadataCatalog.get("predict_test").thing_classes = list(NAMES)
    folder = tmp_path_factory.mktemp("weights")
    cfg = setup_cfg(DEMO, OPTS)
    AtomicCheckpointer(random_detector(cfg), str(folder), cfg=cfg).save("model_final")
    return folder / "model_final.pth"


@pytest.fixture
def predict(weights: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """A function that runs the command; returns what it printed."""

    def call(*args: object, status: int = 0) -> str:
        assert frcnn("predict", "--weights", weights, *args) == status
        output = capsys.readouterr()
        return output.out + output.err

    return call


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures of three sizes in two folders, two of the same name."""
    folder = tmp_path / "photos"
    sizes = {"a/1.png": (100, 150), "a/2.png": (97, 61), "b/1.png": (100, 150), "b/3.jpg": (90, 90)}
    for seed, (name, size) in enumerate(sizes.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), squares(*size, seed))
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_pictures_and_json(predict: Callable, weights: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "found"
    printed = predict(photos / "a", photos / "b", "--output", out, "--batch-size", 3)
    assert files(out) == ["2.jpg", "3.jpg", "a__1.jpg", "b__1.jpg", "detections.json"]
    assert cv2.imread(str(out / "2.jpg")).shape == (480, 302, 3)  # small ones are enlarged
    content = json.loads((out / "detections.json").read_text())
    names = [f"{photos}/a/1.png", f"{photos}/a/2.png", f"{photos}/b/1.png", f"{photos}/b/3.jpg"]
    assert [image["file_name"] for image in content["images"]] == names
    assert [c["name"] for c in content["categories"]] == list(NAMES)
    assert content["info"] == {"weights": str(weights), "score": "0.5"}
    # As the class in Python finds.
    predictor = FasterRCNNPredictor(weights, score_threshold=0.05)
    number = below = 0
    coco = COCO(str(out / "detections.json"))
    for image_id, name in enumerate(names, 1):
        found = predictor(name)
        kept = found[found.scores >= 0.5]
        number, below = number + len(kept), below + len(found) - len(kept)
        ours = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        assert [a["category_id"] for a in ours] == (kept.pred_classes + 1).tolist()
        np.testing.assert_allclose([a["score"] for a in ours], kept.scores, atol=1e-5)
        for annotation, box in zip(ours, kept.pred_boxes, strict=True):
            x, y, width, height = annotation["bbox"]
            np.testing.assert_allclose([x, y, x + width, y + height], box, atol=0.01)
    assert number and below
    assert (
        f"{number} detections in 4 images; {below} more with scores from 0.05 to 0.5 are below "
        f"--score and left out\nwrote {out}\n"
    ) in printed


def test_json_alone_score_and_topk(predict: Callable, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    printed = predict(photos / "a", "--json", path, "--score", 0.01, "--topk", 2)
    content = json.loads(path.read_text())
    per_image = [a["image_id"] for a in content["annotations"]]
    assert 1 <= per_image.count(1) <= 2 and per_image.count(2) <= 2
    assert "below" not in printed and f"wrote {path}" in printed
    assert files(tmp_path) == ["found.json", *(f"photos/{n}" for n in files(photos))]


def test_no_pictures_and_overrides(predict: Callable, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(
        *("--output", out, "--no-pictures", "--score", "0.0", photos / "b" / "3.jpg"),
        *("TEST.DETECTIONS_PER_IMAGE", "1", "MODEL.RPN.POST_NMS_TOPK_TEST", "3"),
    )
    assert files(out) == ["detections.json"]
    assert len(json.loads((out / "detections.json").read_text())["annotations"]) <= 1


def test_features(predict: Callable, weights: Path, photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    pattern = f"{photos}/*/1.png"
    predict(pattern, "--features", path, "--batch-size", 2)
    content = np.load(path)
    assert content["file_names"].tolist() == [f"{photos}/a/1.png", f"{photos}/b/1.png"]
    assert content["class_names"].tolist() == list(NAMES)
    rows = len(content["scores"])
    assert content["fc7"].shape == (rows, 16) and content["scores_all"].shape == (rows, 4)
    predictor = FasterRCNNPredictor(weights, score_threshold=0.05)
    layer = predictor.model.roi_heads.box_predictor.cls_score
    again = layer(torch.from_numpy(content["fc7"])).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(again, content["scores_all"], atol=1e-6)
    # The detections' proposals, given as boxes, have the same features.
    given = {
        str(name): content["proposal_boxes"][content["image_index"] == i].tolist()
        for i, name in enumerate(content["file_names"])
    }
    (tmp_path / "boxes.json").write_text(json.dumps(given))
    own = tmp_path / "own.npz"
    printed = predict(pattern, "--boxes", tmp_path / "boxes.json", "--features", own)
    assert f"features of {rows} boxes in 2 images\nwrote {own}\n" in printed
    again = np.load(own)
    assert set(again) == {
        *("file_names", "image_sizes", "class_names", "image_index"),
        *("proposal_boxes", "fc7", "scores_all"),
    }
    tolerance = 1e-4 * content["fc7"].max()
    np.testing.assert_allclose(again["fc7"], content["fc7"], rtol=0, atol=tolerance)
    np.testing.assert_array_equal(again["proposal_boxes"], content["proposal_boxes"])


def test_own_json_gives_boxes(predict: Callable, photos: Path, tmp_path: Path) -> None:
    found, path = tmp_path / "found.json", tmp_path / "f.npz"
    predict(photos / "a", "--json", found)
    predict(photos / "a", "--boxes", found, "--features", path)
    boxes = [a["bbox"] for a in json.loads(found.read_text())["annotations"]]
    content = np.load(path)["proposal_boxes"]
    np.testing.assert_allclose(content[:, :2], np.array(boxes)[:, :2], atol=1e-3)


def test_unreadable_files_are_left_out(predict: Callable, photos: Path, tmp_path: Path) -> None:
    (photos / "a" / "0.jpg").write_text("broken")
    (photos / "a" / "9.jpg").write_bytes(b"")
    cv2.imwrite(str(photos / "a" / "3.png"), np.zeros((2, 5000, 3), np.uint8))
    out = tmp_path / "out"
    printed = predict(photos / "a", "--output", out, "--batch-size", 3, status=1)
    assert f"left out: {photos}/a/3.png: 5000 x 2 pixels cannot be resized as INPUT" in printed
    assert f"left out: {photos}/a/0.jpg cannot be read as an image (of no format" in printed
    assert printed.rstrip().endswith(
        f"error: 3 of 5 files could not be used: {photos}/a/0.jpg, {photos}/a/3.png, "
        f"{photos}/a/9.jpg"
    )
    assert files(out) == ["1.jpg", "2.jpg", "detections.json"]


def test_one_class_has_a_name(
    predict: Callable, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MetadataCatalog.get("predict_one").thing_classes = ["bolt"]
    opts = [*OPTS, "DATASETS.TRAIN", "('predict_one',)", "MODEL.ROI_HEADS.NUM_CLASSES", "1"]
    cfg = setup_cfg(DEMO, opts)
    AtomicCheckpointer(random_detector(cfg), str(tmp_path), cfg=cfg).save("one")
    predict("--weights", tmp_path / "one.pth", photos / "a", "--output", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {a["category_name"] for a in content["annotations"]} == {"bolt"}


def test_killed_run_leaves_no_half_file(weights: Path, photos: Path, tmp_path: Path) -> None:
    out, features = tmp_path / "out", tmp_path / "f.npz"
    out.mkdir()
    (out / "detections.json").write_text("old")
    args = [str(photos / "a"), str(photos / "b"), "--output", str(out), "--features", str(features)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, "--weights", str(weights), *args],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert files(out) == ["2.jpg", "a__1.jpg", "detections.json"]
    assert (out / "detections.json").read_text() == "old" and not features.exists()
    for name in ("2.jpg", "a__1.jpg"):
        assert cv2.imread(str(out / name)) is not None


def mistakes(folder: Path) -> list[tuple[list[str], str]]:
    photo = f"{folder}/photos/a/1.png"
    json_file = ["--json", f"{folder}/f.json"]
    boxes = ["--boxes", f"{folder}/boxes.json", "--features", f"{folder}/f.npz"]
    return [
        ([], "give images, folders or patterns"),
        ([photo], "say what to write: --output FOLDER, --json FILE, --features FILE.npz"),
        ([photo, "--features", "f.pt"], "--features f.pt must end in .npz"),
        ([photo, "--json", "no/f.json"], f"there is no folder {Path('no').resolve()}"),
        ([photo, *json_file, "--score", "50"], "--score is 50: it must be from 0 to 1"),
        ([photo, *json_file, "--topk", "0"], "--topk is 0: it must be 1 or more"),
        ([photo, *json_file, "--batch-size", "0"], "--batch-size is 0: it must be 1 or more"),
        ([photo, *boxes, *json_file], "--boxes detects nothing: it goes with --features FILE.npz"),
        ([photo, *boxes], f"{folder}/boxes.json: {photo}: box 0, [5.0, 5.0, 5.0, 9.0], has no are"),
        ([photo, "--output", photo], f"--output {photo} is a file: give a folder"),
        ([f"{folder}/empty", *json_file], f"the folder {folder}/empty holds no images ("),
        ([f"{folder}/A.JPG", *json_file], f"there is no file or folder {folder}/A.JPG"),
        ([photo, *json_file, "MODEL.DEVICE"], "MODEL.DEVICE has no value, it is the last word"),
        (
            [photo, *json_file, "MODEL.DEVIC", "cpu"],
            "there is no key MODEL.DEVIC; did",
        ),
        ([photo, *json_file, "--weights", "no.pth"], "there is no file no.pth"),
        ([photo, *json_file, "--config-file", "no.yaml"], "no config file 'no.yaml'; give the"),
        (
            [f"{folder}/photos/b/3.jpg", "--output", f"{folder}/photos/b"],
            f"{folder}/photos/b/3.jpg is read, and would be written: give another folder as --outp",
        ),
    ]


@pytest.mark.parametrize("number", range(len(mistakes(Path()))))
def test_mistakes(
    fails: Callable[..., str], weights: Path, photos: Path, tmp_path: Path, number: int
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "boxes.json").write_text('{"1.png": [[5, 5, 5, 9]]}')
    before = files(tmp_path)
    args, message = mistakes(tmp_path)[number]
    assert fails("predict", "--weights", weights, *args).startswith(message)
    assert files(tmp_path) == before


def test_checkpoint_of_a_step(
    fails: Callable[..., str], weights: Path, photos: Path, tmp_path: Path
) -> None:
    content = torch.load(weights, weights_only=True)
    content["trainer"] = {"hooks": {"FourStepHook": {"step": 1}}}
    path = tmp_path / "stage1_final.pth"
    torch.save(content, path)
    args = ["predict", "--weights", path, photos / "a", "--json", tmp_path / "f.json"]
    assert "stage1_final.pth is a region proposal network and det" in fails(*args)
    del content[KEY]["config"]
    torch.save(content, path)
    assert "stage1_final.pth carries no config: give the one tha" in fails(*args)


def test_snippets_of_the_documentation(
    predict: Callable, weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    assert len(snippets) == 2
    shutil.copy(weights, tmp_path / "model_final.pth")
    for name in ("photo.jpg", "other.jpg"):
        shutil.copy(photos / "b" / "3.jpg", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(snippets[0], names)
    assert names["detections"].fc7.shape[1] == names["boxes"].fc7.shape[1] == 16
    assert len(names["boxes"]) == 2 and len(names["proposals"])
    predict("photo.jpg", "other.jpg", "--features", "found.npz")
    exec(snippets[1], names)
    assert names["fc7"].shape == (int(names["mine"].sum()), 16) and names["mine"].any()

"""`frcnn visualize`: choosing images, writing files, mistakes. The pictures: test_pictures.py."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import pytest

from frcnn_plugin.cli import visualize
from frcnn_plugin.cli.__main__ import parse
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import setup_cfg
from tests.cli.conftest import frcnn
from tests.small_demo import DEMO, SMALL


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("data")
    write_synthetic_voc(root / "demo_shapes", 6, 3, seed=5, short_side=(60, 80))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield root


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., list[str]]:
    """Runs the command with the demo's config; returns the names of the files it wrote."""

    def call(mode: str, *args: str, weights: str = "") -> list[str]:
        output = tmp_path / "out"
        words = ("--mode", mode, "--config-file", DEMO, "--output", output)
        paths = frcnn("visualize", *words, *args, *SMALL, "MODEL.WEIGHTS", weights)
        assert sorted(paths) == sorted(output.iterdir())
        for path in paths:
            assert cv2.imread(str(path)) is not None
        return [path.name for path in paths]

    return call


@pytest.mark.parametrize("mode", ["data", "anchors", "matches", "sampled"])
def test_training_modes_draw_the_training_set_without_weights(draw: Callable, mode: str) -> None:
    assert draw(mode, "--limit", "2") == [f"{mode}_000001.png", f"{mode}_000002.png"]


@pytest.mark.parametrize(
    "mode, first",
    [("sampled", 1), ("losses", 1), ("funnel", 7), ("proposals", 7), ("detections", 7)],
)
def test_modes_with_weights(draw: Callable, weights: Path, mode: str, first: int) -> None:
    """Those of testing draw the test set."""
    names = draw(mode, "--limit", "2", weights=weights)
    assert names == [f"{mode}_00000{first}.png", f"{mode}_00000{first + 1}.png"]


def test_layers_are_a_picture_each(draw: Callable, weights: Path) -> None:
    names = draw("layers", "--limit", "1", weights=weights)
    assert names == [f"layers_000007_conv{k}.png" for k in range(1, 6)]


def test_roi_cells_of_the_objects(draw: Callable, capsys: pytest.CaptureFixture) -> None:
    names = draw("roi-cells", "--limit", "6", "--topk", "1")
    assert names and all(name.endswith("_1.png") for name in names)
    printed = capsys.readouterr().out.splitlines()
    assert [Path(line).name for line in printed if line.endswith(".png")] == names
    assert len(set(names)) + sum("nothing to draw" in line for line in printed) == 6


def test_images_by_id_in_the_order_asked_for(draw: Callable) -> None:
    # The overrides follow the ids: they are not taken for ids.
    names = draw("data", "--dataset", "shapes_test", "--image", "000009", "000007")
    assert names == ["data_000009.png", "data_000007.png"]


def test_first_four_or_drawn_at_random() -> None:
    _, args = parse(["visualize", "--mode", "data", "--config-file", DEMO])

    def ids(seed: int | None) -> list[str]:
        args.seed = seed
        records = visualize.records_of_dataset(args, "shapes_trainval")
        return [record["image_id"] for record in records]

    setup_cfg(DEMO, SMALL)
    assert ids(None) == ["000001", "000002", "000003", "000005"]  # 000004 is empty
    assert len(set(ids(0))) == 4 and ids(0) == ids(0) != ids(1)


def test_images_without_objects_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training leaves them out, as it does those with crowds alone."""
    objects = [[], [{"iscrowd": 1}], [{"iscrowd": 0}], [], [{}]]
    records = [{"image_id": n, "annotations": one} for n, one in enumerate(objects)]
    monkeypatch.setattr(visualize, "load_dicts", lambda name: records)
    _, args = parse(["visualize", "--mode", "data", "--config-file", DEMO])
    assert [r["image_id"] for r in visualize.records_of_dataset(args, "any")] == [2, 4, 0, 1]


def test_files_and_folders(draw: Callable, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    source = data / "demo_shapes" / "JPEGImages"
    shutil.copy(source / "000001.jpg", folder / "a b.JPG")
    shutil.copy(source / "000002.jpg", folder / "c.jpeg")
    (folder / "notes.txt").write_text("not an image")
    one = tmp_path / "c.jpg"
    shutil.copy(source / "000003.jpg", one)
    names = draw("anchors", "--input", str(folder), str(one))
    assert names == ["anchors_a b.png", "anchors_photos__c.png", "anchors_c.png"]


def test_detections_of_files_have_the_config_s_class_names(
    draw: Callable, data: Path, weights: Path
) -> None:
    image = data / "demo_shapes" / "JPEGImages" / "000001.jpg"
    names = draw("detections", "--input", str(image), "--score", "0", weights=weights)
    assert names == ["detections_000001.png"]


def test_bad_images_are_left_out_if_the_config_says_so(
    draw: Callable, data: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture
) -> None:
    bad = data / "demo_shapes" / "JPEGImages" / "000002.jpg"
    content = bad.read_bytes()
    try:
        bad.write_bytes(content[:200])
        names = draw("data", "--limit", "3", "DATALOADER.ON_BAD_IMAGE", "skip")
        assert names == ["data_000001.png", "data_000003.png"]
        assert f"image left out: {bad}" in capsys.readouterr().out
        words = ("--mode", "data", "--config-file", DEMO, "--image", "000002", *SMALL)
        assert str(bad) in fails("visualize", *words)
    finally:
        bad.write_bytes(content)


def test_detectron2_s_voc_names_tell_difficult_objects() -> None:
    """Detectron2's own dicts do not; load_dicts reads the files for them (test modes)."""
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visualize, "load_dicts", lambda name: calls.append(name) or [])
        _, args = parse(["visualize", "--mode", "detections", "--config-file", DEMO])
        assert visualize.records_of_dataset(args, "voc_2007_test") == []
    assert calls == ["voc_2007_test"]


@pytest.mark.parametrize(
    "mode, words, message",
    [
        ("data", ["--image", "00001"], "--image 00001: not among the 6 images of shapes_trainval; "
         "did you mean 000001"),
        ("data", ["--image", "x"], "--image x: .*; 000001 is one that is"),
        ("data", ["--dataset", "shapes_tst"], "data set 'shapes_tst' is not registered"),
        ("data", ["--limit", "0"], "--limit is 0: it must be 1 or more"),
        ("proposals", ["--topk", "0"], "--topk is 0: it must be 1 or more"),
        ("detections", ["--score", "50"], "--score is 50: it must be from 0 to 1"),
        ("funnel", ["--topk", "9"], "--topk has no meaning for --mode funnel, but for proposals"),
        ("losses", ["--score", "0.5"], "--score has no meaning for --mode losses"),
        ("layers", ["--cell", "1", "1"], "--cell has no meaning for --mode layers, but for anch"),
        ("data", ["--box", "1", "1", "9", "9"], "--box has no meaning for --mode data, but for ro"),
        ("anchors", ["--input", "no.jpg"], "there is no file or folder no.jpg"),
        ("anchors", ["--input", "{empty}"], ".* holds no images"),
        ("matches", ["--input", "{photo}"], ".*000001.jpg has no annotations, which mode matches"),
        ("anchors", ["--input", "no.jpg", "--image", "1"], "--input and --image exclude each ot"),
        ("detections", [], r"no weights given\. Add MODEL.WEIGHTS path/to/model_final.pth"),
        ("data", ["--config-file", "no.yaml"], "no config file"),
        ("anchors", ["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty: name a data set with --da"),
        ("detections", ["MODEL.ROI_HEADS.NUM_CLASSES", "7", "MODEL.WEIGHTS", "{weights}"],
         ".*NUM_CLASSES is 7 but dataset 'shapes_test' has 3"),
        ("detections", ["MODEL.WEIGHTS", "gone.pth"], ".*there is no file gone.pth"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    fails: Callable[..., str], data: Path, weights: Path, tmp_path: Path, mode, words, message
) -> None:
    photo = data / "demo_shapes" / "JPEGImages" / "000001.jpg"
    given = [word.format(empty=tmp_path, photo=photo, weights=weights) for word in words]
    options = ("--mode", mode, "--config-file", DEMO, "--output", tmp_path)
    assert re.match(message, fails("visualize", *options, *given, *SMALL))
    assert not list(tmp_path.iterdir())


def test_output_below_a_file(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ("--mode", "data", "--config-file", DEMO, "--output", tmp_path / "file" / "pictures")
    assert fails("visualize", *words).endswith("file/pictures cannot be made: Not a directory")


def test_unknown_mode(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(["visualize", "--mode", "match", "--config-file", DEMO])
    assert "argument --mode: invalid choice: 'match' (choose from" in capsys.readouterr().err

"""tools/visualize.py: choosing images, writing files, mistakes. The pictures: test_pictures.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import cv2
import pytest
import torch
from detectron2.modeling import build_model

from frcnn_plugin import get_config_file
from frcnn_plugin.data.synthetic.generator import write_synthetic_voc
from frcnn_plugin.engine import setup_cfg
from tests.tool_modules import load_command

DEMO = get_config_file("demo/vgg16_shapes_joint.yaml")
SMALL = [
    *("MODEL.VGG.CHANNELS", "[4,4,8,8,8]"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16"),
    *("MODEL.DEVICE", "cpu"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("data")
    write_synthetic_voc(root / "demo_shapes", 6, 3, seed=5, short_side=(60, 80))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        yield root


@pytest.fixture(scope="module")
def tool(data: Path) -> ModuleType:
    return load_command("visualize")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, data: Path) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": build_model(setup_cfg(DEMO, SMALL)).state_dict()}, path)
    return str(path)


@pytest.fixture
def draw(tool: ModuleType, tmp_path: Path) -> Callable[..., list[str]]:
    """Runs the tool with the demo's config; returns the names of the files it wrote."""

    def call(mode: str, *args: str, opts: tuple[str, ...] = ()) -> list[str]:
        paths = tool.main(
            [
                *("--mode", mode, "--config-file", DEMO, "--output", str(tmp_path / "out")),
                *args, *SMALL, *opts,
            ]
        )  # fmt: skip
        assert sorted(paths) == sorted((tmp_path / "out").iterdir())
        for path in paths:
            assert cv2.imread(str(path)) is not None
        return [path.name for path in paths]

    return call


@pytest.mark.parametrize("mode", ["data", "anchors", "matches", "sampled"])
def test_training_modes_draw_the_training_set_without_weights(draw: Callable, mode: str) -> None:
    assert draw(mode, "--limit", "2") == [f"{mode}_000001.png", f"{mode}_000002.png"]


@pytest.mark.parametrize("mode", ["proposals", "detections"])
def test_testing_modes_draw_the_test_set(draw: Callable, weights: str, mode: str) -> None:
    names = draw(mode, "--limit", "2", opts=("MODEL.WEIGHTS", weights))
    assert names == [f"{mode}_000007.png", f"{mode}_000008.png"]


def test_sampled_with_weights(draw: Callable, weights: str) -> None:
    assert draw("sampled", "--limit", "1", opts=("MODEL.WEIGHTS", weights)) == [
        "sampled_000001.png"
    ]


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


def test_first_four_or_drawn_at_random(draw: Callable, tool: ModuleType) -> None:
    args = tool.parse_args(["--mode", "data", "--config-file", DEMO])

    def ids(args) -> list[str]:
        return [record["image_id"] for record in tool.records_of_dataset(args, "shapes_trainval")]

    setup_cfg(DEMO, SMALL)
    assert ids(args) == ["000001", "000002", "000003", "000004"]
    args.seed = 0
    first = ids(args)
    assert len(set(first)) == 4 and first == ids(args)
    args.seed = 1
    assert ids(args) != first


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
    assert names == ["anchors_a_b.png", "anchors_c.png", "anchors_c-2.png"]


def test_detections_of_files_have_the_config_s_class_names(
    draw: Callable, data: Path, weights: str
) -> None:
    image = data / "demo_shapes" / "JPEGImages" / "000001.jpg"
    opts = ("MODEL.WEIGHTS", weights)
    assert draw("detections", "--input", str(image), "--score", "0", opts=opts) == [
        "detections_000001.png"
    ]


def test_host_voc_names_tell_difficult_objects(tool: ModuleType) -> None:
    """Detectron2's own dicts do not; load_dicts reads the files for them (test modes)."""
    calls: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "load_dicts", lambda name: calls.append(name) or [])
        args = tool.parse_args(["--mode", "detections", "--config-file", DEMO])
        assert tool.records_of_dataset(args, "voc_2007_test") == []
    assert calls == ["voc_2007_test"]


MISTAKES = [
    (["--mode", "match"], r"--mode match does not exist; did you mean matches\? Modes: data, anc"),
    (["--mode", "zzz"], r"--mode zzz does not exist; Modes: data, anchors, matches"),
    (["--mode", "data", "--image", "00001"], "--image 00001: not among the 6 images of shapes_tra"),
    (["--mode", "data", "--image", "x"], "--image x: .*; 000001 is one that is"),
    (["--mode", "data", "--dataset", "shapes_tst"], "data set 'shapes_tst' is not registered"),
    (["--mode", "data", "--limit", "0"], "--limit 0: must be at least 1"),
    (["--mode", "proposals", "--topk", "0"], "--topk 0: must be at least 1"),
    (["--mode", "detections", "--score", "50"], "--score 50: must be between 0 and 1"),
    (["--mode", "anchors", "--input", "no.jpg"], "there is no file or folder no.jpg"),
    (["--mode", "matches", "--input", "no.jpg"], "mode matches needs ground truth, which files"),
    (
        ["--mode", "anchors", "--input", "no.jpg", "--image", "000001"],
        "--input and --image exclude each other",
    ),
    (["--mode", "detections"], r"no weights given\. Add MODEL.WEIGHTS path/to/model_final.pth"),
]


@pytest.mark.parametrize("args, message", MISTAKES)
def test_mistakes_are_one_line(tool: ModuleType, tmp_path: Path, args, message: str) -> None:
    argv = [*args, "--config-file", DEMO, "--output", str(tmp_path), *SMALL]
    with pytest.raises(SystemExit, match=f"^error: {message}") as info:
        tool.main(argv)
    assert info.value.code != 0 and not list(tmp_path.iterdir())


def test_more_mistakes(tool: ModuleType, tmp_path: Path, weights: str) -> None:
    argv = ["--mode", "data", "--config-file", str(tmp_path / "no.yaml")]
    with pytest.raises(SystemExit, match="error: no config file"):
        tool.main(argv)
    argv = ["--mode", "anchors", "--config-file", DEMO, "--input", str(tmp_path), *SMALL]
    with pytest.raises(SystemExit, match="holds no pictures"):
        tool.main(argv)
    argv = ["--mode", "anchors", "--config-file", DEMO, *SMALL, "DATASETS.TRAIN", "()"]
    with pytest.raises(
        SystemExit, match=r"DATASETS\.TRAIN is empty: name a data set with --dataset"
    ):
        tool.main(argv)
    classes = ["MODEL.ROI_HEADS.NUM_CLASSES", "7", "MODEL.WEIGHTS", weights]
    argv = ["--mode", "detections", "--config-file", DEMO, *SMALL, *classes]
    with pytest.raises(SystemExit, match="NUM_CLASSES is 7 but dataset 'shapes_test' has 3"):
        tool.main(argv)
    argv = ["--mode", "detections", "--config-file", DEMO, *SMALL, "MODEL.WEIGHTS", "gone.pth"]
    with pytest.raises(SystemExit, match=r"there is no checkpoint gone\.pth"):
        tool.main(argv)

"""`frcnn export`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from frcnn_plugin.checkpoint.checkpointer import AtomicCheckpointer
from frcnn_plugin.cli import export as command
from frcnn_plugin.cli.__main__ import main
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.predict import export
from tests.random_detector import random_detector
from tests.small_demo import DEMO, SMALL

OPTS = [*SMALL, "INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "144"]
TORCHSCRIPT = ("--format", "torchscript")
Fails = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as training leaves it."""
    folder = tmp_path_factory.mktemp("model")
    cfg = setup_cfg(DEMO, OPTS)
    AtomicCheckpointer(random_detector(cfg), str(folder), cfg=cfg).save("model_final")
    return folder / "model_final.pth"


def run(*words: object) -> int:
    return main(["export", *map(str, words)])


def test_beside_the_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    override = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.2")
    assert run(model, *TORCHSCRIPT, "--check", *override) == 0
    file = model.with_suffix(".torchscript")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all("boxes differ by" in line for line in lines[:4])
    assert lines[4].startswith(f"wrote {file} (") and lines[4].endswith(f" and {file}.json")
    about = json.loads(Path(f"{file}.json").read_text())
    assert about["format"] == "torchscript" and about["thresholds"]["score"] == 0.2
    entry = export.generated(setup_cfg(DEMO, OPTS), 96, 120)
    _, scores, classes = torch.jit.load(file)(*export.inputs_of(entry))
    assert scores.min() > 0.2 and classes.max() < len(about["classes"])
    assert sorted(path.name for path in model.parent.glob("model_final*")) == [
        "model_final.pth",
        "model_final.torchscript",
        "model_final.torchscript.json",
    ]


def test_onnx_and_images(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], photo: Path
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    words = ("--output", tmp_path / "d.onnx", "--opset", "18", "--check", photo.parent)
    assert run("--format", "onnx", *words, "TEST.DETECTIONS_PER_IMAGE", "20", "--", model) == 0
    assert capsys.readouterr().out.startswith(f"{photo}: 20 detections; boxes differ by ")
    assert json.loads((tmp_path / "d.onnx.json").read_text())["opset"] == 18


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    from PIL import Image

    from tests.random_detector import squares

    (tmp_path / "photos").mkdir()
    Image.fromarray(squares(101, 143)).save(tmp_path / "photos" / "a.png")
    return tmp_path / "photos" / "a.png"


def test_what_differs_is_not_written(
    model: Path, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there before stays."""
    output = tmp_path / "a.torchscript"
    output.write_text("old")
    monkeypatch.setattr(export, "_largest", lambda *_: [0.2, 0.0])
    line = fails("export", model, *TORCHSCRIPT, "--output", output, "--check")
    assert line.startswith("not written: generated, upright: ")
    assert [path.name for path in tmp_path.iterdir()] == ["a.torchscript"]
    assert output.read_text() == "old"


def test_an_interrupted_export_leaves_no_half_of_a_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a.torchscript"
    monkeypatch.setattr(export, "export", lambda *_: b"content")

    def interrupted(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[:3])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    assert run(model, *TORCHSCRIPT, "--output", output) == 130
    assert list(tmp_path.iterdir()) == []


def test_mistakes(model: Path, tmp_path: Path, fails: Fails, photo: Path) -> None:
    text = tmp_path / "text.pth"
    text.write_text("no model")
    blocked = text / "a.onnx"
    for words, part in (
        ((model, model, *TORCHSCRIPT), "give one MODEL.pth, not 2: "),
        ((tmp_path / "none.pth", *TORCHSCRIPT), "none.pth"),
        ((tmp_path / "no" / "none.pth", *TORCHSCRIPT), f"there is no file {tmp_path}/no/none.pth"),
        ((text, *TORCHSCRIPT), "text.pth"),
        ((model, *TORCHSCRIPT, "--opset", "17"), "--opset 17 goes with --format onnx"),
        ((model, *TORCHSCRIPT, "--output", tmp_path), "is a folder"),
        ((model, *TORCHSCRIPT, "--output", tmp_path / "no" / "a"), "No such file or directory"),
        ((model, *TORCHSCRIPT, "--output", blocked), "Not a directory"),
        ((model, *TORCHSCRIPT, "--output", model), "which is read"),
        ((model, *TORCHSCRIPT, "--output", photo, "--check", photo), "which is read"),
        ((model, *TORCHSCRIPT, "--check", tmp_path / "none.jpg"), "none.jpg"),
        ((model, *TORCHSCRIPT, "--check", text), "text.pth"),
        ((model, *TORCHSCRIPT, "MODEL.PAPER_RCNN.PHASE", "rpn"), "region proposal network"),
        ((model, *TORCHSCRIPT, "MODEL.RPN.SCORES", "random"), "MODEL.RPN.SCORES is random, which"),
        ((model, *TORCHSCRIPT, "MODEL.RPN.SCORE", "random"), "MODEL.RPN.SCORE"),
        ((model, *TORCHSCRIPT, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "7"), "SCORE_THRESH_TEST"),
    ):
        assert part in fails("export", *words), words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "text.pth"]


@pytest.mark.parametrize(("missing", "checks"), [("onnx", False), ("onnxruntime", True)])
def test_missing_packages(
    missing: str, checks: bool, model: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == missing else name)
    line = fails("export", model, "--format", "onnx", *["--check"] * checks)
    assert line == f"{missing} is missing: pip install {missing}, or 'frcnn-plugin[export]'"


def test_unknown_words_are_answered_with_those_known(model: Path) -> None:
    for words in (("--format", "coreml"), ("--format", "onnx", "--opset", "11"), ()):
        with pytest.raises(SystemExit) as stop:
            run(model, *words)
        assert stop.value.code == 2

"""`frcnn weights convert` and `frcnn weights check` of files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from frcnn_plugin.checkpoint import (
    KEY,
    Metadata,
    convert_caffe,
    read_caffemodel,
    save_weights,
    write_caffemodel,
)
from frcnn_plugin.checkpoint.metadata import CAFFE
from tests.checkpoint import networks
from tests.cli.conftest import frcnn


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    path = tmp_path / "detector.caffemodel"
    layers = networks.detector(networks.zf(), classes=2, rpn_conv="rpn_conv1")
    write_caffemodel(path, layers)
    return path


def test_there_and_back(detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, back = tmp_path / "det.pth", tmp_path / "back.caffemodel"
    frcnn("weights", "convert", detector, checkpoint, "--classes", "cat", "dog")
    out = capsys.readouterr().out
    assert "ZF, detector of 2 classes" in out
    assert "BGR, mean [102.9801, 115.9465, 122.7717], std [1.0, 1.0, 1.0]" in out
    assert "2: cat, dog" in out
    row = next(line for line in out.splitlines() if line.startswith("cls_score[0]"))
    assert row.split() == (
        "cls_score[0] roi_heads.box_predictor.cls_score.weight 3 x 6, background last".split()
    )
    assert f"wrote {checkpoint}" in out
    content = torch.load(checkpoint, weights_only=True)
    metadata = Metadata.from_dict(content[KEY])
    assert metadata is not None
    assert (metadata.classes, metadata.preprocessing) == (("cat", "dog"), CAFFE)
    assert len(str(metadata.source["sha256"])) == 64
    frcnn("weights", "convert", checkpoint, back, "--rpn-conv", "rpn_conv1")
    original, result = read_caffemodel(detector).layers, read_caffemodel(back).layers
    assert set(original) == set(result)
    for name in original:
        for a, b in zip(original[name], result[name], strict=True):
            assert a.tobytes() == b.tobytes()


def test_back_takes_the_box_weights_of_the_config(tmp_path: Path) -> None:
    layers = networks.detector(networks.zf(), classes=1, rpn_conv="rpn_conv1")
    weights = convert_caffe(layers)
    for kind in ("mean", "std"):
        del weights.state_dict[f"roi_heads.box_predictor.target_statistics.{kind}"]
    config = "MODEL:\n  ROI_BOX_HEAD:\n    BBOX_REG_WEIGHTS: [2.0, 2.0, 4.0, 4.0]\n"
    weights.metadata = Metadata("detector", CAFFE, config=config)
    save_weights(tmp_path / "a.pth", weights)
    frcnn("weights", "convert", tmp_path / "a.pth", tmp_path / "a.caffemodel")
    bias = read_caffemodel(tmp_path / "a.caffemodel").layers["bbox_pred"][1]
    np.testing.assert_allclose(bias[4:], layers["bbox_pred"][1][4:] / [2, 2, 4, 4], rtol=1e-6)


def test_check_writes_nothing(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frcnn("weights", "check", detector)
    assert "every value is finite; nothing was written" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["detector.caffemodel"]


def test_layout(
    fails: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vgg16_caffe.pth"
    torch.save(networks.torchvision_vgg16(), path)
    assert "--layout" in fails("weights", "check", path)
    frcnn("weights", "check", path, "--layout", "caffe-pth")
    out = capsys.readouterr().out
    assert "BGR, mean [102.9801" in out
    assert "left out: classifier.6.weight, classifier.6.bias" in out


def test_mistakes(fails: Callable[..., str], detector: Path, tmp_path: Path) -> None:
    def convert(*words: object) -> str:
        return fails("weights", "convert", *words)

    output = tmp_path / "a.pth"
    assert "must end in .pth or .caffemodel" in convert(detector, tmp_path / "a.pkl")
    assert "there is no folder" in convert(detector, tmp_path / "none" / "a.pth")
    assert "there is no file" in convert(tmp_path / "gone.caffemodel", output)
    assert "has 1 names, but the weights are for 2" in convert(detector, output, "--classes", "a")
    output.touch()
    assert "exists: add --overwrite" in convert(detector, output)


def test_values_that_are_not_finite(fails: Callable[..., str], tmp_path: Path) -> None:
    layers = networks.vgg16()
    layers["conv2_1"][1][0] = np.nan
    path = tmp_path / "a.caffemodel"
    write_caffemodel(path, layers)
    said = f"{path} has values that are not finite in backbone.conv2.conv2_1.bias"
    assert fails("weights", "convert", path, tmp_path / "a.pth") == said
    assert not (tmp_path / "a.pth").exists()
    # All that is wrong is said at once.
    assert fails("weights", "check", path, tmp_path / "gone.pth").startswith(f"{said}; ")

"""`frcnn weights convert`, `frcnn weights download` and `frcnn weights check`."""

from __future__ import annotations

import hashlib
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
from frcnn_plugin.checkpoint.catalog import known_files as catalog
from frcnn_plugin.checkpoint.catalog.known_files import CATALOG, KnownFile
from frcnn_plugin.checkpoint.metadata import CAFFE
from tests.checkpoint import networks
from tests.checkpoint.catalog.http_server import Server
from tests.cli.conftest import frcnn

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


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
    original, result = read_caffemodel(detector), read_caffemodel(back)
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
    bias = read_caffemodel(tmp_path / "a.caffemodel")["bbox_pred"][1]
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


@pytest.fixture
def published(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server with the only file of the catalog, w."""
    server.files["/w.pth"] = CONTENT
    only = KnownFile(
        name="w",
        file_name="w.pth",
        urls=(f"{server.url}/w.pth",),
        checksum=f"sha256:{SHA256}",
        description="weights",
        licence="none",
    )
    monkeypatch.setattr(catalog, "CATALOG", (only,))
    return server


def test_list(cache: Path, capsys: pytest.CaptureFixture) -> None:
    (cache / "ZF.v2.caffemodel").write_bytes(bytes(1234))
    frcnn("weights", "download", "--list")
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[2 : 2 + len(CATALOG)]}
    assert set(rows) == {known.name for known in CATALOG}
    for word in ("the original", "553.4 MB", "CC BY 4.0", "SHA256"):
        assert word in rows["vgg16_caffe_imagenet"]
    assert rows["vgg16_caffe_imagenet"].endswith("no")
    assert "1234 bytes" in rows["zf_caffe_imagenet"]
    assert rows["zf_caffe_imagenet"].endswith("yes")
    assert " ? " in rows["vgg16_py_faster_rcnn_coco"]
    assert f"  zf_caffe_imagenet: {cache}/ZF.v2.caffemodel" in lines
    assert max(map(len, rows.values())) < 170


def test_download_then_check(
    fails: Callable[..., str], cache: Path, published: Server, capsys: pytest.CaptureFixture
) -> None:
    frcnn("weights", "download", "w")
    assert capsys.readouterr().out.splitlines()[-1] == str(cache / "w.pth")
    frcnn("weights", "check")
    assert f"w: SHA-256 {SHA256}, checked by: SHA256 (64 digits)" in capsys.readouterr().out
    (cache / "w.pth").write_bytes(CONTENT[1:])
    said = fails("weights", "check")
    assert said.startswith(f"{cache}/w.pth is not the published w.pth: its SHA256 is")


def test_check_of_a_named_file_that_is_not_there(
    fails: Callable[..., str], cache: Path, published: Server
) -> None:
    assert fails("weights", "check", "w") == f"w is not at {cache}/w.pth"
    frcnn("weights", "check")  # of what is there: nothing


def test_check_of_an_empty_cache(
    cache: Path, published: Server, capsys: pytest.CaptureFixture
) -> None:
    frcnn("weights", "check")
    assert f"none of the published files is in {cache};" in capsys.readouterr().out


def test_typing_error_ends_it_before_a_download(
    fails: Callable[..., str], cache: Path, published: Server
) -> None:
    assert fails("weights", "download", "w", "x").startswith("no weight file is called 'x'. ")
    assert published.asked == []


def test_failed_download(fails: Callable[..., str], cache: Path, published: Server) -> None:
    del published.files["/w.pth"]
    said = fails("weights", "download", "w")
    assert said.startswith("w.pth could not be downloaded (http://127.0.0.1:")


def test_nothing_to_do(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        frcnn("weights", "download")
    assert stop.value.code == 2
    assert "give a NAME, or --list" in capsys.readouterr().err

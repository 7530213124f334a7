"""Weights, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from frcnn_plugin.checkpoint.catalog.download import cached_path
from frcnn_plugin.checkpoint.catalog.known_files import find as find_known
from frcnn_plugin.checkpoint.checkpointer import preprocessing
from frcnn_plugin.checkpoint.metadata import KEY, Metadata, Preprocessing
from frcnn_plugin.data import SHAPE_CLASSES
from frcnn_plugin.preflight import planned_run, preflight
from frcnn_plugin.preflight.weights import check_weights
from tests.preflight.conftest import only


@pytest.fixture
def save(plan, tmp_path: Path):
    """A function that writes weights of the demo's model; returns the override that names them."""

    def write(metadata: Metadata | None = None, part: str = "") -> list[str]:
        model = build_model(plan().cfg)
        weights = {k: v for k, v in model.state_dict().items() if k.startswith(part)}
        content: dict[str, Any] = {"model": weights}
        if metadata is not None:
            content[KEY] = metadata.to_dict()
        torch.save(content, tmp_path / "weights.pth")
        return ["MODEL.WEIGHTS", str(tmp_path / "weights.pth")]

    return write


def right(plan, **changes: Any) -> Metadata:
    """What the demo's own checkpoints say."""
    values = {
        "kind": "detector",
        "preprocessing": preprocessing(plan().cfg),
        "classes": tuple(SHAPE_CLASSES),
        **changes,
    }
    return Metadata(**values)


def test_no_weights(plan) -> None:
    model, none = check_weights(plan())
    assert "PaperRCNN, VGG16, 0.0 M parameters" in model.text
    assert "random weights" in none.text


def test_weights_of_the_run_itself(plan, save) -> None:
    run = plan(*save(right(plan)), eval_only=True)
    text = [f.text for f in check_weights(run)][-1]
    assert {f.level for f in preflight(run)} == {"ok"}
    found, wanted = (text.partition(": ")[2].split()[i] for i in (0, 2))
    names = [name for name in run.model.state_dict() if ".target_statistics." not in name]
    assert found == wanted == str(len(names))
    assert text.endswith("weights of the model, detector, 3 classes")


def test_the_model_takes_no_memory(plan, save) -> None:
    run = plan(*save(right(plan)))
    list(check_weights(run))
    assert {p.device.type for p in run.model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        ([], "--eval-only needs trained weights: add MODEL.WEIGHTS"),
        (
            ["MODEL.WEIGHTS", "frcnn://vgg16_caffe_imagenet"],
            "--eval-only needs trained weights, which frcnn://vgg16_caffe_imagenet are not",
        ),
    ],
)
def test_evaluation_without_trained_weights(find, opts: list[str], message: str) -> None:
    assert message in only(find(*opts, eval_only=True), "weights")


RGB = Preprocessing("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@pytest.mark.parametrize(
    ("says", "opts", "eval_only", "words"),
    [
        (
            {"kind": "imagenet", "classes": None}, [], True,
            ("cannot be evaluated: it lacks", "those of ImageNet are where training starts"),
        ),
        (
            {"preprocessing": RGB}, [], False,
            ("INPUT.FORMAT is BGR, the weights expect RGB",
             'Type INPUT.FORMAT RGB MODEL.PIXEL_MEAN "[123.675, 116.28, 103.53]"'),
        ),
        (
            {}, ["MODEL.PAPER_VGG.CHANNELS", "[5,4,8,8,8]"], False,
            ("conv1_1.weight is 4x3x3x3 there and 5x3x3x3 here",),
        ),
        (
            {"classes": tuple(reversed(SHAPE_CLASSES))}, [], True,
            ("the classes of the data in another order",),
        ),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(
    find, save, plan, says: dict[str, Any], opts: list[str], eval_only: bool, words: tuple[str, ...]
) -> None:
    weights = save(right(plan, **says), "backbone." if "kind" in says else "")
    message = only(find(*weights, *opts, eval_only=eval_only), "weights")
    assert all(part in message for part in words)


def test_weights_that_say_nothing(find, save) -> None:
    message = only(find(*save()), "weights", "warning")
    assert "does not say which images" in message and "INPUT.FORMAT BGR" in message
    assert "frcnn weights convert" in message


@pytest.mark.parametrize(("dim", "level"), [(2048, "warning"), (1024, "ok")])
def test_fc_layers_that_start_at_random(plan, save, dim: int, level: str) -> None:
    opts = [*save(right(plan), "backbone."), "MODEL.ROI_BOX_HEAD.FC_DIM", str(dim)]
    refused = list(check_weights(plan(*opts)))[-1]
    assert refused.level == "error" and "MODEL.ROI_BOX_HEAD.FC_DIM 512" in refused.text
    *_, finding = check_weights(plan(*opts, "MODEL.WEIGHTS_MAY_LACK", "['roi_heads.box_head']"))
    number = 8 * 49 * dim + dim + dim * dim + dim
    assert finding.level == level
    assert f"fc6 and fc7 start at random, as {opts[1]} has none of this shape" in finding.text
    assert f"their {number / 1e6:.3g} M parameters" in finding.text
    assert (f"MODEL.ROI_BOX_HEAD.FC_DIM 512 (it is {dim})" in finding.fix) == (level == "warning")


def test_fc_layers_that_are_in_the_file(plan, save) -> None:
    assert not any("at random" in f.text for f in check_weights(plan(*save(right(plan)))))


def test_weights_of_another_network(find, tmp_path: Path) -> None:
    torch.save({"model": {"stem.conv1.weight": torch.ones(1)}}, tmp_path / "r50.pth")
    message = only(find("MODEL.WEIGHTS", tmp_path / "r50.pth"), "weights")
    assert "VGG16: 0 of 13 conv layers found in" in message
    assert "stem.conv1.weight" in message


def test_weights_of_other_classes_are_for_training(plan, save) -> None:
    opts = save(right(plan, classes=("cat", "dog", "cow")))
    warned = [f for f in preflight(plan(*opts)) if f.level == "warning"]
    assert "was trained on other classes: class 0 is 'cat' there" in only(
        warned, "weights", "warning"
    )


def test_old_file_format(plan, save, tmp_path: Path) -> None:
    """Which cannot be mapped into memory."""
    opts = save(right(plan))
    content = torch.load(opts[1], weights_only=True)
    torch.save(content, opts[1], _use_new_zipfile_serialization=False)
    assert {f.level for f in check_weights(plan(*opts))} == {"ok"}


@pytest.mark.parametrize("address", ["https://example.org/a.pth", "detectron2://No/Such.pkl"])
@pytest.mark.parametrize("problem", [URLError("no route to host"), TimeoutError(), KeyError("x")])
def test_address_that_cannot_be_reached(
    find, monkeypatch: pytest.MonkeyPatch, address: str, problem: Exception
) -> None:
    """Told before the run makes its folder."""

    def fail(_: str) -> str:
        raise problem

    monkeypatch.setattr(PathManager, "get_local_path", fail)
    message = only(find("MODEL.WEIGHTS", address), "weights")
    assert f"MODEL.WEIGHTS {address} cannot be downloaded ({type(problem).__name__}" in message
    assert "give a file: MODEL.WEIGHTS path/to/file.pth" in message


def test_address_that_nobody_opens(find) -> None:
    message = only(find("MODEL.WEIGHTS", "s3://bucket/a.pth", alone=True), "weights")
    assert "nothing here opens s3:// addresses" in message


def test_model_that_cannot_be_built(find, plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cfg: Any) -> Any:
        raise ValueError("FPN needs five levels\nmore")

    monkeypatch.setattr(planned_run, "build_model", fail)
    assert "not compared with the model" in only(list(check_weights(plan())), "weights", "warning")
    monkeypatch.setattr("frcnn_plugin.preflight.weights.build_model", fail)
    message = only(find(), "weights")
    assert "the model cannot be built (ValueError: FPN needs five levels)" in message


def test_warnings_before_an_error_are_told(find, save, plan) -> None:
    opts = save(right(plan, classes=("cat", "dog", "cow")))
    findings = find(*opts, "MODEL.PAPER_VGG.CHANNELS", "[5,4,8,8,8]")
    assert "conv1_1.weight is" in only([f for f in findings if f.level == "error"], "weights")


def test_files_of_the_net_are_not_fetched(plan) -> None:
    run = plan("MODEL.WEIGHTS", "detectron2://ImageNetPretrained/MSRA/R-50.pkl", alone=True)
    assert "downloaded when the run starts" in list(check_weights(run))[-1].text


def test_known_files(plan, save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloaded by the parent of a run, not by the doctor, and not for a run that cannot start."""
    fetched = []
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    local = save(right(plan))[1]
    monkeypatch.setattr(PathManager, "get_local_path", lambda p: fetched.append(p) or local)
    opts = ["MODEL.WEIGHTS", "frcnn://vgg16_caffe_imagenet"]
    for how in ({"alone": True}, {"failed": True}):
        assert "downloaded when the run starts" in list(check_weights(plan(*opts, **how)))[-1].text
    assert not fetched
    assert f"{local}: " in list(check_weights(plan(*opts)))[-1].text
    assert opts[1] in fetched
    cached = cached_path(find_known("vgg16_caffe_imagenet"))
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert f"{local}: " in list(check_weights(plan(*opts, alone=True)))[-1].text

"""Reading files of weights of every kind, and writing checkpoints."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from frcnn_plugin.checkpoint import KEY, peek, read_weights, save_weights, write_caffemodel
from frcnn_plugin.checkpoint.conversion import KNOWN, LAYOUTS
from frcnn_plugin.checkpoint.metadata import CAFFE, TORCHVISION, Metadata
from frcnn_plugin.checkpoint.read import last_checkpoint, read_checkpoint
from frcnn_plugin.errors import UserError
from tests.damage import Calls

from . import networks


@pytest.fixture
def caffemodel(tmp_path: Path) -> Path:
    path = tmp_path / "net.caffemodel"
    write_caffemodel(path, networks.detector(networks.vgg16(), classes=20, rpn_conv="rpn_conv/3x3"))
    return path


@pytest.fixture
def torchvision(tmp_path: Path) -> Path:
    path = tmp_path / "vgg16.pth"
    torch.save(networks.torchvision_vgg16(), path)
    return path


def test_caffemodel(caffemodel: Path) -> None:
    weights = read_weights(caffemodel)
    assert weights.network == "VGG16, detector of 20 classes"
    assert weights.metadata.source == {
        "file": "net.caffemodel",
        "sha256": hashlib.sha256(caffemodel.read_bytes()).hexdigest(),
        "layout": "caffemodel",
        "converter": 1,
    }


def test_saved_and_read_again(caffemodel: Path, tmp_path: Path) -> None:
    weights = read_weights(caffemodel)
    save_weights(tmp_path / "out.pth", weights)
    again = read_weights(tmp_path / "out.pth")
    assert again.metadata.preprocessing == CAFFE
    assert again.metadata.classes == weights.metadata.classes
    assert again.metadata.source == weights.metadata.source
    assert torch.equal(again.metadata.background["weight"], weights.metadata.background["weight"])
    assert list(again.state_dict) == list(weights.state_dict)
    assert all(torch.equal(again.state_dict[k], v) for k, v in weights.state_dict.items())
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    assert set(content) == {"model", KEY}
    assert not list(tmp_path.glob("*.partial"))


def test_known_file_in_torchvisions_names(
    torchvision: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recognised by the start of its SHA-256."""
    digest = hashlib.sha256(torchvision.read_bytes()).hexdigest()
    monkeypatch.setitem(KNOWN, digest[:8], "torchvision")
    weights = read_weights(torchvision)
    assert weights.metadata.preprocessing == TORCHVISION
    assert weights.metadata.source["layout"] == "torchvision"


def test_known_files() -> None:
    """PyTorch's file names end in the first digits of the SHA-256."""
    assert {k: LAYOUTS[layout].format for k, layout in KNOWN.items()} == {
        "397923af": "RGB",  # vgg16-397923af.pth
        "88682ab5": "RGB",  # vgg16_features-amdegroot-88682ab5.pth
        "6c64b313": "RGB",  # vgg16_bn-6c64b313.pth
        "00b39a1b": "BGR",  # vgg16-00b39a1b.pth
    }


def test_unknown_file_in_torchvisions_names(torchvision: Path) -> None:
    with pytest.raises(UserError, match=r"RGB images.*vgg16_caffe\.pth") as e:
        read_weights(torchvision)
    command = "frcnn weights convert .*vgg16.pth converted.pth --layout torchvision "
    assert re.search(command, str(e.value))
    assert "|" not in str(e.value)  # which a shell takes for a pipe
    assert read_weights(torchvision, layout="caffe-pth").metadata.preprocessing == CAFFE


def test_state_dict_one_level_deeper(tmp_path: Path) -> None:
    torch.save({"state_dict": networks.torchvision_vgg16(), "epoch": 3}, tmp_path / "a.pth")
    weights = read_weights(tmp_path / "a.pth", layout="torchvision")
    assert len(weights.state_dict) == 30


def test_checkpoint_of_this_plugin_without_metadata(tmp_path: Path) -> None:
    torch.save({"model": {"backbone.conv1.conv1_1.weight": torch.ones(1)}}, tmp_path / "old.pth")
    weights = read_weights(tmp_path / "old.pth")
    assert weights.metadata == Metadata("detector")
    assert list(weights.state_dict) == ["backbone.conv1.conv1_1.weight"]


def test_peek_tells_what_a_checkpoint_of_a_run_holds(tmp_path: Path) -> None:
    content = {
        "model": {"a": torch.arange(3.0), "b": 1},
        KEY: Metadata("detector", CAFFE).to_dict(),
        "trainer": {"hooks": {"FourStepHook": {"step": 3}}},
        "iteration": 41,
    }
    torch.save(content, tmp_path / "run.pth")
    found = peek(tmp_path / "run.pth")
    assert list(found.weights) == ["a"]
    assert found.weights["a"].tolist() == [0.0, 1.0, 2.0]
    assert found.metadata == Metadata("detector", CAFFE)
    assert (found.iteration, found.stage) == (41, 3)
    found.weights["a"].zero_()
    assert peek(tmp_path / "run.pth").weights["a"].tolist() == [0.0, 1.0, 2.0]


def test_peek_into_a_file_of_others(tmp_path: Path) -> None:
    """In the format before torch 1.6, which cannot be mapped; without anything but weights."""
    weights = {"a": torch.ones(2)}
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    found = peek(tmp_path / "old.pth")
    assert found.weights["a"].tolist() == [1.0, 1.0]
    assert (found.metadata, found.iteration, found.stage) == (None, None, 0)
    torch.save({"model": weights, "trainer": {"hooks": {}}, "iteration": "x"}, tmp_path / "b.pth")
    assert (peek(tmp_path / "b.pth").iteration, peek(tmp_path / "b.pth").stage) == (None, 0)


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut off", b"\x80\x02 nonsense"])
def test_damaged_torch_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    for read in (peek, read_weights):
        with pytest.raises(UserError, match=r"a\.pth is damaged, or no checkpoint"):
            read(tmp_path / "a.pth")


def test_other_content(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list, not weights by name"):
        read_weights(tmp_path / "list.pth")
    torch.save({"layer1.0.conv1.weight": torch.ones(1)}, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match=r"none of the kinds .* called layer1\.0\.conv1\.weight"):
        read_weights(tmp_path / "resnet.pth")
    with pytest.raises(UserError, match=r"there is no file .*gone"):
        read_weights(tmp_path / "gone.pth")


def test_web_page_named_pth(tmp_path: Path) -> None:
    (tmp_path / "vgg16.pth").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(UserError, match=r"vgg16\.pth is a web page"):
        read_weights(tmp_path / "vgg16.pth")


def test_errors_of_conversions_name_the_file(tmp_path: Path) -> None:
    layers = networks.vgg16()
    del layers["conv5_3"]
    write_caffemodel(tmp_path / "a.caffemodel", layers)
    with pytest.raises(UserError, match=r"a\.caffemodel: the network lacks conv5_3"):
        read_weights(tmp_path / "a.caffemodel")
    torch.save({"features.0.weight": torch.ones(4, 3, 3, 3)}, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"b\.pth: the network has torchvision's names"):
        read_weights(tmp_path / "b.pth", layout="torchvision")


def test_not_finite(caffemodel: Path) -> None:
    weights = read_weights(caffemodel)
    assert weights.not_finite() == []
    weights.state_dict["backbone.conv3.conv3_1.bias"][2] = float("inf")
    assert weights.not_finite() == ["backbone.conv3.conv3_1.bias"]


def test_metadata_of_strangers_is_ignored() -> None:
    for content in (None, [], {"kind": 3}, {"classes": ["a"]}):
        assert Metadata.from_dict(content) is None
    broken = {"kind": "detector", "preprocessing": {"format": "BGR", "mean": "x"}}
    assert Metadata.from_dict(broken) == Metadata("detector")


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.pyth", "old.pth"])
def test_code_in_a_file_is_not_run(tmp_path: Path, name: str) -> None:
    content = {"model": {"a": Calls(os.mkdir, str(tmp_path / "evil"))}, "__author__": "x"}
    path = tmp_path / name
    if name == "a.pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=name != "old.pth")
    for read in (read_checkpoint, peek, read_weights):
        with pytest.raises(UserError, match=r"holds more than weights \(posix\.mkdir\)"):
            read(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_flipped_bits_are_found(tmp_path: Path, part: str) -> None:
    """In every byte of a tensor; torch reads them as other numbers."""
    path = tmp_path / "model_0000009.pth"
    numbers = torch.arange(1.0, 9.0)
    torch.save({"model": {"a": torch.ones(1)}} | {part: {"a": numbers}}, path)
    whole = path.read_bytes()
    start = whole.index(numbers.numpy().tobytes())
    for place in range(start, start + 32, 5):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        torch.load(path, weights_only=True)
        with pytest.raises(UserError, match=r"model_0000009\.pth is damaged: the checksum of"):
            read_checkpoint(path)
    path.write_bytes(whole)
    assert read_checkpoint(path)[part]["a"].tolist() == numbers.tolist()


def test_file_without_checksums(tmp_path: Path) -> None:
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes them")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / "a.pth")["model"]["a"].tolist() == [1.0, 1.0]


def test_no_memory_beyond_the_size_of_the_file(tmp_path: Path) -> None:
    """A view that repeats one number, and an archive that unpacks to more."""
    torch.save({"a": torch.ones(1).expand(1 << 40)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth is damaged"):
        peek(tmp_path / "a.pth")
    torch.save({"a": torch.zeros(100_000)}, tmp_path / "b.pth")
    with (
        zipfile.ZipFile(tmp_path / "b.pth") as old,
        zipfile.ZipFile(tmp_path / "c.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match=r"c\.pth is compressed"):
        peek(tmp_path / "c.pth")


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"epoch": 3, "state_dict": state, "best": 0.5},
        lambda state: {"model": {"state_dict": state}},
        lambda state: state | {"epoch": 3},
        lambda state: prefixed("module.", state),
        lambda state: {"state_dict": prefixed("module.", state)},
        lambda state: {k.replace("features.", "features.module."): v for k, v in state.items()},
    ],
)
def test_weights_in_wrappers_and_with_prefixes(tmp_path: Path, wrap) -> None:
    state = networks.torchvision_vgg16()
    torch.save(wrap(state), tmp_path / "a.pth")
    content = read_checkpoint(tmp_path / "a.pth")
    assert list(content["model"]) == list(state)
    assert content.get("epoch") in (3, None)
    weights = read_weights(tmp_path / "a.pth", layout="torchvision")
    assert len(weights.state_dict) == 30
    assert len(peek(tmp_path / "a.pth").weights) == len(state)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_of_detectron_and_its_successor(tmp_path: Path, protocol: int) -> None:
    """What Detectron2 makes of them, which would run code in them."""
    for content in (
        {"model": {"a.weight": np.ones((2, 3), "f4")}, "__author__": "x"},
        {"blobs": OrderedDict(a_w=np.ones(3, "f4"), a_w_momentum=np.ones(3, "f4")), "cfg": "x"},
        {"a_w": np.ones(3, "f4")},
    ):
        path = tmp_path / "a.pkl"
        path.write_bytes(pickle.dumps(content, protocol))
        theirs = DetectionCheckpointer(torch.nn.Linear(1, 1))._load_file(str(path))
        ours = read_checkpoint(path)
        assert {k: v for k, v in ours.items() if k != "model"} == {
            k: v for k, v in theirs.items() if k != "model"
        }
        assert list(ours["model"]) == list(theirs["model"])
        for name, tensor in ours["model"].items():
            assert np.array_equal(tensor.numpy(), theirs["model"][name])


@pytest.mark.parametrize("suffix", ["onnx", "torchscript"])
def test_exported_detector(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model_final.{suffix}"
    file.write_bytes(b"x")
    for read in (peek, read_checkpoint):
        with pytest.raises(UserError, match=rf"{suffix} is an exported detector: give the check"):
            read(file)


def test_folder_and_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a folder: name a file in it, such as .*model_final"):
        read_checkpoint(tmp_path)
    for name in ("initial_weights.pth", "model_final.pth", "stage1_final.pth"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"name a file in it, such as .*model_final\.pth"):
        read_checkpoint(tmp_path)
    (tmp_path / "notes.pth").write_text("learning rate 0.001\n")
    with pytest.raises(UserError, match=r"notes\.pth is a text file, not one of weights"):
        read_weights(tmp_path / "notes.pth")
    (tmp_path / "a.pth").write_bytes(bytes(range(200, 250)))
    with pytest.raises(UserError, match=r"a\.pth is damaged, or neither a file of torch\.save nor"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("note", [b"", b"\n", b"\xff\xfe\x00", b"a\x00b", b"two\nlines.pth"])
def test_last_checkpoint_names_none(tmp_path: Path, note: bytes) -> None:
    assert last_checkpoint(tmp_path) is None
    (tmp_path / "model_0000099.pth").touch()
    (tmp_path / "last_checkpoint").write_bytes(note)
    with pytest.raises(UserError, match=r"no checkpoint named in .*last.*\(model_0000099\.pth\)"):
        last_checkpoint(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000099.pth\n")
    assert last_checkpoint(tmp_path) == tmp_path / "model_0000099.pth"

"""Files of Caffe networks, against the official protocol buffer runtime."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frcnn_plugin.checkpoint import read_caffemodel, write_caffemodel
from frcnn_plugin.errors import UserError
from tests.damage import check_reader

from .caffe_proto import NetParameter, UnpackedNetParameter

WEIGHT = np.arange(24, dtype="f4").reshape(2, 3, 2, 2) - 5.5
BIAS = np.array([0.25, -1e-30], "f4")


def official(*, v1: bool = False, packed: bool = True, legacy: bool = False) -> bytes:
    """A network of a data layer and a convolution, written by the official runtime.

    Args:
        v1: with `layers` messages.
        packed: whether numbers are packed.
        legacy: with num, channels, height, width instead of a shape.
    """
    net = (NetParameter if packed else UnpackedNetParameter)(
        name="net", input=["data"], input_dim=[1, 3, 2, 2], force_backward=True
    )
    layers = net.layers if v1 else net.layer
    layers.add(name="data", bottom=["x"])
    layer = layers.add(name="conv1", bottom=["data"], type=4 if v1 else "Convolution")
    for array in (WEIGHT, BIAS):
        blob = layer.blobs.add(data=array.ravel().tolist(), diff=[1.0] * array.size)
        if legacy:
            shape = (1,) * (4 - array.ndim) + array.shape
            blob.num, blob.channels, blob.height, blob.width = shape
        else:
            blob.shape.dim.extend(array.shape)
    result: bytes = net.SerializeToString()
    return result


def write(folder: Path, data: bytes) -> Path:
    path = folder / "net.caffemodel"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("v1", [False, True], ids=["V2", "V1"])
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("legacy", [False, True], ids=["shape", "num"])
def test_reads_what_the_official_runtime_writes(
    tmp_path: Path, v1: bool, packed: bool, legacy: bool
) -> None:
    data = official(v1=v1, packed=packed, legacy=legacy)
    layers = read_caffemodel(write(tmp_path, data))
    assert list(layers) == ["conv1"]  # the data layer has no weights
    weight, bias = layers["conv1"]
    assert weight.shape == (2, 3, 2, 2)
    assert weight.dtype == np.float32
    assert bias.shape == ((1, 1, 1, 2) if legacy else (2,))
    assert weight.tolist() == WEIGHT.tolist()
    assert bias.ravel().tolist() == BIAS.tolist()


@pytest.mark.parametrize("net_type", [NetParameter, UnpackedNetParameter])
def test_reads_doubles(tmp_path: Path, net_type: Any) -> None:
    net = net_type()
    blob = net.layer.add(name="conv1").blobs.add(double_data=WEIGHT.ravel().tolist())
    blob.shape.dim.extend(WEIGHT.shape)
    (weight,) = read_caffemodel(write(tmp_path, net.SerializeToString()))["conv1"]
    assert weight.dtype == np.float32
    assert weight.tolist() == WEIGHT.tolist()


def test_packed_floats_in_pieces(tmp_path: Path) -> None:
    """A writer may split a packed field; the parts belong together."""
    blob = b"\x2a\x04" + BIAS[:1].tobytes() + b"\x2a\x04" + BIAS[1:].tobytes()
    layer = b"\x0a\x01a\x3a" + bytes([len(blob)]) + blob
    data = b"\xa2\x06" + bytes([len(layer)]) + layer
    (found,) = read_caffemodel(write(tmp_path, data))["a"]
    assert found.tolist() == BIAS.tolist()


def test_the_official_runtime_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.caffemodel"
    layers = {"conv1": [WEIGHT, BIAS], "fc6": [np.ones((2, 300), "f4")]}
    write_caffemodel(path, layers)
    net = NetParameter.FromString(path.read_bytes())
    assert [layer.name for layer in net.layer] == ["conv1", "fc6"]
    weight, bias = net.layer[0].blobs
    assert list(weight.shape.dim) == [2, 3, 2, 2]
    assert list(weight.data) == WEIGHT.ravel().tolist()
    assert list(bias.data) == BIAS.tolist()
    assert list(net.layer[1].blobs[0].shape.dim) == [2, 300]
    assert [p.name for p in tmp_path.iterdir()] == ["out.caffemodel"]


def test_writes_any_memory_layout_and_type(tmp_path: Path) -> None:
    path = tmp_path / "out.caffemodel"
    array = np.arange(6, dtype="f8").reshape(2, 3).T
    write_caffemodel(path, {"a": [array]})
    (found,) = read_caffemodel(path)["a"]
    assert found.tolist() == array.tolist()


def test_more_than_a_message_can_hold(tmp_path: Path) -> None:
    # A view that repeats one value: nothing of this size is allocated before the check.
    array = np.broadcast_to(np.zeros(1, "f4"), (2**29 + 1,))
    with pytest.raises(UserError, match="at most 2 GiB"):
        write_caffemodel(tmp_path / "big.caffemodel", {"a": [array]})
    assert not list(tmp_path.iterdir())


def test_memory_is_that_of_the_file(tmp_path: Path) -> None:
    """What Python holds: the file, then its values. The runtime holds the file once more."""
    path = tmp_path / "big.caffemodel"
    write_caffemodel(path, {"fc6": [np.ones((1000, 5000), "f4")]})
    tracemalloc.start()
    net = read_caffemodel(path)
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert net["fc6"][0].sum() == 5_000_000
    assert now < 20_100_000 and peak < 20_200_000  # of 20 MB


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<!DOCTYPE html><html>not found</html>", "a web page, not a caffemodel"),
        (b"\n<html><head>", "a web page"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"PK\x03\x04rest", "an archive"),
        (b"\x1f\x8b\x08rest", "an archive"),
        (b'name: "VGG_ILSVRC_16_layers"\nlayer {', "a prototxt: a network without weights"),
        (official()[:-7], "damaged, or no caffemodel .*: copy or download it again"),
        (official().replace(b"conv1", b"con\xff1"), "damaged, or no caffemodel .*can't decode"),
        (official() + b"\x7a\x80", "damaged, or no caffemodel .*: copy or download it again"),
        (b"\x0a\x03net", "damaged, or no caffemodel .no layer has weights"),
    ],
)
def test_other_files(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=rf"net\.caffemodel is {message}"):
        read_caffemodel(write(tmp_path, data))


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no caffemodel .*gone\.caffemodel"):
        read_caffemodel(tmp_path / "gone.caffemodel")
    with pytest.raises(UserError, match=r"net\.caffemodel is empty"):
        read_caffemodel(write(tmp_path, b""))


@pytest.mark.parametrize("size", [3, -2])
def test_shape_and_values_disagree(tmp_path: Path, size: int) -> None:
    net = NetParameter()
    net.layer.add(name="a").blobs.add(data=[1.0, 2.0]).shape.dim.extend([size])
    with pytest.raises(UserError, match=rf"a blob of shape \[{size}\] has 2 values"):
        read_caffemodel(write(tmp_path, net.SerializeToString()))


def test_two_layers_of_one_name(tmp_path: Path) -> None:
    net = NetParameter()
    for _ in range(2):
        net.layer.add(name="a").blobs.add(data=[1.0])
    with pytest.raises(UserError, match="two layers 'a' have weights"):
        read_caffemodel(write(tmp_path, net.SerializeToString()))


def test_format_before_2014(tmp_path: Path) -> None:
    net = NetParameter()
    net.layers.add().layer.name = "conv1"
    with pytest.raises(UserError, match="upgrade_net_proto_binary"):
        read_caffemodel(write(tmp_path, net.SerializeToString()))


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    kinds = [(v1, packed) for v1 in (False, True) for packed in (False, True)]
    contents = [official(v1=v1, packed=packed) for v1, packed in kinds]
    check_reader(lambda: read_caffemodel(path), path, contents)

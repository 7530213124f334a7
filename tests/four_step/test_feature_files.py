"""Files of features: to the bit, in the same layout, or known to be damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from frcnn_plugin.four_step.feature_files import (
    DamagedFile,
    is_dense,
    read_features,
    write_features,
)

FEATURES = {"conv5": torch.rand(1, 8, 3, 5)}
BYTES = 8 * 3 * 5 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x[1:],  # a part of something larger
        lambda x: x.contiguous(memory_format=torch.channels_last)[..., :1, :1].contiguous(),
        lambda x: x[:0],
    ],
    ids=["plain", "channels_last", "transposed", "part", "one_cell", "empty"],
)
def test_files_keep_bits_and_layout(
    tmp_path: Path, dtype: torch.dtype, make: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    features = {"a": make(torch.randn(2, 8, 3, 5).to(dtype)), "b": torch.tensor([float("nan"), -0])}
    assert all(map(is_dense, features.values()))
    size = write_features(tmp_path / "x", features)
    assert size == (tmp_path / "x").stat().st_size
    found = read_features(tmp_path / "x")
    assert list(found) == ["a", "b"]
    for name, tensor in found.items():
        before = features[name]
        assert (tensor.dtype, tensor.shape) == (before.dtype, before.shape)
        assert tensor.stride() == before.stride()
        for layout in (torch.contiguous_format, torch.channels_last):
            if tensor.dim() == 4:
                agree = [t.is_contiguous(memory_format=layout) for t in (tensor, before)]
                assert agree[0] == agree[1]
        bits = [t.contiguous().view(torch.uint8) for t in (tensor, before)]
        assert torch.equal(*bits)
        assert tensor.data_ptr() % 64 == 0  # as PyTorch's own; products may depend on it


def test_gaps_are_noticed() -> None:
    x = torch.zeros(2, 8, 3, 5)
    assert not is_dense(x[:, ::2])
    assert not is_dense(x[:, :1].expand(2, 8, 3, 5))


def cut(data: bytes) -> bytes:
    return data[:-1]


def flip(position: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        found = bytearray(data)
        found[position] ^= 1
        return bytes(found)

    return change


DAMAGES = [cut, lambda data: b"", lambda data: b"\n" * 9, flip(-1), flip(-BYTES), flip(3), flip(20)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "x"
    write_features(path, FEATURES)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedFile, match="x is damaged"):
        read_features(path)

"""Feature maps of one image as a file that is read in a millisecond and knows if it is damaged.

A line of text, then the numbers as they lie in memory: the sizes of 4.9 MB are those of VGG16 on
600x1000. The line has a checksum of itself and, per feature map, name, dtype, sizes, strides and
checksum. Nothing in it is executed. Strides are kept, as convolutions round otherwise in another
memory layout; so is the dtype, bfloat16 as well. Memory comes from PyTorch, aligned as for the
outputs of its operators, which the last bit of a product can depend on.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch

from ..atomic_files import replacing


class DamagedFile(ValueError):
    """The file is not what was written."""


def write_features(path: Path, features: Mapping[str, torch.Tensor]) -> int:
    """Write a file, whole or not at all.

    Args:
        path: the file; its folder must exist.
        features: dense tensors (see :func:`is_dense`) of any shape and dtype, on any device.

    Returns:
        its size in bytes.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    entries, parts = [], []
    for name, value in features.items():
        tensor = value.detach().cpu()  # keeps the strides
        data = _memory(tensor)
        dtype = str(tensor.dtype).removeprefix("torch.")
        entries.append([name, dtype, [*tensor.shape], [*tensor.stride()], zlib.crc32(data)])
        parts.append(data)
    line = json.dumps(entries).encode() + b"\n"
    line = b"%08x " % zlib.crc32(line) + line
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(line)
        for data in parts:
            file.write(data)
    return len(line) + sum(len(data) for data in parts)


def read_features(path: Path) -> dict[str, torch.Tensor]:
    """What :func:`write_features` wrote, on the CPU, to the bit and in the same layout.

    Raises:
        DamagedFile: the file is cut off, or a byte has changed.
        OSError: there is none, or it cannot be read.
    """
    with path.open("rb") as file:
        checksum, _, line = file.readline().partition(b" ")
        # Before anything in it is believed, such as sizes.
        if checksum != b"%08x" % zlib.crc32(line):
            raise DamagedFile(f"{path} is damaged")
        features = {}
        for name, dtype, sizes, strides, crc in json.loads(line):
            tensor = torch.empty_strided(sizes, strides, dtype=getattr(torch, dtype))
            data = _memory(tensor)
            if file.readinto(data) != len(data) or zlib.crc32(data) != crc:
                raise DamagedFile(f"{path} is damaged")
            features[name] = tensor
    return features


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether its elements fill a piece of memory without gaps, in whatever order."""
    # PyTorch keeps the strides of just these.
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a dense tensor in the order in which they lie in memory."""
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy().data

"""The 3x3 convolution of VGG16, ZF and the RPN, which chooses how it is computed."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F

from .packed import PackedLayer, has_amx, is_traced
from .winograd import TILE, Winograd

# Below these, the transforms cost more than the multiplications that they save.
_MIN_CHANNEL_PAIRS = 64 * 128
_MIN_TILES = 32
# The same limits in mixed precision, where direct convolutions run in bfloat16, twice as fast.
_MIN_CHANNEL_PAIRS_MIXED = 256 * 512
_MIN_TILES_MIXED = 256


@functools.cache
def _has_matrix_units() -> bool:
    """Tell whether bfloat16 is many times faster here, as on a CPU with AMX or an unknown one."""
    return torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512") or has_amx()


class Conv3x3(PackedLayer, nn.Conv2d):
    """A 3x3 convolution that keeps the size, by Winograd's algorithm where that is faster.

    That is on a CPU, in float32, with many channels, while :attr:`winograd` is True. In mixed
    precision, it takes very many channels and a large map, and the result is float32. A dilated one
    is always computed directly. In mixed precision without a gradient, with matrix units (AMX), the
    weight is kept in packed form.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size=3, padding=dilation, dilation=dilation
        )
        self.winograd = False

    def forward(self, x: torch.Tensor, relu: bool = False) -> torch.Tensor:
        """Convolve ``x`` (N, C, H, W) to (N, O, H, W); then ReLU, in the same pass if possible."""
        if self.winograd and self._is_faster(x):
            with torch.autocast("cpu", enabled=False):
                out = Winograd.apply(x.float(), self.weight, self.bias)
        elif self._packed.serves(self, x):
            return self._packed.convolve(self, x, relu)
        else:
            out = super().forward(x)
        return F.relu_(out) if relu else out

    def _is_faster(self, x: torch.Tensor) -> bool:
        if is_traced():  # the rest cannot be compiled
            return False
        mixed = torch.is_autocast_enabled("cpu")
        pairs = _MIN_CHANNEL_PAIRS_MIXED if mixed else _MIN_CHANNEL_PAIRS
        tiles = -(-x.shape[2] // TILE) * -(-x.shape[3] // TILE)
        return (
            x.device.type == "cpu"
            and self.dilation == (1, 1)
            and self.weight.dtype == torch.float32
            and (not _has_matrix_units() if mixed else x.dtype == torch.float32)
            and self.in_channels * self.out_channels >= pairs
            and tiles >= (_MIN_TILES_MIXED if mixed else _MIN_TILES)
        )

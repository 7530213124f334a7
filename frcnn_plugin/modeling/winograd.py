"""3x3 convolutions with a quarter of the multiplications, for CPUs.

A 6x6 patch of the input and the 3x3 kernel are both transformed to 36 numbers, multiplied one by
one (summed over channels: 36 matrix products over all patches), and turned back to 4x4 outputs:
Winograd's F(4x4, 3x3), 36 multiplications per 16 outputs and channel pair instead of 144. CPUs run
convolutions at the limit of their arithmetic, so this is the only way left to be faster in float32;
libraries for GPUs choose such algorithms by themselves.

The transforms interpolate at 0, 1, -1, 1/2, -2 and infinity, which round about three times less
than the common 0, 1, -1, 2, -2: results differ from the direct sum by about 3e-6 of the largest
one, which itself is off by 1e-6 to 2e-6.

Shape shorthand in this module:

    N, H, W: images, and the size of the feature map
    C, O: channels of the input and of the output
    T: tiles of 4x4 outputs

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2016); the choice of
points: Barabasz et al., Error Analysis and Improving the Accuracy of Winograd Convolution (2020).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_M = 4  # outputs per side of a tile
_N = 6  # inputs per side of a tile

# One-dimensional transforms: output = _A ((_G kernel) * (_B input)).
_A = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 1 / 2, -2, 0),
    (0, 1, 1, 1 / 4, 4, 0),
    (0, 1, -1, 1 / 8, -8, 1),
)
_G = (
    (1, 0, 0),
    (1 / 3, 1 / 3, 1 / 3),
    (-1 / 3, 1 / 3, -1 / 3),
    (-16 / 15, -8 / 15, -4 / 15),
    (1 / 15, -2 / 15, 4 / 15),
    (0, 0, 1),
)
_B = (
    (1, -3 / 2, -2, 3 / 2, 1, 0),
    (0, -1, 1 / 2, 5 / 2, 1, 0),
    (0, 1, -5 / 2, 1 / 2, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 1 / 2, -1, -1 / 2, 1, 0),
    (0, 1, -3 / 2, -2, 3 / 2, 1),
)

# Tiles that are worked on at a time; their transforms then stay in the cache.
_TILES = 256
# Below these, transforms cost more than the multiplications saved.
_MIN_CHANNEL_PAIRS = 128 * 128
_MIN_TILES = 32
# The same beside direct convolutions in bfloat16, which do not multiply four times faster either.
_MIN_CHANNEL_PAIRS_MIXED = 256 * 512


def _kron(matrix: tuple[tuple[float, ...], ...], like: torch.Tensor) -> torch.Tensor:
    """The two-dimensional transform, acting on flattened tiles; of the kind of ``like``."""
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one).to(like)


def _transform_weight(weight: torch.Tensor) -> torch.Tensor:
    """(O, C, 3, 3) to (36, C, O)."""
    num_out, num_in = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(9, num_in * num_out)
    return (_kron(_G, weight) @ taps).view(_N * _N, num_in, num_out)


def _strips(x: torch.Tensor) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """Cut a feature map into tiles and transform them, some rows of tiles at a time.

    Args:
        x: (N, C, H, W), best in channels-last memory.

    Yields:
        image, rows of the map that the tiles' outputs cover (maybe beyond H), and (36, T, C).
    """
    num_images, channels, height, width = x.shape
    down, across = -(-height // _M), -(-width // _M)
    transform = _kron(_B, x)
    nhwc = x.permute(0, 2, 3, 1)
    step = max(1, _TILES // across)
    for image in range(num_images):
        for first in range(0, down, step):
            outputs = slice(first * _M, min(down, first + step) * _M)
            # Padded strip by strip: a padded copy of the whole map would be another feature map.
            inputs = nhwc[image, max(0, outputs.start - 1) : outputs.stop + 1]
            above = 1 if outputs.start == 0 else 0
            below = outputs.stop - outputs.start + 2 - above - len(inputs)
            rows = F.pad(inputs, (0, 0, 1, across * _M - width + 1, above, below))
            tiles = rows.unfold(0, _N, _M).unfold(1, _N, _M)  # (down, across, C, 6, 6)
            flat = tiles.permute(3, 4, 0, 1, 2).reshape(_N * _N, -1)
            yield image, outputs, (transform @ flat).view(_N * _N, -1, channels)


def _convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(N, C, H, W) and (O, C, 3, 3) to (N, O, H, W), channels last; zero padding of 1."""
    num_images, _, height, width = x.shape
    channels, across = len(weight), -(-width // _M)
    transformed, inverse = _transform_weight(weight), _kron(_A, x)
    out = torch.empty(
        (num_images, channels, height, width),
        dtype=x.dtype,
        memory_format=torch.channels_last,
    )
    nhwc = out.permute(0, 2, 3, 1)
    for image, rows, tiles in _strips(x):
        products = torch.bmm(tiles, transformed).view(_N * _N, -1)
        y = (inverse @ products).view(_M, _M, -1, across, channels)
        y = y.permute(2, 0, 3, 1, 4).reshape(-1, across * _M, channels)
        target = nhwc[image, rows]  # shorter than y at the lower border
        y = y[: len(target), :width]
        if bias is None:
            target.copy_(y)
        else:
            torch.add(y, bias, out=target)
    return out


def _weight_gradient(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) and (N, O, H, W) to (O, C, 3, 3): the adjoint of the above in the weight."""
    width = grad.shape[3]
    num_in, num_out, across = x.shape[1], grad.shape[1], -(-width // _M)
    adjoint = _kron(_A, grad).t()
    nhwc = grad.permute(0, 2, 3, 1)
    total = x.new_zeros((_N * _N, num_in, num_out))
    for image, rows, tiles in _strips(x):
        given = nhwc[image, rows]
        below = rows.stop - rows.start - len(given)
        outputs = F.pad(given, (0, 0, 0, -width % _M, 0, below))
        outputs = outputs.view(-1, _M, across, _M, num_out)
        outputs = outputs.permute(1, 3, 0, 2, 4).reshape(_M * _M, -1)
        total.baddbmm_(tiles.transpose(1, 2), (adjoint @ outputs).view(_N * _N, -1, num_out))
    taps = _kron(_G, x).t() @ total.view(_N * _N, -1)
    return taps.view(3, 3, num_in, num_out).permute(3, 2, 0, 1)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        turned = weight.flip(2, 3).transpose(0, 1)
        return (
            _convolve(grad, turned, None) if of_x else None,
            _weight_gradient(x, grad) if of_weight else None,
            grad.sum((0, 2, 3)) if of_bias else None,
        )


@functools.cache
def _has_matrix_units() -> bool:
    """Whether bfloat16 is many times faster here: with Intel's AMX; unknown CPUs count as such."""
    known = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return not known or bool(amx())


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 and padding 1, by Winograd's algorithm where that is faster.

    That is on a CPU, in float32, with many channels, while :attr:`winograd` is True. In mixed
    precision, too, if the channels are very many: the result then is float32.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Build the layer; everything else is as in ``nn.Conv2d``."""
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)
        self.winograd = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve ``x`` (N, C, H, W) to (N, O, H, W)."""
        if not (self.winograd and self._is_faster(x)):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            out: torch.Tensor = _Winograd.apply(x.float(), self.weight, self.bias)
        return out

    def _is_faster(self, x: torch.Tensor) -> bool:
        mixed = torch.is_autocast_enabled("cpu")
        pairs = _MIN_CHANNEL_PAIRS_MIXED if mixed else _MIN_CHANNEL_PAIRS
        tiles = -(-x.shape[2] // _M) * -(-x.shape[3] // _M)
        return (
            x.device.type == "cpu"
            and self.weight.dtype == torch.float32
            and (not _has_matrix_units() if mixed else x.dtype == torch.float32)
            and self.in_channels * self.out_channels >= pairs
            and tiles >= _MIN_TILES
            and not torch.jit.is_tracing()
            and not torch.compiler.is_compiling()
        )

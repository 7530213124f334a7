"""3x3 convolutions with a quarter of the multiplications, for CPUs.

A 6x6 patch of the input and the 3x3 kernel are both transformed to 36 numbers, multiplied one by
one (summed over channels: 36 matrix products over all patches), and turned back to 4x4 outputs:
Winograd's F(4x4, 3x3), 36 multiplications per 16 outputs and channel pair instead of 144. CPUs run
convolutions at the limit of their arithmetic, so in float32 only fewer multiplications are faster;
libraries for GPUs choose such algorithms automatically.

The transforms interpolate at 0, 1, -1, 1/2, -2 and infinity, which round about three times less
than the common 0, 1, -1, 2, -2: results differ from the direct sum by about 3e-6 of the largest
one, which itself is off by 1e-6 to 2e-6.

Shape shorthand in this module: N images with maps of H x W cells, C channels of the input and O of
the output, T tiles of 4x4 outputs.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2016); the choice of
points: Barabasz et al., Error Analysis and Improving the Accuracy of Winograd Convolution (2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

TILE = 4  # outputs per side of a tile
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

_TILES = 128  # that share one reading of the weights, at least
# Tiles x channels that are worked on at a time, if that is more. At the end of each operator the
# threads wait for one another, for long if other programs keep the cores busy: fewer, larger steps.
_NUMBERS = 2**17


def _kron(matrix: tuple[tuple[float, ...], ...], like: torch.Tensor) -> torch.Tensor:
    """Make the two-dimensional transform of flattened tiles, with ``like``'s dtype and device."""
    one = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(one, one).to(like)


def _transform_weight(weight: torch.Tensor) -> torch.Tensor:
    """Map (O, C, 3, 3) to (36, C, O)."""
    num_out, num_in = weight.shape[:2]
    taps = weight.permute(2, 3, 1, 0).reshape(9, num_in * num_out)
    return (_kron(_G, weight) @ taps).view(_N * _N, num_in, num_out)


def _transform_turned_weight(weight: torch.Tensor) -> torch.Tensor:
    """Map (O, C, 3, 3) to (36, O, C), for the gradient's convolution with the kernel turned."""
    num_out, num_in = weight.shape[:2]
    taps = weight.permute(2, 3, 0, 1).reshape(9, num_out * num_in)
    return (_kron(_G, weight).flip(1) @ taps).view(_N * _N, num_out, num_in)


def _workspace(like: torch.Tensor, counts: Sequence[int]) -> list[torch.Tensor]:
    """Allocate flat buffers of so many numbers, pieces of one allocation.

    They begin at different offsets in their pages. Buffers that are read together and begin at the
    same offset make the transforms take up to twice the time, and the C library's choice is luck.
    """
    page, shift = 1024, 272
    block = like.new_empty(sum(counts) + (page + shift) * len(counts))
    buffers, end = [], 0
    for i, count in enumerate(counts):
        start = end + -(block.data_ptr() // block.element_size() + end) % page + i * shift % page
        end = start + count
        buffers.append(block[start:end])
    return buffers


def _planes(buffer: torch.Tensor, planes: int, count: int) -> torch.Tensor:
    """View the first numbers of a buffer as (planes, count); strips at the border are smaller."""
    return buffer[: planes * count].view(planes, count)


class _Strips:
    """A feature map, best in channels-last memory, cut into strips of some rows of tiles.

    All strips pass through the same few buffers, which then stay in the cache. The more output
    channels and so weights there are, the more tiles share one reading of them.

    Attributes:
        rows: of tiles, in a strip.
        tiles: in a strip.
        part: tiles that the weight's gradient is summed over at once; strips hold some such parts.
    """

    def __init__(self, x: torch.Tensor, num_out: int) -> None:
        num_images, self.channels, height, self.width = x.shape
        self.nhwc = x.permute(0, 2, 3, 1)
        down, self.across = -(-height // TILE), -(-self.width // TILE)
        rows = max(1, max(_TILES, num_out // 2) // self.across)
        self.part = rows * self.across
        times = max(1, _NUMBERS // (self.part * max(self.channels, num_out)))
        self.rows = min(down, rows * times)
        self.tiles = self.rows * self.across
        self.places = [
            (image, slice(first * TILE, min(down, first + self.rows) * TILE))
            for image in range(num_images)
            for first in range(0, down, self.rows)
        ]

    def transform(
        self, patches: torch.Tensor, transformed: torch.Tensor
    ) -> Iterator[tuple[int, slice, torch.Tensor]]:
        """Cut out and transform, strip by strip.

        The arguments are buffers of 36 numbers per tile and channel.

        Yields:
            image, rows of the map that the tiles' outputs cover (maybe beyond H), and (36, T, C),
            valid until the next strip.
        """
        matrix = _kron(_B, self.nhwc)
        # Padded strip by strip: a padded copy of the map would be as large as the map. The columns
        # beyond the map stay zero.
        size = (self.rows * TILE + 2, self.across * TILE + 2, self.channels)
        padded = self.nhwc.new_zeros(size)
        for image, outputs in self.places:
            inputs = self.nhwc[image, max(0, outputs.start - 1) : outputs.stop + 1]
            strip = padded[: outputs.stop - outputs.start + 2]
            above = 1 if outputs.start == 0 else 0
            strip[:above] = 0
            strip[above : above + len(inputs), 1 : self.width + 1] = inputs
            strip[above + len(inputs) :] = 0
            tiles = strip.unfold(0, _N, TILE).unfold(1, _N, TILE)  # (down, across, C, 6, 6)
            tiles = tiles.permute(3, 4, 0, 1, 2)
            flat = _planes(patches, _N * _N, tiles[0, 0].numel())
            flat.view(tiles.shape).copy_(tiles)
            result = torch.mm(matrix, flat, out=_planes(transformed, *flat.shape))
            yield image, outputs, result.view(_N * _N, -1, self.channels)


def _convolve(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Map (N, C, H, W) and transformed (36, C, O) to (N, O, H, W), channels last, padding 1."""
    num_images, num_in, height, width = x.shape
    num_out = weight.shape[2]
    inverse = _kron(_A, x)
    out = torch.empty(
        (num_images, num_out, height, width), dtype=x.dtype, memory_format=torch.channels_last
    )
    nhwc = out.permute(0, 2, 3, 1)
    strips = _Strips(x, num_out)
    size = 36 * strips.tiles * max(num_in, num_out)
    one, other = _workspace(x, (size, size))  # each step reads one and writes to the other
    for image, rows, tiles in strips.transform(one, other):
        count = tiles.shape[1] * num_out
        product = _planes(one, _N * _N, count)
        torch.bmm(tiles, weight, out=product.view(_N * _N, -1, num_out))
        y = torch.mm(inverse, product, out=_planes(other, TILE * TILE, count))
        y = y.view(TILE, TILE, -1, strips.across, num_out).permute(2, 0, 3, 1, 4)
        target = nhwc[image, rows]  # smaller than the strip at the border, ...
        fits = target.numel() == y.numel()
        strip = (target if fits else one[: y.numel()]).view(y.shape)
        if bias is None:
            strip.copy_(y)
        else:
            torch.add(y, bias, out=strip)
        if not fits:  # ... and only then filled in a second step
            target.copy_(strip.view(-1, strips.across * TILE, num_out)[: len(target), :width])
    return out


def _weight_gradient(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Map (N, C, H, W) and (N, O, H, W) to (O, C, 3, 3): the adjoint of the above in the weight."""
    num_in, num_out, width = x.shape[1], grad.shape[1], grad.shape[3]
    adjoint = _kron(_A, grad).t().contiguous()
    nhwc = grad.permute(0, 2, 3, 1)
    strips = _Strips(x, num_out)
    into, given = strips.tiles * num_in, strips.tiles * num_out
    patches, transformed, spreads = _workspace(
        x, (max(36 * into, 16 * given), 36 * into, 36 * given)
    )
    padded = grad.new_zeros((strips.rows * TILE, strips.across * TILE, num_out))
    total, beta = x.new_empty((_N * _N, num_in, num_out)), 0
    for image, rows, tiles in strips.transform(patches, transformed):
        strip, inside = padded[: rows.stop - rows.start], nhwc[image, rows]
        strip[: len(inside), :width] = inside
        strip[len(inside) :] = 0
        outputs = strip.view(-1, TILE, strips.across, TILE, num_out).permute(1, 3, 0, 2, 4)
        count = tiles.shape[1] * num_out
        flat = _planes(patches, TILE * TILE, count)
        flat.view(outputs.shape).copy_(outputs)
        spread = torch.mm(adjoint, flat, out=_planes(spreads, _N * _N, count))
        spread = spread.view(_N * _N, -1, num_out)
        for a, b in zip(tiles.split(strips.part, 1), spread.split(strips.part, 1), strict=True):
            torch.baddbmm(total, a.transpose(1, 2), b, beta=beta, out=total)
            beta = 1
    taps = _kron(_G, x).t() @ total.view(_N * _N, -1)
    return taps.view(3, 3, num_in, num_out).permute(3, 2, 0, 1)


class Winograd(torch.autograd.Function):
    """``conv2d(x, weight, bias, padding=1)`` of any float dtype, with gradients, on CPUs."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Map (N, C, H, W), (O, C, 3, 3) and (O,) to (N, O, H, W), channels last."""
        ctx.save_for_backward(x, weight)
        return _convolve(x, _transform_weight(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients that are needed, likewise."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _convolve(grad, _transform_turned_weight(weight)) if of_x else None,
            _weight_gradient(x, grad) if of_weight else None,
            grad.sum((0, 2, 3)) if of_bias else None,
        )

"""Winograd convolutions against the direct ones; references are torch's convolution in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from frcnn_plugin.layers import winograd
from frcnn_plugin.layers.winograd import TILE, Winograd, _Strips, _workspace

# The last one takes several strips, the last of them smaller; of two parts each with 1300 numbers.
SIZES = [(1, 4, 4), (1, 1, 1), (2, 9, 14), (1, 38, 63), (2, 3, 17), (1, 29, 161)]


def operands(size: tuple[int, int, int], channels: int = 3, outputs: int = 5, **kwargs):
    generator = torch.Generator().manual_seed(sum(size))
    images, height, width = size
    shapes = ((images, channels, height, width), (outputs, channels, 3, 3), (outputs,))
    return [torch.randn(s, generator=generator, dtype=torch.float64, **kwargs) for s in shapes]


@pytest.fixture(params=(0, 1300), autouse=True)
def numbers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_NUMBERS", request.param)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_sum_is_the_convolution(size: tuple[int, int, int]) -> None:
    x, weight, bias = operands(size)
    expected = F.conv2d(x, weight, bias, padding=1)
    assert torch.allclose(Winograd.apply(x, weight, bias), expected, atol=1e-12)
    last = x.contiguous(memory_format=torch.channels_last)
    out = Winograd.apply(last, weight, bias)
    assert torch.allclose(out, expected, atol=1e-12)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_are_those_of_the_convolution(size: tuple[int, int, int]) -> None:
    inputs = operands(size, requires_grad=True)
    out = F.conv2d(*inputs, padding=1)
    grad = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(out, inputs, grad)
    actual = torch.autograd.grad(Winograd.apply(*inputs), inputs, grad)
    for a, e in zip(actual, expected, strict=True):
        assert torch.allclose(a, e, atol=1e-10)


def test_only_the_gradients_asked_for() -> None:
    x, weight, bias = operands((1, 9, 9))
    Winograd.apply(x, weight.requires_grad_(), bias).sum().backward()
    assert x.grad is None and bias.grad is None and weight.grad is not None


def test_rounding_is_that_of_float32() -> None:
    """Forward and gradients off by less than 1e-5 of the largest number, here 256 channels."""
    x, weight, bias = operands((1, 24, 40), 256, 128, requires_grad=True)
    single = [t.detach().float().requires_grad_() for t in (x, weight, bias)]
    expected, actual = F.conv2d(x, weight, bias, padding=1), Winograd.apply(*single)
    pairs = [(actual, expected)]
    pairs += zip(
        torch.autograd.grad(actual, single, actual.detach().sign()),
        torch.autograd.grad(expected, [x, weight, bias], actual.detach().sign().double()),
        strict=True,
    )
    for a, e in pairs:
        assert (a - e).abs().max() <= 1e-5 * e.abs().max()


def test_larger_strips_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for numbers in (0, 2**17):
        monkeypatch.setattr(winograd, "_NUMBERS", numbers)
        single = [t.float().requires_grad_() for t in operands((1, 40, 161), 64, 128)]
        out = Winograd.apply(*single)
        results.append([out, *torch.autograd.grad(out, single, out.detach().sign())])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)  # each number is summed in the same order


def test_strips_cover_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "_NUMBERS", 0)
    strips = _Strips(torch.empty(2, 3, 29, 161), num_out=5)
    assert strips.across == 41 and strips.rows == 3  # 3 x 41 tiles are the last below 128
    rows = [(image, rows.start, rows.stop) for image, rows in strips.places]
    size = 3 * TILE
    one = [(0, size), (size, 2 * size), (2 * size, 32)]  # 29 rows need 8 rows of tiles
    assert rows == [(image, *ends) for image in (0, 1) for ends in one]
    assert _Strips(torch.empty(1, 512, 75, 125), num_out=512).rows == 8  # 256 of 32 across


def test_few_large_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of 600x1000 in VGG16; threads wait for one another some times per strip."""
    monkeypatch.undo()
    maps = ((64, 128, 300, 500), (128, 128, 300, 500), (256, 256, 150, 250), (512, 512, 75, 125))
    found = [_Strips(torch.empty(1, c, h, w), o) for c, o, h, w in maps]
    assert [len(strips.places) for strips in found] == [10, 10, 5, 3]  # of at most 75, 75, 38, 19
    for strips, (c, o, _, _) in zip(found, maps, strict=True):
        assert strips.tiles * max(c, o) <= 2**17  # no more memory than for the last
        assert strips.tiles % strips.part == 0


def test_buffers_lie_apart_in_their_pages() -> None:
    buffers = _workspace(torch.empty(0), (1024, 5000, 1, 70_000, 1024))
    assert [len(b) for b in buffers] == [1024, 5000, 1, 70_000, 1024]
    for i, buffer in enumerate(buffers):
        buffer.fill_(i)
    assert all((b == i).all() for i, b in enumerate(buffers))  # none shares memory
    assert len({b.data_ptr() % 4096 for b in buffers}) == len(buffers)

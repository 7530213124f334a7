"""Winograd convolutions against the direct ones; references are torch's convolution in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frcnn_plugin.modeling import VGG16, winograd
from frcnn_plugin.modeling.winograd import Conv3x3, _Winograd

SIZES = [(1, 4, 4), (1, 1, 1), (2, 9, 14), (1, 38, 63), (2, 3, 17)]


def operands(size: tuple[int, int, int], channels: int = 3, outputs: int = 5, **kwargs):
    generator = torch.Generator().manual_seed(sum(size))
    images, height, width = size
    shapes = ((images, channels, height, width), (outputs, channels, 3, 3), (outputs,))
    return [torch.randn(s, generator=generator, dtype=torch.float64, **kwargs) for s in shapes]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_sum_is_the_convolution(size: tuple[int, int, int]) -> None:
    x, weight, bias = operands(size)
    expected = F.conv2d(x, weight, bias, padding=1)
    assert torch.allclose(_Winograd.apply(x, weight, bias), expected, atol=1e-12)
    last = x.contiguous(memory_format=torch.channels_last)
    out = _Winograd.apply(last, weight, bias)
    assert torch.allclose(out, expected, atol=1e-12)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_are_those_of_the_convolution(size: tuple[int, int, int]) -> None:
    inputs = operands(size, requires_grad=True)
    out = F.conv2d(*inputs, padding=1)
    grad = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(out, inputs, grad)
    actual = torch.autograd.grad(_Winograd.apply(*inputs), inputs, grad)
    for a, e in zip(actual, expected, strict=True):
        assert torch.allclose(a, e, atol=1e-10)


def test_only_the_gradients_asked_for() -> None:
    x, weight, bias = operands((1, 9, 9))
    _Winograd.apply(x, weight.requires_grad_(), bias).sum().backward()
    assert x.grad is None and bias.grad is None and weight.grad is not None


def test_rounding_is_that_of_float32() -> None:
    """Forward and gradients off by less than 1e-5 of the largest number, here 256 channels."""
    x, weight, bias = operands((1, 24, 40), 256, 128, requires_grad=True)
    single = [t.detach().float().requires_grad_() for t in (x, weight, bias)]
    expected, actual = F.conv2d(x, weight, bias, padding=1), _Winograd.apply(*single)
    pairs = [(actual, expected)]
    pairs += zip(
        torch.autograd.grad(actual, single, actual.detach().sign()),
        torch.autograd.grad(expected, [x, weight, bias], actual.detach().sign().double()),
        strict=True,
    )
    for a, e in pairs:
        assert (a - e).abs().max() <= 1e-5 * e.abs().max()


def used(layer: Conv3x3, x: torch.Tensor) -> bool:
    calls: list[int] = []
    stock = _Winograd.apply
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Winograd, "apply", lambda *args: calls.append(1) or stock(*args))
        layer(x)
    return bool(calls)


def test_where_it_is_used() -> None:
    layer, x = Conv3x3(128, 128), torch.rand(1, 128, 24, 24)
    assert not used(layer, x)  # off
    layer.winograd = True
    assert used(layer, x)
    assert not used(layer, x[..., :8, :8])  # too few tiles
    with torch.autocast("cpu", torch.bfloat16):
        assert not used(layer, x)  # a layer so narrow is faster in bfloat16
    assert not used(layer.double(), x.double())
    small = Conv3x3(64, 64)
    small.winograd = True
    assert not used(small, torch.rand(1, 64, 24, 24))


def test_wide_layers_in_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, nearer to the exact sum than a convolution in bfloat16; gradients arrive."""
    layer = Conv3x3(256, 512)
    layer.winograd = True
    x = torch.randn(1, 256, 24, 24).bfloat16().requires_grad_()
    monkeypatch.setattr(winograd, "_has_matrix_units", lambda: False)
    with torch.autocast("cpu", torch.bfloat16):
        assert used(layer, x)
        out = layer(x)
        layer.winograd = False
        direct = layer(x)
        layer.winograd = True
        monkeypatch.setattr(winograd, "_has_matrix_units", lambda: True)
        assert not used(layer, x)
    assert (out.dtype, direct.dtype) == (torch.float32, torch.bfloat16)
    exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    assert (out - exact).abs().max() <= 1e-5 * exact.abs().max()
    assert (direct - exact).abs().max() > 1e-3 * exact.abs().max()
    out.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("capability", "amx", "expected"),
    [("AVX512", False, False), ("AVX2", False, False), ("AVX512", True, True), ("SVE256", 0, True)],
)
def test_which_cpus_multiply_bfloat16_fast(monkeypatch, capability, amx, expected) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert winograd._has_matrix_units.__wrapped__() == expected


@pytest.mark.parametrize("size", [(97, 130), (160, 96)])
def test_vgg16_with_and_without(size: tuple[int, int]) -> None:
    """All 13 layers and their ReLUs: within 1e-5 of the largest feature."""
    torch.manual_seed(0)
    net = VGG16().eval()
    x = torch.rand(1, 3, *size) * 255 - 110
    with torch.no_grad():
        plain = net(x)["conv5"]
        for module in net.modules():
            if isinstance(module, Conv3x3):
                module.winograd = True
        fast = net(x)["conv5"]
    assert not torch.equal(fast, plain)  # it did something
    assert (fast - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_it_is_a_convolution_elsewhere() -> None:
    """Names, shapes and type are those that weights and tools look for."""
    layer = Conv3x3(3, 5)
    assert isinstance(layer, nn.Conv2d)
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {
        "weight": (5, 3, 3, 3),
        "bias": (5,),
    }

"""Which convolutions are computed by Winograd's algorithm; references are torch's convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frcnn_plugin.layers import conv3x3
from frcnn_plugin.layers.conv3x3 import Conv3x3, Winograd
from frcnn_plugin.modeling import VGG16


def used(layer: Conv3x3, x: torch.Tensor) -> bool:
    calls: list[int] = []
    stock = Winograd.apply
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Winograd, "apply", lambda *args: calls.append(1) or stock(*args))
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
    for outputs in (64, 128):
        layer = Conv3x3(64, outputs)
        layer.winograd = True
        assert used(layer, torch.rand(1, 64, 24, 24)) == (outputs == 128)


def test_wide_layers_in_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, nearer to the exact sum than a convolution in bfloat16; gradients arrive."""
    layer = Conv3x3(256, 512)
    layer.winograd = True
    x = torch.randn(1, 256, 64, 61).bfloat16().requires_grad_()
    monkeypatch.setattr(conv3x3, "_has_matrix_units", lambda: False)
    with torch.autocast("cpu", torch.bfloat16):
        assert used(layer, x)
        assert not used(layer, x[..., :60, :60])  # 225 tiles, too few beside bfloat16
        out = layer(x)
        layer.winograd = False
        direct = layer(x)
        layer.winograd = True
        monkeypatch.setattr(conv3x3, "_has_matrix_units", lambda: True)
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
    assert conv3x3._has_matrix_units.__wrapped__() == expected


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
    shapes = {k: tuple(v.shape) for k, v in layer.state_dict().items()}
    assert shapes == {"weight": (5, 3, 3, 3), "bias": (5,)}


def test_compiled_in_one_piece() -> None:
    """In mixed precision too, where the processor is asked for its units."""
    layer = Conv3x3(4, 4)
    layer.winograd = True
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.rand(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(compiled(x), layer(x))

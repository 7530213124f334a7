"""LargeLinear against torch's own layer, to the last bit."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from frcnn_plugin.layers import large_linear
from frcnn_plugin.layers.large_linear import LargeLinear, empty_in_huge_pages


@pytest.fixture(autouse=True)
def _all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_linear, "_MIN_BYTES", 0)


def pair(inputs: int = 24, outputs: int = 16) -> tuple[nn.Linear, LargeLinear]:
    torch.manual_seed(0)
    stock, large = nn.Linear(inputs, outputs), LargeLinear(inputs, outputs)
    large.load_state_dict(stock.state_dict())
    return stock, large


def autocast(mixed: bool) -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext()


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("mixed", [False, True])
def test_outputs_and_gradients(rows: int, mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        large_linear,
        "empty_in_huge_pages",
        lambda like: asked.append(1) or empty_in_huge_pages(like),
    )
    results = []
    for layer in pair():
        x = torch.randn(rows, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with autocast(mixed):
            out = layer(x)
        for _ in range(2):  # gradients add up
            out.sin().sum().backward(retain_graph=True)
        results.append((out, x.grad, layer.weight.grad, layer.bias.grad))
    assert len(asked) == 2
    for stock, large in zip(*results, strict=True):
        assert stock.dtype == large.dtype and torch.equal(stock, large)


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_only_the_gradients_asked_for(frozen: str) -> None:
    gradients = []
    for layer in pair():
        tensors = {"x": torch.ones(3, 24), "weight": layer.weight, "bias": layer.bias}
        for name, tensor in tensors.items():
            tensor.requires_grad_(name != frozen)
        layer(tensors["x"]).square().sum().backward()
        assert tensors[frozen].grad is None
        gradients.append([t.grad for n, t in tensors.items() if n != frozen])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("outputs", [16, 1100])
@pytest.mark.parametrize("mixed", [False, True])
def test_without_a_gradient(outputs: int, mixed: bool) -> None:
    """1100 outputs are computed in two parts."""
    stock, large = pair(outputs=outputs)
    x = torch.randn(5, 24)
    with torch.no_grad(), autocast(mixed):
        a, b = stock(x), large(x)
    assert a.dtype == b.dtype and a.shape == b.shape
    assert torch.allclose(a, b, atol=1e-6)


def test_small_ones_and_other_shapes_are_the_stock_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(large_linear._Linear, "apply", forbidden)
    stock, large = pair()
    x = torch.randn(2, 3, 24)
    assert torch.equal(stock(x), large(x))
    monkeypatch.setattr(large_linear, "_MIN_BYTES", 2**20)
    assert torch.equal(stock(x[0]), large(x[0]))


@pytest.mark.parametrize("grad", [False, True])
def test_without_a_bias(grad: bool) -> None:
    layer = LargeLinear(24, 1100, bias=False)
    x = torch.randn(5, 24)
    with torch.set_grad_enabled(grad):
        assert torch.allclose(layer(x), x @ layer.weight.t(), atol=1e-6)


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").is_file(),
    reason="about huge pages of Linux",
)
def test_the_system_is_asked_for_huge_pages() -> None:
    """The flag "hg" of the mapping that holds the middle of the tensor."""
    tensor = empty_in_huge_pages(torch.empty(80 * 2**20 // 4))
    middle = tensor.data_ptr() + 40 * 2**20
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and ":" not in first:
            low, high = (int(word, 16) for word in first.split("-"))
            inside = low <= middle < high
        if inside and line.startswith("VmFlags:"):
            assert "hg" in line.split()
            return
    raise AssertionError("no mapping")


def test_elsewhere_it_is_plain_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(large_linear.ctypes, "CDLL", None)  # would not be callable
    assert empty_in_huge_pages(torch.empty(3, 5)).shape == (3, 5)

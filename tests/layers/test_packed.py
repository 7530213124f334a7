"""Packed weights: torch's own results under autocast, and nothing stale."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from frcnn_plugin.layers import Conv3x3, LargeLinear, packed
from frcnn_plugin.layers.packed import PackedWeight
from frcnn_plugin.modeling import VGG16

needs_amx = pytest.mark.skipif(not packed._works(), reason="needs a CPU with AMX")


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AMX, plain operators stand in for oneDNN's: what is kept, and when, is the same."""
    if packed._works():
        return
    monkeypatch.setattr(packed, "_works", lambda: True)
    monkeypatch.setattr(packed, "_OPERATORS", _Plain)


class _Plain:
    """The four operators with weights that are copied, not reordered."""

    @staticmethod
    def _reorder_convolution_weight(weight: torch.Tensor, *_: Any) -> torch.Tensor:
        return weight.clone()

    @staticmethod
    def _reorder_linear_weight(weight: torch.Tensor, *_: Any) -> torch.Tensor:
        return weight.clone()

    @staticmethod
    def _convolution_pointwise(x, weight, bias, padding, stride, dilation, groups, after, *_: Any):
        out = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        return F.relu(out) if after == "relu" else out

    @staticmethod
    def _linear_pointwise(x, weight, bias, *_: Any):
        return F.linear(x, weight, bias)


def conv() -> tuple[Conv3x3, torch.Tensor]:
    torch.manual_seed(0)
    return Conv3x3(16, 24).eval(), torch.randn(2, 16, 9, 7)


def linear() -> tuple[LargeLinear, torch.Tensor]:
    torch.manual_seed(0)
    return LargeLinear(40, 700).eval(), torch.randn(5, 40)  # 700: two parts


both = pytest.mark.parametrize("make", [conv, linear])


def infer(layer: nn.Module, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return layer(x, **kwargs)


def expected(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What torch's own layer gives."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        if isinstance(layer, LargeLinear):
            return F.linear(x, layer.weight, layer.bias)
        padding, dilation = layer.padding, layer.dilation
        return F.conv2d(x, layer.weight, layer.bias, padding=padding, dilation=dilation)


def is_close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    assert found.dtype == wanted.dtype == torch.bfloat16 and found.shape == wanted.shape
    # The last of 8 bits, where the order of a sum decides.
    return bool((found.float() - wanted.float()).abs().max() <= wanted.float().abs().max() / 128)


@both
def test_results_of_torch(make: Callable[[], Any]) -> None:
    layer, x = make()
    for size in (x, x[:1], torch.cat([x, x]), x.contiguous(memory_format=torch.preserve_format)):
        assert is_close(infer(layer, size), expected(layer, size))
    assert layer._packed._kept is not None  # not torch's own result
    assert infer(layer, x[:0]).shape == expected(layer, x[:0]).shape


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (6, 5), (33, 14)])
def test_convolutions_of_any_size_with_relu(dilation: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = Conv3x3(16, 24, dilation).eval()
    for shape in ((1, 16, *size), (2, 16, *size)):
        x = torch.randn(shape)
        assert is_close(infer(layer, x, relu=True), F.relu(expected(layer, x)))
        assert is_close(infer(layer, x), expected(layer, x))


@both
def test_one_packing_for_many_calls(make: Callable[[], Any]) -> None:
    layer, x = make()
    infer(layer, x)
    kept = layer._packed._kept
    infer(layer, x * 2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert layer._packed._kept is kept


def in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.mul_(3)


def by_data(weight: nn.Parameter) -> None:
    weight.data.mul_(0.5).add_(1)


def new_memory(weight: nn.Parameter) -> None:
    weight.data = torch.randn_like(weight)


@both
@pytest.mark.parametrize("change", [in_place, by_data, new_memory])
def test_a_changed_weight_is_packed_anew(make: Callable[[], Any], change: Callable) -> None:
    """Also by trainers that go round torch's count of changes, as teachers are averaged."""
    layer, x = make()
    before = infer(layer, x)
    change(layer.weight)
    assert not is_close(infer(layer, x), before)
    assert is_close(infer(layer, x), expected(layer, x))


@both
def test_loading_replacing_and_bias(make: Callable[[], Any]) -> None:
    layer, x = make()
    infer(layer, x)
    layer.load_state_dict({k: -2 * v for k, v in layer.state_dict().items()})
    assert is_close(infer(layer, x), expected(layer, x))
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))
    assert is_close(infer(layer, x), expected(layer, x))
    layer.bias.data.add_(5)
    assert is_close(infer(layer, x), expected(layer, x))


@both
def test_only_without_gradient_in_bfloat16(make: Callable[[], Any]) -> None:
    layer, x = make()
    with torch.no_grad():
        layer(x)
        with torch.autocast("cpu", torch.float16):
            layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()  # trains
    assert layer._packed._kept is None and layer.weight.grad is not None
    infer(layer, x)
    assert layer._packed._kept is not None
    layer.train()  # frees the memory
    assert layer._packed._kept is None
    assert is_close(infer(layer, x), expected(layer, x))


@both
def test_copies_and_files_leave_it_out(make: Callable[[], Any]) -> None:
    layer, x = make()
    out = infer(layer, x)
    assert set(layer.state_dict()) == {"weight", "bias"}
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other._packed._kept is None
        assert is_close(infer(other, x), out)
        in_place(other.weight)
        assert is_close(infer(layer, x), out)


def test_backbone_joins_relu_unless_someone_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = VGG16(channels=(8, 8, 16, 16, 16)).eval()
    x = torch.randn(1, 3, 45, 64)
    asked: list[bool] = []
    convolve = PackedWeight.convolve

    def watch(self: PackedWeight, layer: nn.Conv2d, x: torch.Tensor, relu: bool = False) -> Any:
        asked.append(relu)
        return convolve(self, layer, x, relu)

    monkeypatch.setattr(PackedWeight, "convolve", watch)
    joined = infer(net, x)["conv5"]
    assert len(asked) == 13 and all(asked)
    asked.clear()
    seen: list[torch.Tensor] = []
    net.conv3.conv3_2.register_forward_hook(lambda module, inputs, out: seen.append(out.clone()))
    net.conv4.relu4_1.register_forward_pre_hook(lambda module, inputs: None)
    apart = infer(net, x)["conv5"]
    assert asked.count(False) == 2 and torch.equal(joined, apart)
    assert (seen[0] < 0).any()  # before ReLU


def test_frozen_blocks_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """What trains is not packed, and its gradient is the one without packing."""
    torch.manual_seed(0)
    net = VGG16(channels=(8, 8, 16, 16, 16), freeze_at=2).train()
    x = torch.randn(1, 3, 45, 64)
    served: list[nn.Module] = []
    serves = PackedWeight.serves

    def watch(self: PackedWeight, layer: Any, x: torch.Tensor) -> bool:
        served.extend([layer] * serves(self, layer, x))
        return layer in served

    def gradients(x: torch.Tensor) -> dict[str, torch.Tensor | None]:
        served.clear()
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            net(x)["conv5"].float().sum().backward()
        return {name: p.grad for name, p in net.named_parameters()}

    with monkeypatch.context() as patch:
        patch.setattr(PackedWeight, "serves", lambda *_: False)
        plain = gradients(x)
    monkeypatch.setattr(PackedWeight, "serves", watch)
    found = gradients(x)
    assert served == [*net.conv1[::2], *net.conv2[1::2]]
    for name, grad in found.items():
        if name.startswith(("conv1", "conv2")):
            assert grad is None
        else:
            largest = plain[name].abs().max()
            assert (grad - plain[name]).abs().max() <= 0.05 * largest and largest > 0
    x.requires_grad_()  # as for an adversarial image: the gradient passes frozen blocks
    gradients(x)
    assert not served and x.grad is not None and x.grad.abs().sum() > 0


@needs_amx
def test_without_the_operators_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other versions of torch may have other operators, or wrong ones."""

    class Wrong(_Plain):
        @staticmethod
        def _linear_pointwise(x, weight, bias, *_: Any):
            return F.linear(x, weight, bias) * 2

    class Raises(_Plain):
        @staticmethod
        def _convolution_pointwise(*_: Any):
            raise RuntimeError("no primitive")

    assert packed._works.__wrapped__()
    for operators in (Wrong, Raises, object):
        monkeypatch.setattr(packed, "_OPERATORS", operators)
        assert not packed._works.__wrapped__()


def test_without_amx_or_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((packed, "has_amx"), (torch.backends.mkldnn, "is_available")):
        with monkeypatch.context() as patch:
            patch.setattr(packed, "has_amx", lambda: True)
            patch.setattr(owner, name, lambda: False)
            assert not _works()


_works = packed._works.__wrapped__

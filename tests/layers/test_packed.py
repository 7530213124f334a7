"""Packed weights: torch's own results under autocast, and nothing stale."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.flop_counter import FlopCounterMode

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


def rows_and_columns(weight: torch.Tensor) -> list[tuple[slice | int, ...]]:
    """Every filter and every input channel, the later ones as well."""
    rows = [(i,) for i in range(0, len(weight), 5)] + [(len(weight) - 1,)]
    return rows + [(slice(None), i) for i in (*range(weight.shape[1]), slice(1, None))]


@both
def test_a_changed_part_of_a_weight_is_seen(make: Callable[[], Any]) -> None:
    """As by pruning through `.data` or NumPy."""
    layer, x = make()
    weight = layer.weight.data.clone()
    for part in rows_and_columns(weight):
        layer.weight.data.copy_(weight)
        infer(layer, x)
        kept = layer._packed._kept
        layer.weight.detach().numpy()[part] *= 3
        infer(layer, x)
        assert layer._packed._kept is not kept, part


@both
def test_a_weight_that_is_computed_at_each_call(make: Callable[[], Any]) -> None:
    """It may lie where the last one lay."""
    layer, x = make()
    weight_norm(layer)
    for _ in range(8):
        layer.parametrizations.weight.original0.data[3].mul_(2)
        assert torch.equal(infer(layer, x), expected(layer, x))
    assert layer._packed._kept is None


@both
def test_operators_that_are_looked_at(make: Callable[[], Any]) -> None:
    layer, x = make()
    infer(layer, x)
    with FlopCounterMode(display=False) as counter:
        infer(layer, x)
    assert counter.get_total_flops() > 0
    each = torch.vmap(lambda one: layer(one[None])[0])
    assert is_close(infer(each, x).bfloat16(), expected(layer, x))  # no autocast in vmap
    if isinstance(layer, Conv3x3):
        assert is_close(infer(layer, x[0]), expected(layer, x[0]))  # unbatched


@both
def test_many_threads(make: Callable[[], Any]) -> None:
    """One changes the weight while others infer."""
    layer, x = make()

    def work(number: int) -> None:
        for _ in range(60):
            infer(layer, x)
            if number == 0:
                layer._packed.forget()
                in_place(layer.weight)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))  # raises what they raise
    finally:
        sys.setswitchinterval(interval)


@both
@pytest.mark.parametrize("move", ["half", "eval", "train", "double"])
def test_memory_is_freed(make: Callable[[], Any], move: str) -> None:
    layer, x = make()
    infer(layer, x)
    assert layer._packed._kept is not None
    getattr(nn.Sequential(layer), move)()
    assert layer._packed._kept is None


@both
def test_what_trains_is_not_packed_by_a_checkpointed_forward(make: Callable[[], Any]) -> None:
    layer, x = make()
    layer.train()
    infer(layer, x)
    assert layer._packed._kept is None
    layer.requires_grad_(False)
    infer(layer, x)
    assert layer._packed._kept is not None


@both
def test_nan_is_packed_once(make: Callable[[], Any]) -> None:
    layer, x = make()
    layer.weight.data.fill_(float("nan"))
    infer(layer, x)
    kept = layer._packed._kept
    infer(layer, x)
    assert layer._packed._kept is kept


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


@pytest.mark.parametrize("name", ["conv1_2", "relu1_1", "pool1", "conv2_1", "relu2_2"])
def test_a_hook_in_a_frozen_block_may_train(name: str) -> None:
    """An adapter, or Grad-CAM, in float32 too."""
    net = VGG16(channels=(8, 8, 16, 16, 16), freeze_at=2).train()
    factor = torch.ones((), requires_grad=True)
    layer = net.get_submodule(f"conv{1 if '1_' in name else 2}.{name}")
    layer.register_forward_hook(lambda module, inputs, out: out * factor)
    net(torch.randn(1, 3, 45, 64))["conv5"].sum().backward()
    assert factor.grad is not None and factor.grad != 0


def test_hooks_on_everything_see_every_layer() -> None:
    net = VGG16(channels=(8, 8, 16, 16, 16)).eval()
    seen: list[nn.Module] = []
    with torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, out: seen.append(module)
    ):
        infer(net, torch.randn(1, 3, 45, 64))
    assert sum(isinstance(layer, nn.ReLU) for layer in seen) == 13


def test_a_replaced_forward_is_called_as_it_was() -> None:
    class Own(Conv3x3):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x) * 2

    net = VGG16(channels=(8, 8, 16, 16, 16)).eval()
    x = torch.randn(1, 3, 45, 64)
    calls: list[int] = []
    original = net.conv2.conv2_1.forward
    net.conv2.conv2_1.forward = lambda x: calls.append(1) or original(x)
    plain = infer(net, x)["conv5"]
    own = Own(16, 16).eval()
    own.load_state_dict(net.conv3.conv3_2.state_dict())
    net.conv3.conv3_2 = own
    assert not torch.equal(infer(net, x)["conv5"], plain) and calls == [1, 1]


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

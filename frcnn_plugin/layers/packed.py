"""Weights kept in bfloat16 and in oneDNN's own layout, where nothing trains, on CPUs with AMX.

torch casts and reorders a weight at every call. Beside matrix units that takes long: of VGG16's
detector on one image a quarter of the time, most of it for fc6. Kept, the packed weights take half
the memory of the weights once more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from typing_extensions import Self  # of typing from Python 3.11 on

_PART = 512  # outputs of a fully connected layer that are packed at a time: less memory at the peak


# Private ones of torch, for its own compiler: (re)order a weight, multiply by it. See _works.
_OPERATORS: Any = torch.ops.mkldnn


def has_amx() -> bool:
    """Tell whether this CPU has matrix units for bfloat16, as far as torch knows."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def is_traced() -> bool:
    """Tell whether a graph is made of the operators, by tracing or by compiling."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


class PackedWeight:
    """The packed weight of one layer: made at the first call, kept until the weight changes.

    :meth:`serves` tells whether it can be used. Results are those of torch's own layers under
    autocast. Copies and pickles are empty.
    """

    def __init__(self) -> None:
        """Keep nothing yet."""
        # What it was made of: memory, count of changes and shape; then some numbers and where they
        # are; then the parts.
        self._kept: tuple[Any, torch.Tensor, torch.Tensor, list[torch.Tensor]] | None = None

    def __reduce__(self) -> tuple[type[PackedWeight], tuple[()]]:
        return PackedWeight, ()

    def forget(self) -> None:
        """Free the memory."""
        self._kept = None

    def serves(self, layer: nn.Conv2d | nn.Linear, x: torch.Tensor) -> bool:
        """Tell whether to compute ``layer(x)`` here: no gradient, bfloat16, a CPU with AMX.

        ``x`` is a batch. Where something looks at single operators, or transforms them, torch's own
        are better; so they are if the weight is computed anew at each call, or will soon change.
        """
        if torch.is_grad_enabled() or not torch.is_autocast_enabled("cpu"):
            return False
        if is_traced() or _is_looked_at():
            return False
        weight = layer._parameters.get("weight")
        return (
            type(weight) is nn.Parameter
            and type(x) is torch.Tensor
            and x.dim() == (4 if weight.dim() == 4 else 2)
            and weight.device.type == x.device.type == "cpu"
            and weight.dtype == torch.float32
            and not (layer.training and weight.requires_grad)
            and not weight.is_inference()  # whose changes are not counted
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and x.numel() > 0
            and _works()
        )

    def convolve(self, layer: nn.Conv2d, x: torch.Tensor, relu: bool = False) -> torch.Tensor:
        """Map (N, C, H, W) to (N, O, H', W') in bfloat16, channels last; maybe ReLU, at no cost."""
        x = x.to(torch.bfloat16, memory_format=torch.channels_last)
        stride, dilation, groups = layer.stride, layer.dilation, layer.groups
        padding = [int(p) for p in layer.padding]

        def pack(weight: torch.Tensor) -> list[torch.Tensor]:
            reorder = _OPERATORS._reorder_convolution_weight
            size = list(x.shape)  # a hint only
            return [reorder(weight.bfloat16(), padding, stride, dilation, groups, size)]

        (weight,) = self._get(layer.weight, pack)
        bias = None if layer.bias is None else layer.bias.bfloat16()
        after = "relu" if relu else "none"
        convolution = _OPERATORS._convolution_pointwise
        return convolution(x, weight, bias, padding, stride, dilation, groups, after, [], "")

    def multiply(self, layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        """Map (R, in) to (R, out) in bfloat16; the layer has a bias."""
        x = x.bfloat16()

        def pack(weight: torch.Tensor) -> list[torch.Tensor]:
            reorder = _OPERATORS._reorder_linear_weight
            return [reorder(part.bfloat16(), len(x)) for part in weight.split(_PART)]

        weights = self._get(layer.weight, pack)
        biases = layer.bias.bfloat16().split(_PART)
        linear = _OPERATORS._linear_pointwise
        parts = [linear(x, w, b, "none", [], "") for w, b in zip(weights, biases, strict=True)]
        return torch.cat(parts, dim=1)

    def _get(
        self, weight: torch.Tensor, pack: Callable[[torch.Tensor], list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        weight = weight.detach()
        flat = weight.reshape(-1)
        made_of = (weight.data_ptr(), weight._version, weight.shape)
        kept = self._kept  # other threads may replace it meanwhile
        if kept is not None and kept[0] == made_of:
            # A change through `.data`, as some trainers make it, is not counted: look.
            if flat.index_select(0, kept[2]).view(torch.int32).equal(kept[1]):
                return kept[3]
        self._kept = kept = None  # free the old one first
        places = _diagonal(len(weight), len(flat) // len(weight))
        numbers = flat.index_select(0, places).view(torch.int32)  # so that NaN equals itself
        parts = pack(weight)
        self._kept = made_of, numbers, places, parts
        return parts


class PackedLayer(nn.Module):
    """A mixin for layers that have a packed weight, and free it when the mode or device changes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make the layer that it is combined with."""
        super().__init__(*args, **kwargs)
        self._packed = PackedWeight()

    def train(self, mode: bool = True) -> Self:
        """Switch to training, which needs the memory, or back."""
        self._packed.forget()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._packed.forget()
        return super()._apply(*args, **kwargs)


def _diagonal(rows: int, columns: int) -> torch.Tensor:
    """Return places in a flat matrix, at least one in each row and in each column."""
    i = torch.arange(max(rows, columns))
    return i % rows * columns + i % columns


def _is_looked_at() -> bool:
    """Tell whether operators are counted, recorded or transformed: vmap, FlopCounterMode, ..."""
    asked = ("_len_torch_dispatch_stack", "_are_functorch_transforms_active")
    return any(getattr(torch._C, name, int)() for name in asked)


@functools.cache
def _works() -> bool:
    """Tell whether the operators are there and give torch's results, by a trial."""
    if not (torch.backends.mkldnn.is_available() and has_amx()):
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 32, 6, 6, generator=generator)
    conv, linear = nn.Conv2d(32, 32, 3, padding=1), nn.Linear(36, 32)
    try:
        convolved = PackedWeight().convolve(conv, x, relu=True)
        multiplied = PackedWeight().multiply(linear, x.view(32, 36))
    except (AttributeError, RuntimeError, TypeError):
        return False
    pairs = ((convolved, F.relu(conv(x))), (multiplied, linear(x.view(32, 36))))
    return all((a - b).abs().max() <= 0.03 * b.abs().max() for a, b in pairs)

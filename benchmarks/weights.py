"""Random weights under which every part of a detector has its full work.

With plainly random ones they do not have it: activations grow layer by layer, all boxes become one,
and no score passes the threshold. Here every layer is scaled once so that its output has a chosen
deviation on the benchmark's own image. Anchors then hardly move, so that enough boxes survive
suppression, and classes are sure enough for a full set of detections.

Layers are drawn by their *role* ("conv3_2", "fc6"), each from a seed of its own, so that every
model draws the same numbers wherever it keeps the layer, also in another process.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import nn

# Deviation of what a layer puts out, by role; 1 for all others, before the ReLU.
_DEVIATIONS = {"rpn_bbox_pred": 0.05, "cls_score": 2.0, "bbox_pred": 0.5}

Layer = nn.Conv2d | nn.Linear
# Takes the weight and bias of a role to where the model keeps it: (weight, bias) -> (weight, bias).
Arranged = tuple[torch.Tensor, torch.Tensor]
Arrange = Callable[[torch.Tensor, torch.Tensor], Arranged]


@dataclass(frozen=True)
class Place:
    """Where a model keeps a role."""

    layer: Layer
    shape: tuple[int, ...] | None = None  # of the weight as it is drawn; None: the layer's
    arrange: Arrange | None = None  # from the drawn form to the layer's; None: they are the same


@dataclass(frozen=True)
class RandomWeights:
    """What is drawn: a seed, and per role the deviation of the weights."""

    seed: int
    deviations: Mapping[str, float] = field(default_factory=dict)  # else He's sqrt(2 / inputs)

    def draw(self, role: str, out: torch.Tensor) -> torch.Tensor:
        """Fill ``out`` (on the CPU) with the weights of ``role``."""
        deviation = self.deviations.get(role, (2 / out[0].numel()) ** 0.5)
        generator = torch.Generator().manual_seed(self.seed + zlib.crc32(role.encode()))
        return out.normal_(0.0, deviation, generator=generator)

    @torch.no_grad()
    def fill(self, places: Mapping[str, Place]) -> None:
        """Set all layers of ``places``, in place; biases become 0."""
        for role, place in places.items():
            layer = place.layer
            on_cpu = layer.weight.device.type == "cpu"
            if place.arrange is None and on_cpu and layer.weight.is_contiguous():
                self.draw(role, layer.weight)  # where it is: no copy that would add to peak memory
            else:
                weight = self.draw(role, torch.empty(place.shape or layer.weight.shape))
                if place.arrange is not None:
                    weight, _ = place.arrange(weight, torch.zeros(len(weight)))
                layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.zero_()


def roles(model: nn.Module) -> dict[str, Place]:
    """Return the convolutions and linear layers of a model by the last part of their names.

    Where two share it, as in feature pyramids, the full name is used.
    """
    named = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    short = [name.rpartition(".")[2] for name in named]
    return {
        (last if short.count(last) == 1 else name): Place(layer)
        for last, (name, layer) in zip(short, named.items(), strict=True)
    }


@torch.no_grad()
def calibrate(
    weights: RandomWeights, places: Mapping[str, Place], run: Callable[[], object]
) -> RandomWeights:
    """Return weights under which every layer puts out the deviation wanted.

    The layers are filled, and scaled on the way of an image, which `run` passes through the model.
    """
    weights.fill(places)
    deviations: dict[str, float] = {}

    def hook(role: str) -> Callable[[nn.Module, object, torch.Tensor], torch.Tensor]:
        def scale(layer: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            if role in deviations or output.numel() < 2:  # a second feature map; no proposals
                return output
            factor = _DEVIATIONS.get(role.rpartition(".")[2], 1.0) / max(float(output.std()), 1e-12)
            layer.weight.mul_(factor)
            deviations[role] = (2 / layer.weight[0].numel()) ** 0.5 * factor
            return output * factor

        return scale

    with ExitStack() as hooks:
        for role, place in places.items():
            hooks.enter_context(place.layer.register_forward_hook(hook(role)))
        run()
    return RandomWeights(weights.seed, deviations)


def copy_layers(source: Mapping[str, Place], target: Mapping[str, Place]) -> None:
    """Give ``target`` the weights and biases that ``source`` has, role by role, in place."""
    with torch.no_grad():
        for role, place in target.items():
            layer = source[role].layer
            assert layer.bias is not None and place.layer.bias is not None
            weight, bias = layer.weight.detach(), layer.bias.detach()
            if place.arrange is not None:
                weight, bias = place.arrange(weight, bias)
            place.layer.weight.copy_(weight)
            place.layer.bias.copy_(bias)

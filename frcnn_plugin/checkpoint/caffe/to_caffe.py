"""This plugin's weights back to Caffe's, to compare results in the original programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ...errors import UserError
from ..conversion import (
    BBOX_REG_WEIGHTS,
    BOX_HEAD,
    CAFFE_RPN_CONV,
    PREDICTOR,
    RPN,
    RPN_HEAD,
    VGG16_LAYERS,
    ZF_LAYERS,
    conv_target,
    describe,
)
from ..metadata import Metadata

_Layer = list[torch.Tensor]  # weight and bias


def convert_to_caffe(
    state: Mapping[str, torch.Tensor],
    metadata: Metadata | None = None,
    *,
    rpn_conv: str = CAFFE_RPN_CONV[0],
    bbox_reg_weights: Sequence[float] = BBOX_REG_WEIGHTS,
) -> tuple[dict[str, list[np.ndarray]], list[tuple[str, str, str]]]:
    """Convert to the layers of py-faster-rcnn's prototxts.

    Target statistics become part of the layers that predict deltas, as the originals save them.
    What was converted from Caffe becomes what it was, to the bit.

    Args:
        state: a model's state dict, or a part of one.
        metadata: of the checkpoint; it may know the untrained background rows of bbox_pred, which
            are 0 otherwise.
        rpn_conv: the prototxt's name of the RPN's 3x3 convolution.
        bbox_reg_weights: ``MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS`` of the model.

    Returns:
        layers by name, weight and bias, float32; and the mapping: source, target, shape.

    Raises:
        UserError: no backbone of this plugin, or a class-agnostic head, which Caffe's nets lack.
    """
    names = {conv_target(layer): layer for layer in (*VGG16_LAYERS, *ZF_LAYERS)}
    names |= {f"{BOX_HEAD}.{layer}": layer for layer in ("fc6", "fc7")}
    names[f"{RPN_HEAD}.rpn_conv"] = rpn_conv
    names |= {f"{RPN_HEAD}.{layer}": layer for layer in ("rpn_cls_score", "rpn_bbox_pred")}
    names |= {f"{PREDICTOR}.{layer}": layer for layer in ("cls_score", "bbox_pred")}
    layers: dict[str, list[np.ndarray]] = {}
    rows = []
    for source, layer in names.items():
        if f"{source}.weight" not in state:
            continue
        tensors = [state[f"{source}.{kind}"].detach().cpu().float() for kind in ("weight", "bias")]
        if layer == "rpn_bbox_pred":
            tensors = _fold(tensors, _statistics(state, RPN), (1.0, 1.0, 1.0, 1.0))
        elif layer == "cls_score":
            tensors = [torch.cat((t[-1:], t[:-1])) for t in tensors]
        elif layer == "bbox_pred":
            classes = len(state.get(f"{PREDICTOR}.cls_score.bias", ())) - 1
            if len(tensors[1]) != 4 * classes:
                raise UserError(
                    f"bbox_pred has {len(tensors[1])} outputs for {classes} classes, so it is "
                    "class-agnostic; py-faster-rcnn's networks are not"
                )
            tensors = _fold(tensors, _statistics(state, PREDICTOR), bbox_reg_weights)
            tensors = _with_background(tensors, metadata)
        layers[layer] = [t.contiguous().numpy() for t in tensors]
        rows.append((f"{source}.weight, .bias", layer, describe(tensors[0])))
    if "conv1_1" not in layers and "conv1" not in layers:
        raise UserError(
            "there is no backbone VGG16 or ZF of this plugin; the weights are called "
            f"{', '.join(list(state)[:4])} ..."
        )
    return layers, rows


def _statistics(state: Mapping[str, torch.Tensor], owner: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and std of a layer's targets, (C, 4); 0 and 1 if there are none."""
    mean = state.get(f"{owner}.target_statistics.mean", torch.zeros(1, 4))
    std = state.get(f"{owner}.target_statistics.std", torch.ones(1, 4))
    return mean.cpu().double(), std.cpu().double()


def _fold(
    layer: _Layer, statistics: tuple[torch.Tensor, torch.Tensor], weights: Sequence[float]
) -> _Layer:
    """Return the layer that predicts raw deltas, (output * std + mean) / weights."""
    scale = torch.tensor(weights, dtype=torch.float64)
    offset, factor = statistics[0] / scale, statistics[1] / scale
    if (factor == 1).all() and (offset == 0).all():
        return layer
    weight, bias = layer
    repeats = len(bias) // factor.numel()
    factor, offset = factor.flatten().repeat(repeats), offset.flatten().repeat(repeats)
    shape = (-1,) + (1,) * (weight.dim() - 1)
    return [
        (weight.double() * factor.view(shape)).float(),
        (bias.double() * factor + offset).float(),
    ]


def _with_background(layer: _Layer, metadata: Metadata | None) -> _Layer:
    known = metadata.background if metadata else {}
    rows = [
        known.get(kind, torch.zeros_like(tensor[:4]))
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    ]
    return [torch.cat((row, tensor)) for row, tensor in zip(rows, layer, strict=True)]

"""Caffe's VGG16 and ZF, and py-faster-rcnn's detectors, to this plugin's names.

Nothing is reordered but the classes: fc6 takes (channel, row, column) in both; the RPN's channels
are Caffe's (first background, then object scores of all anchors; 4a + j for delta j of anchor a),
and so is the order of the anchors.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np
import torch

from ...errors import UserError
from ..conversion import (
    BBOX_REG_WEIGHTS,
    BOX_HEAD,
    CAFFE_RPN_CONV,
    PREDICTOR,
    RPN_HEAD,
    VGG16_LAYERS,
    ZF_LAYERS,
    Conversion,
    conv_target,
)
from ..metadata import CAFFE, Metadata

_FULLY_CONNECTED = {"fc6", "fc7", "cls_score", "bbox_pred"}


def convert_caffe(layers: Mapping[str, list[np.ndarray]]) -> Conversion:
    """Convert a network for ImageNet, or a detector, or a part of one.

    Args:
        layers: by layer name, weight and bias (see :class:`.caffemodel.CaffeModel`); not copied
            where their order stays.

    Raises:
        UserError: another network, or a layer is missing or has an unusable shape; names it.
    """
    backbone = _backbone(layers)
    result = Conversion()
    targets = {layer: conv_target(layer) for layer in backbone}
    targets |= {layer: f"{BOX_HEAD}.{layer}" for layer in ("fc6", "fc7")}
    targets |= dict.fromkeys(CAFFE_RPN_CONV, f"{RPN_HEAD}.rpn_conv")
    targets |= {layer: f"{RPN_HEAD}.{layer}" for layer in ("rpn_cls_score", "rpn_bbox_pred")}
    for layer, target in targets.items():
        if layer in layers:
            weight, bias = _weight_and_bias(layers, layer)
            result.put(f"{layer}[0]", f"{target}.weight", weight)
            result.put(f"{layer}[1]", f"{target}.bias", bias)
    used = {layer for layer in targets if layer in layers}
    classes = 0
    background: dict[str, torch.Tensor] = {}
    if {"cls_score", "bbox_pred"} <= set(layers):
        classes, background = _put_predictor(result, layers)
        used |= {"cls_score", "bbox_pred"}
    result.unused = [layer for layer in layers if layer not in used]
    rpn = "rpn_cls_score" in layers
    what = f"detector of {classes} classes" if classes else "RPN" if rpn else "ImageNet"
    result.network = f"{'VGG16' if backbone is VGG16_LAYERS else 'ZF'}, {what}"
    result.metadata = Metadata(
        "detector" if classes or rpn else "imagenet",
        CAFFE,
        _class_names(classes),
        background=background,
    )
    return result


def _backbone(layers: Mapping[str, list[np.ndarray]]) -> tuple[str, ...]:
    """Return the layers of the backbone that this is, all of which are there."""
    some = ", ".join(list(layers)[:6])
    if "conv3_4" in layers:
        raise UserError("the network is VGG19, not VGG16")
    if "conv1_1" in layers:
        backbone = VGG16_LAYERS
    elif "conv1" in layers and layers["conv1"][0].shape[-2:] == (7, 7):
        backbone = ZF_LAYERS
    else:
        raise UserError(
            f"the network is neither VGG16 nor ZF in the names of Caffe's ImageNet models and of "
            f"py-faster-rcnn; its layers: {some} ..."
        )
    missing = [layer for layer in backbone if layer not in layers]
    if missing:
        raise UserError(f"the network lacks {', '.join(missing)}; its layers: {some} ...")
    return backbone


def _weight_and_bias(
    layers: Mapping[str, list[np.ndarray]], layer: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight, (out, in, kH, kW) or (out, in), and the bias, (out,)."""
    blobs = layers[layer]
    if len(blobs) != 2:
        raise UserError(f"layer {layer} has {len(blobs)} blobs, not weight and bias")
    weight, bias = blobs[0], blobs[1].reshape(-1)
    # Older files give all blobs four dimensions, here (1, 1, out, in).
    if layer in _FULLY_CONNECTED and math.prod(weight.shape[:-2]) == 1:
        weight = weight.reshape(weight.shape[-2:])
    dimensions = 2 if layer in _FULLY_CONNECTED else 4
    if weight.ndim != dimensions or len(weight) != len(bias) or not weight.size:
        raise UserError(
            f"layer {layer} has a weight of shape {blobs[0].shape} and {len(bias)} biases, which "
            "do not go together"
        )
    with warnings.catch_warnings():
        # torch warns of arrays that are read-only, as those of a file are: writing to the tensor
        # would change them. Nobody else has them.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(weight), torch.from_numpy(bias)


def _put_predictor(
    result: Conversion, layers: Mapping[str, list[np.ndarray]]
) -> tuple[int, dict[str, torch.Tensor]]:
    """Move the background from first to last in cls_score; drop it in bbox_pred.

    Its boxes were never trained, and Detectron2 has no place for them.

    Returns:
        the number of classes without background, and the dropped rows.
    """
    scores, boxes = _weight_and_bias(layers, "cls_score"), _weight_and_bias(layers, "bbox_pred")
    classes = len(scores[1]) - 1
    if classes < 1 or len(boxes[1]) != 4 * (classes + 1):
        raise UserError(
            f"cls_score has {classes + 1} outputs and bbox_pred {len(boxes[1])}: not the four "
            "per class, background included, of py-faster-rcnn"
        )
    background = {}
    for i, kind in enumerate(("weight", "bias")):
        rolled = torch.cat((scores[i][1:], scores[i][:1]))
        result.put(f"cls_score[{i}]", f"{PREDICTOR}.cls_score.{kind}", rolled, "background last")
    for i, kind in enumerate(("weight", "bias")):
        background[kind] = boxes[i][:4].clone()
        kept = boxes[i][4:].clone()
        result.put(f"bbox_pred[{i}]", f"{PREDICTOR}.bbox_pred.{kind}", kept, "no background")
    # The layer predicts raw deltas; statistics that say so, unlike scaled weights, are exact.
    std = torch.tensor(BBOX_REG_WEIGHTS).repeat(classes, 1)
    for name, values in (("mean", torch.zeros_like(std)), ("std", std)):
        result.put("(raw deltas)", f"{PREDICTOR}.target_statistics.{name}", values)
    return classes, background


def _class_names(number: int) -> tuple[str, ...] | None:
    """Return the names in py-faster-rcnn's order: of VOC alphabetical, of COCO by category id."""
    if number == 20:
        from detectron2.data.datasets.pascal_voc import CLASS_NAMES

        return tuple(CLASS_NAMES)
    if number == 80:
        from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

        return tuple(str(c["name"]) for c in COCO_CATEGORIES if c["isthing"] == 1)
    return None

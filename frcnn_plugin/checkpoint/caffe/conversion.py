"""Caffe's VGG16 and ZF, and py-faster-rcnn's detectors: to this plugin's names, and back.

Nothing is reordered but the classes: fc6 takes (channel, row, column) in both; the RPN's channels
are Caffe's (first background, then object scores of all anchors; 4a + j for delta j of anchor a),
and so is the order of the anchors.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...config_files import flat_keys, read_config_text
from ...errors import UserError
from ..conversion import (
    BOX_HEAD,
    PREDICTOR,
    RPN,
    RPN_HEAD,
    VGG16_LAYERS,
    Conversion,
    conv_target,
    describe,
    raw_deltas,
)
from ..metadata import CAFFE, Metadata

ZF_LAYERS = tuple(f"conv{i}" for i in range(1, 6))
_FULLY_CONNECTED = ("fc6", "fc7", "cls_score", "bbox_pred")

# Both names of the RPN's 3x3 convolution; py-faster-rcnn's networks do not agree on it (point 41 of
# docs/faithfulness.md). The first is that of its VGG16, the second that of its alternating ZF.
RPN_CONVS = ("rpn_conv/3x3", "rpn_conv1")

# The RPN's layers in the files of the MATLAB code, which are the same otherwise.
_MATLAB = {
    "conv_proposal1": f"{RPN_HEAD}.rpn_conv",
    "proposal_cls_score": f"{RPN_HEAD}.rpn_cls_score",
    "proposal_bbox_pred": f"{RPN_HEAD}.rpn_bbox_pred",
}

# What py-faster-rcnn's networks are, as a config has it; weights alone do not tell.
_AS_IN_CAFFE: dict[str, object] = {
    "MODEL.PAPER_VGG.CONV5_DILATION": 1,
    "MODEL.RPN.IN_FEATURES": ["conv5"],
    "MODEL.ROI_HEADS.IN_FEATURES": ["conv5"],
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool",
    "INPUT.FORMAT": "BGR",
    "MODEL.PIXEL_STD": [1.0, 1.0, 1.0],
}

# Caffe's files predict raw deltas; Detectron2's deltas are multiplied by this config key,
# MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS, whose default these are.
BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)

_Layers = Mapping[str, list[np.ndarray]]
_Layer = list[torch.Tensor]  # weight and bias


def _targets(backbone: Sequence[str], rpn_convs: Sequence[str]) -> dict[str, str]:
    """Map Caffe's names of all layers but the predictor's to this plugin's."""
    targets = {layer: conv_target(layer) for layer in backbone}
    targets |= {layer: f"{BOX_HEAD}.{layer}" for layer in ("fc6", "fc7")}
    targets |= dict.fromkeys(rpn_convs, f"{RPN_HEAD}.rpn_conv")
    return targets | {layer: f"{RPN_HEAD}.{layer}" for layer in ("rpn_cls_score", "rpn_bbox_pred")}


def convert_caffe(layers: _Layers) -> Conversion:
    """Convert a network for ImageNet, or a detector, or a part of one.

    It is given as by :func:`.caffemodel.read_caffemodel`, weight and bias by layer name, which are
    not copied where their order stays.

    Raises:
        UserError: another network, or a layer is missing or has an unusable shape; names it.
    """
    backbone = _backbone(layers)
    result = Conversion()
    used = set()
    for layer, target in (_targets(backbone, RPN_CONVS) | _MATLAB).items():
        if layer in layers:
            weight, bias = _weight_and_bias(layers, layer)
            result.put(f"{layer}[0]", f"{target}.weight", weight)
            result.put(f"{layer}[1]", f"{target}.bias", bias)
            used.add(layer)
    classes = 0
    background: dict[str, torch.Tensor] = {}
    if {"cls_score", "bbox_pred"} <= set(layers):
        classes, background = _put_predictor(result, layers)
        used |= {"cls_score", "bbox_pred"}
    result.unused = [layer for layer in layers if layer not in used]
    rpn = f"{RPN_HEAD}.rpn_cls_score.weight" in result.state_dict
    what = f"detector of {classes} classes" if classes else "RPN" if rpn else "ImageNet"
    result.network = f"{'VGG16' if backbone is VGG16_LAYERS else 'ZF'}, {what}"
    result.metadata = Metadata(
        "detector" if classes or rpn else "imagenet",
        CAFFE,
        _class_names(classes),
        background=background,
    )
    return result


def _backbone(layers: _Layers) -> tuple[str, ...]:
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


def _weight_and_bias(layers: _Layers, layer: str) -> _Layer:
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
        return [torch.from_numpy(weight), torch.from_numpy(bias)]


def _put_predictor(result: Conversion, layers: _Layers) -> tuple[int, dict[str, torch.Tensor]]:
    """Move the background from first to last in cls_score; drop it in bbox_pred.

    Its boxes were never trained, and Detectron2 has no place for them. Return the number of classes
    without background, and the dropped rows.
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


def convert_to_caffe(
    state: Mapping[str, torch.Tensor],
    metadata: Metadata | None = None,
    *,
    rpn_conv: str = RPN_CONVS[0],
    bbox_reg_weights: Sequence[float] | None = None,
) -> tuple[dict[str, list[np.ndarray]], list[tuple[str, str, str]]]:
    """Convert to the layers of py-faster-rcnn's prototxts.

    Target statistics become part of the layers that predict deltas, as the originals save them.
    What was converted from Caffe becomes what it was, to the bit.

    Args:
        state: a model's state dict, or a part of one.
        metadata: of the checkpoint: its config, the images it expects, and perhaps the untrained
            background rows of bbox_pred, which are 0 otherwise.
        rpn_conv: the prototxt's name of the RPN's 3x3 convolution.
        bbox_reg_weights: ``MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS`` of the model; None: as the
            metadata say, else :data:`BBOX_REG_WEIGHTS`.

    Returns:
        layers by name, weight and bias, float32; and the mapping: source, target, shape.

    Raises:
        UserError: py-faster-rcnn's networks have no such layer, class-agnostic boxes, dilation,
            features, pooling or images.
    """
    of_predictor = {layer: f"{PREDICTOR}.{layer}" for layer in ("cls_score", "bbox_pred")}
    if not rpn_conv or rpn_conv in _targets((*VGG16_LAYERS, *ZF_LAYERS), []) | of_predictor:
        raise UserError(
            f"--rpn-conv is {rpn_conv!r}: give its layer a name of its own, such as {RPN_CONVS[0]}"
        )
    sources = _targets((*VGG16_LAYERS, *ZF_LAYERS), [rpn_conv]) | of_predictor
    config = read_config_text((metadata and metadata.config) or "{}", "the file's config")
    images = metadata.preprocessing.values() if metadata and metadata.preprocessing else {}
    config = flat_keys(config) | images
    _stop_unless_in_caffe(state, sources, config)
    scale = bbox_reg_weights or config.get("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", BBOX_REG_WEIGHTS)
    layers: dict[str, list[np.ndarray]] = {}
    rows = []
    for layer, source in sources.items():
        if f"{source}.weight" not in state:
            continue
        tensors = [state[f"{source}.{kind}"].detach().cpu().float() for kind in ("weight", "bias")]
        if layer == "rpn_bbox_pred":
            tensors = raw_deltas(tensors, state, f"{RPN}.", (1.0, 1.0, 1.0, 1.0))
        elif layer == "cls_score":
            tensors = [torch.cat((t[-1:], t[:-1])) for t in tensors]
        elif layer == "bbox_pred":
            classes = len(state.get(f"{PREDICTOR}.cls_score.bias", ())) - 1
            if len(tensors[1]) != 4 * classes:
                raise UserError(
                    f"bbox_pred has {len(tensors[1])} outputs for {classes} classes, so it is "
                    "class-agnostic; py-faster-rcnn's networks are not"
                )
            tensors = raw_deltas(tensors, state, f"{PREDICTOR}.", scale)
            known = metadata.background if metadata else {}
            tensors = [
                torch.cat((known.get(kind, torch.zeros_like(tensor[:4])), tensor))
                for kind, tensor in zip(("weight", "bias"), tensors, strict=True)
            ]
        layers[layer] = [t.contiguous().numpy() for t in tensors]
        rows.append((f"{source}.weight, .bias", layer, describe(tensors[0])))
    return layers, rows


def _stop_unless_in_caffe(
    state: Mapping[str, torch.Tensor], sources: Mapping[str, str], config: Mapping[str, Any]
) -> None:
    known = {f"{source}.{kind}" for source in sources.values() for kind in ("weight", "bias")}
    statistics = tuple(f"{part}.target_statistics." for part in (RPN, PREDICTOR))
    others = [n for n in state if n not in known and not n.startswith(statistics)]
    if others:
        raise UserError(
            f"py-faster-rcnn's networks have no place for {len(others)} of the weights, such as "
            f"{others[0]}, so the detector cannot be converted to Caffe"
        )
    for key, wanted in _AS_IN_CAFFE.items():
        if (found := config.get(key, wanted)) != wanted:
            raise UserError(
                f"the detector has {key} {found}, but py-faster-rcnn's networks have {wanted}: it "
                "cannot be converted to Caffe"
            )

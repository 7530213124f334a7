"""The released networks, layer by layer, from the prototxts of py-faster-rcnn.

Input are weights in Caffe's layout, `{layer: [weight, bias]}`; output are blobs by Caffe's names.
Nothing here comes from frcnn_plugin or Detectron2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from . import caffe_layers as caffe
from .caffe_boxes import Margins, proposal_layer

# cfg.TEST and cfg.TRAIN: RPN_PRE_NMS_TOP_N, RPN_POST_NMS_TOP_N
TOP_N = {"test": (6000, 300), "train": (12000, 2000)}

Weights = dict[str, list[torch.Tensor]]
Blobs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Net:
    """What tells the prototxts apart."""

    name: str
    backbone: str  # "VGG16" or "ZF"
    rpn_conv: str  # layer name
    num_classes: int = 21  # with background
    scales: tuple[int, ...] = (8, 16, 32)
    dropout: bool = True  # layers drop6 and drop7

    @property
    def pooled(self) -> int:
        return 7 if self.backbone == "VGG16" else 6

    @property
    def scale_train(self) -> bool:
        return self.backbone == "VGG16"

    @property
    def last(self) -> str:
        """Blob that the RPN and RoI pooling look at."""
        return "conv5_3" if self.backbone == "VGG16" else "conv5"


VGG16_ALT_OPT = Net("VGG16 alt_opt", "VGG16", "rpn_conv/3x3")
ZF_ALT_OPT = Net("ZF alt_opt", "ZF", "rpn_conv1")
VGG16_COCO = Net("VGG16 COCO", "VGG16", "rpn_conv/3x3", 81, (4, 8, 16, 32), dropout=False)


@dataclass(frozen=True)
class Layer:
    """A layer of a backbone; every convolution is followed by a ReLU."""

    type: str  # "conv", "lrn", "pool"
    name: str
    kernel: int
    stride: int = 1
    pad: int = 0

    def __call__(self, x: torch.Tensor, w: Weights) -> torch.Tensor:
        if self.type == "conv":
            return caffe.relu(caffe.conv(x, w[self.name], self.stride, self.pad))
        if self.type == "lrn":
            return caffe.lrn_within_channel(x, self.kernel, alpha=5e-5, beta=0.75)
        return caffe.max_pool(x, self.kernel, self.stride, self.pad)


def _vgg16() -> Iterator[Layer]:
    for block, convs in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)):
        for i in range(1, convs + 1):
            yield Layer("conv", f"conv{block}_{i}", kernel=3, pad=1)
        if block < 5:
            yield Layer("pool", f"pool{block}", kernel=2, stride=2)


def _zf() -> Iterator[Layer]:
    for i, (kernel, stride) in enumerate(((7, 2), (5, 2), (3, 1), (3, 1), (3, 1)), start=1):
        yield Layer("conv", f"conv{i}", kernel, stride, pad=kernel // 2)
        if i <= 2:
            yield Layer("lrn", f"norm{i}", kernel=3)
            yield Layer("pool", f"pool{i}", kernel=3, stride=2, pad=1)


LAYERS = {"VGG16": tuple(_vgg16()), "ZF": tuple(_zf())}


def backbone(net: Net, data: torch.Tensor, w: Weights) -> Blobs:
    blobs, x = {}, data
    for layer in LAYERS[net.backbone]:
        x = blobs[layer.name] = layer(x, w)
    return blobs


def rpn(net: Net, features: torch.Tensor, w: Weights) -> Blobs:
    output = caffe.relu(caffe.conv(features, w[net.rpn_conv], stride=1, pad=1))
    score = caffe.conv(output, w["rpn_cls_score"], stride=1, pad=0)
    # Reshape to (1, 2, A*H, W), softmax over the two, and back.
    reshaped = score.reshape(len(score), 2, -1, score.shape[3])
    return {
        "rpn/output": output,
        "rpn_cls_score": score,
        "rpn_cls_score_reshape": reshaped,
        "rpn_bbox_pred": caffe.conv(output, w["rpn_bbox_pred"], stride=1, pad=0),
        "rpn_cls_prob_reshape": reshaped.softmax(1).reshape(score.shape),
    }


def proposals(
    net: Net, blobs: Blobs, im_info: tuple[float, float, float], phase: str, margins: Margins
) -> np.ndarray:
    prob, deltas = (blobs[k].detach().numpy() for k in ("rpn_cls_prob_reshape", "rpn_bbox_pred"))
    return proposal_layer(prob, deltas, im_info, net.scales, *TOP_N[phase], margins)


def head(
    net: Net,
    features: torch.Tensor,
    rois: np.ndarray,
    w: Weights,
    masks: list[torch.Tensor] | None = None,
) -> Blobs:
    """`masks` of drop6 and drop7 in the train phase, None in the test phase."""
    pooled = caffe.roi_pool(features, rois, net.pooled)
    x, blobs = pooled, {"pool5": pooled}
    for i, name in enumerate(("fc6", "fc7")):
        x = caffe.relu(caffe.inner_product(x, w[name]))
        if net.dropout:
            x = caffe.dropout(x, 0.5, net.scale_train, masks[i] if masks else None)
        blobs[name] = x
    blobs["cls_score"] = caffe.inner_product(x, w["cls_score"])
    blobs["bbox_pred"] = caffe.inner_product(x, w["bbox_pred"])
    blobs["cls_prob"] = blobs["cls_score"].softmax(1)
    return blobs


@torch.no_grad()
def forward(
    net: Net, data: torch.Tensor, im_info: tuple[float, float, float], w: Weights, margins: Margins
) -> Blobs:
    """All blobs of the test phase; "rois" (P, 5) among them."""
    blobs = backbone(net, data, w)
    blobs.update(rpn(net, blobs[net.last], w))
    rois = proposals(net, blobs, im_info, "test", margins)
    margins.see_rois(rois)
    blobs["rois"] = torch.as_tensor(rois)
    blobs.update(head(net, blobs[net.last], rois, w))
    return blobs

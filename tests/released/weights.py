"""Random weights in Caffe's layout for which the released networks do something, and our names.

Weights drawn blindly saturate or die in 16 layers. These are scaled on one picture, layer by
layer, so that activations spread as a trained network's do: boxes of all sizes, scores from 0 to
1. The mapping to the plugin's names is written anew here, as a check of the plugin's converter.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from . import caffe_layers as caffe
from .caffe_boxes import Margins
from .caffe_net import LAYERS, Net, Weights, proposals, rpn

# Widths of the stages, of the RPN and of fc6, fc7.
FULL = {"VGG16": (64, 128, 256, 512, 512), "ZF": (96, 256, 384, 384, 256)}
NARROW = {"VGG16": (8, 8, 12, 16, 16), "ZF": (8, 12, 16, 16, 16)}


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """(3, height, width) in 0..255, BGR: noise of several sizes, so that no two places agree."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, 3, height, width)
    for cell in (4, 16, 64, 200):
        coarse = torch.rand(1, 3, height // cell + 2, width // cell + 2, generator=generator)
        total += F.interpolate(coarse, (height, width), mode="bilinear") / 4
    return ((total[0] - 0.5) * 3 + 0.5).clamp(0, 1) * 255


def make_weights(
    net: Net, widths: tuple[int, ...], fc: int, background: float = 5.0, seed: int = 0
) -> Weights:
    """{Caffe layer: [weight, bias]}; `background` is the mean logit of class 0, others' is 0."""
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}

    def draw(name: str, *shape: int) -> None:
        weights[name] = [torch.randn(shape, generator=generator), torch.zeros(shape[0])]

    def spread(name: str, out: torch.Tensor, std: torch.Tensor, mean: torch.Tensor) -> None:
        """Give the channels of `out`, what the layer gives so far, this std and mean."""
        across = [i for i in range(out.dim()) if i != 1]
        scale = std / out.std(across)
        weight, bias = weights[name]
        weight.mul_(scale.view(-1, *[1] * (weight.dim() - 1)))
        bias.copy_(mean - out.mean(across) * scale)

    def noise(n: int, mean: float, std: float) -> torch.Tensor:
        return mean + std * torch.randn(n, generator=generator)

    stage_width = dict(zip("12345", widths, strict=True))
    x = picture(400, 520, seed=99).unsqueeze(0) - 115
    for layer in LAYERS[net.backbone]:
        if layer.type == "conv":
            width = stage_width[layer.name[4]]
            draw(layer.name, width, x.shape[1], layer.kernel, layer.kernel)
            out = caffe.conv(x, weights[layer.name], layer.stride, layer.pad)
            # As large as a trained network's, so that ZF's normalisation matters.
            spread(layer.name, out, torch.full((width,), 60.0), noise(width, 10.0, 20.0))
        x = layer(x, weights)

    features, before = x, x.shape[1]
    draw(net.rpn_conv, before, before, 3, 3)
    out = caffe.conv(features, weights[net.rpn_conv], 1, 1)
    spread(net.rpn_conv, out, torch.full((before,), 1.0), noise(before, 0.2, 0.3))
    anchors = 3 * len(net.scales)
    draw("rpn_cls_score", 2 * anchors, before, 1, 1)
    draw("rpn_bbox_pred", 4 * anchors, before, 1, 1)
    hidden = rpn(net, features, weights)
    count = 2 * anchors
    # Large objects score higher, so that neighbours overlap and NMS has something to do.
    mean = noise(count, 0, 0.7)
    mean[anchors:] += torch.arange(len(net.scales)).repeat(3)
    spread("rpn_cls_score", hidden["rpn_cls_score"], torch.full((count,), 1.2), mean)
    std = torch.tensor([0.08, 0.08, 0.15, 0.15]).repeat(anchors)
    mean = torch.tensor([0.0, 0.0, -0.4, -0.4]).repeat(anchors)
    spread("rpn_bbox_pred", hidden["rpn_bbox_pred"], std, mean)

    info = (400.0, 520.0, 1.0)
    rois = proposals(net, rpn(net, features, weights), info, "test", Margins())
    x = caffe.roi_pool(features, rois[:100], net.pooled).flatten(1)
    for name in ("fc6", "fc7"):
        draw(name, fc, x.shape[1])
        spread(name, caffe.inner_product(x, weights[name]), torch.full((fc,), 1.0), noise(fc, 0, 1))
        x = caffe.relu(caffe.inner_product(x, weights[name]))
        if net.dropout:
            x = caffe.dropout(x, 0.5, net.scale_train, None)
    classes = net.num_classes
    draw("cls_score", classes, fc)
    bias = noise(classes, 0, 1)
    bias[0] = background
    out = caffe.inner_product(x, weights["cls_score"])
    spread("cls_score", out, torch.full((classes,), 2.0), bias)
    draw("bbox_pred", 4 * classes, fc)
    out = caffe.inner_product(x, weights["bbox_pred"])
    std = torch.tensor([0.1, 0.1, 0.2, 0.2]).repeat(classes)
    spread("bbox_pred", out, std, noise(4 * classes, 0, 0.05))
    return weights


def state_dict(net: Net, weights: Weights) -> dict[str, torch.Tensor]:
    """The plugin's names and conventions: background last and without boxes, deltas as raw ones."""
    state = {}
    classes = net.num_classes - 1
    for layer, (weight, bias) in weights.items():
        if layer == net.rpn_conv:
            name = "proposal_generator.rpn_head.rpn_conv"
        elif layer.startswith("rpn_"):
            name = f"proposal_generator.rpn_head.{layer}"
        elif layer.startswith("conv"):
            name = f"backbone.{layer.split('_')[0]}.{layer}"
        elif layer.startswith("fc"):
            name = f"roi_heads.box_head.{layer}"
        else:
            name = f"roi_heads.box_predictor.{layer}"
        if layer == "cls_score":
            weight, bias = weight.roll(-1, 0), bias.roll(-1, 0)
        elif layer == "bbox_pred":
            weight, bias = weight[4:], bias[4:]
        state[f"{name}.weight"], state[f"{name}.bias"] = weight, bias
    statistics = "roi_heads.box_predictor.target_statistics"
    state[f"{statistics}.mean"] = torch.zeros(classes, 4)
    state[f"{statistics}.std"] = torch.tensor([10.0, 10.0, 5.0, 5.0]).repeat(classes, 1)
    return state

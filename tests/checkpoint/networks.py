"""Small networks with the layers of the real ones: every tensor has other, random values."""

from __future__ import annotations

import numpy as np
import torch

VGG16 = [
    *("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv3_3"),
    *("conv4_1", "conv4_2", "conv4_3", "conv5_1", "conv5_2", "conv5_3"),
]
TORCHVISION_CONV = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]

Layers = dict[str, list[np.ndarray]]


def _layer(rng: np.random.Generator, *shape: int) -> list[np.ndarray]:
    return [
        rng.standard_normal(shape, dtype="f4"),
        rng.standard_normal(shape[0], dtype="f4"),
    ]


def vgg16(seed: int = 0, *, fc8: bool = True) -> Layers:
    """Caffe's ImageNet net: 4 channels everywhere, fc6 of 6 outputs on 4 x 7 x 7 inputs."""
    rng = np.random.default_rng(seed)
    layers = {name: _layer(rng, 4, 3 if name == "conv1_1" else 4, 3, 3) for name in VGG16}
    layers["fc6"] = _layer(rng, 6, 196)
    layers["fc7"] = _layer(rng, 6, 6)
    if fc8:
        layers["fc8"] = _layer(rng, 10, 6)
    return layers


def zf(seed: int = 0) -> Layers:
    """Caffe's ImageNet net, narrow."""
    rng = np.random.default_rng(seed)
    layers = {"conv1": _layer(rng, 4, 3, 7, 7), "conv2": _layer(rng, 4, 4, 5, 5)}
    layers |= {f"conv{i}": _layer(rng, 4, 4, 3, 3) for i in (3, 4, 5)}
    return layers | {"fc6": _layer(rng, 6, 144), "fc7": _layer(rng, 6, 6)}


def detector(backbone: Layers, *, classes: int, anchors: int = 9, rpn_conv: str) -> Layers:
    """py-faster-rcnn's detector of ``classes`` without background."""
    rng = np.random.default_rng(9)
    layers = {k: v for k, v in backbone.items() if k != "fc8"}
    layers[rpn_conv] = _layer(rng, 4, 4, 3, 3)
    layers["rpn_cls_score"] = _layer(rng, 2 * anchors, 4, 1, 1)
    layers["rpn_bbox_pred"] = _layer(rng, 4 * anchors, 4, 1, 1)
    layers["cls_score"] = _layer(rng, classes + 1, 6)
    layers["bbox_pred"] = _layer(rng, 4 * (classes + 1), 6)
    return layers


def torchvision_vgg16(seed: int = 0, fully_connected: tuple[int, int] | None = (0, 3)) -> dict:
    """In torchvision's names; ``fully_connected``: places of fc6 and fc7."""
    layers = vgg16(seed)
    state = {
        f"features.{place}.{kind}": torch.from_numpy(blob)
        for place, name in zip(TORCHVISION_CONV, VGG16, strict=True)
        for kind, blob in zip(("weight", "bias"), layers[name], strict=True)
    }
    if fully_connected:
        places = (*fully_connected, 6)
        for place, name in zip(places, ("fc6", "fc7", "fc8"), strict=True):
            for kind, blob in zip(("weight", "bias"), layers[name], strict=True):
                state[f"classifier.{place}.{kind}"] = torch.from_numpy(blob)
    return state

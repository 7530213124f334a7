"""One picture through the plugin's model and through the transcription, and what they find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from . import caffe_detect, caffe_net
from .caffe_boxes import Margins
from .caffe_net import Blobs, Net, Weights
from .harness import MEAN, Recorder, build, model_input
from .weights import NARROW, make_weights, picture

FC = 64  # width of fc6 and fc7 in the narrow networks
ONE = np.array([0, 0, 1, 1])


@dataclass(frozen=True)
class Case:
    """A network and a picture; background is the mean logit of class 0 (others: 0)."""

    net: Net
    original: tuple[int, int]
    seed: int = 0
    background: float = 5.0
    widths: tuple[int, ...] = ()
    fc: int = FC
    sides: tuple[int, int] = (600, 1000)  # cfg.TEST.SCALES, MAX_SIZE

    def __str__(self) -> str:
        return f"{self.net.name} {self.original[0]}x{self.original[1]}"

    @property
    def scale(self) -> float:
        return caffe_detect.im_scale(*self.original, *self.sides)

    def image(self) -> torch.Tensor:
        return picture(*caffe_detect.network_size(*self.original, self.scale), seed=self.seed)

    def all_widths(self) -> tuple[int, ...]:
        return self.widths or NARROW[self.net.backbone]

    def weights(self) -> Weights:
        return _weights(self.net, self.all_widths(), self.fc, self.background)


@cache
def _weights(net: Net, widths: tuple[int, ...], fc: int, background: float) -> Weights:
    return make_weights(net, widths, fc, background)


@dataclass
class Theirs:
    """What the transcription finds."""

    blobs: Blobs
    detections: list[np.ndarray]  # per class, (n, 5)
    margins: Margins


def transcription(case: Case, weights: Weights | None = None) -> Theirs:
    image, margins = case.image(), Margins()
    info = (*map(float, image.shape[1:]), case.scale)
    blobs = caffe_net.forward(
        case.net, (image - MEAN).unsqueeze(0), info, weights or case.weights(), margins
    )
    scores, boxes = caffe_detect.im_detect(blobs, case.original, case.scale)
    return Theirs(blobs, caffe_detect.detections(scores, boxes, margins), margins)


def plugin(
    case: Case, *opts: Any, weights: Weights | None = None
) -> tuple[Blobs, list[np.ndarray]]:
    """Blobs by Caffe's names, and detections as the transcription gives them."""
    test = ["INPUT.MIN_SIZE_TEST", case.sides[0], "INPUT.MAX_SIZE_TEST", case.sides[1], *opts]
    model = build(case.net, weights or case.weights(), case.all_widths(), case.fc, *test)
    recorder = Recorder(case.net, model)
    with torch.no_grad():
        instances = model([model_input(case.image(), case.original)])[0]["instances"]
    return recorder.in_caffe_layout(), as_detections(case.net, instances)


def as_detections(net: Net, instances: Any) -> list[np.ndarray]:
    """The plugin's detections per class, (n, 5): inclusive box and score."""
    boxes = instances.pred_boxes.tensor.numpy() - ONE
    rows = np.hstack([boxes, instances.scores.numpy()[:, None]])
    classes = instances.pred_classes.numpy()
    return [rows[classes == k] for k in range(net.num_classes - 1)]


def match(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray | None:
    """For each row of `theirs` the nearest row of `ours`; None if it is no one to one relation.

    The order may differ where scores tie.
    """
    if len(ours) != len(theirs):
        return None
    distance = np.abs(theirs[:, None] - ours[None]).max(2)
    nearest = distance.argmin(1) if len(ours) else np.zeros(0, int)
    return nearest if len(set(nearest)) == len(nearest) else None


def largest_difference(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]
) -> tuple[float, float]:
    """In pixels, in score; infinite if a class has other detections."""
    pixels = score = 0.0
    for mine, other in zip(ours, theirs, strict=True):
        order = match(mine, other)
        if order is None:
            return np.inf, np.inf
        difference = np.abs(mine[order] - other)
        pixels = max(pixels, difference[:, :4].max(initial=0))
        score = max(score, difference[:, 4].max(initial=0))
    return pixels, score

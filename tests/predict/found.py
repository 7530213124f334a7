"""Detections of two images: two in the one, none in the other."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances

NAMES = ("cat", "dog")


def found(boxes: list, classes: list, scores: list, *, features: bool = False) -> Instances:
    result = Instances((40, 60))
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    result.scores = torch.tensor(scores, dtype=torch.float32)
    if features:
        result.fc7 = torch.arange(len(boxes) * 3.0).reshape(-1, 3)
        result.proposal_index = torch.arange(len(boxes)) + 5
    return result


TWO = found([[1, 2, 11, 22], [0, 0, 60, 40]], [1, 0], [0.75, 0.5], features=True)
NONE = found([], [], [], features=True)

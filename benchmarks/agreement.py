"""How many detections of one model another finds too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torchvision.ops import box_iou


@dataclass(frozen=True)
class Found:
    """Detections in one image.

    Attributes:
        boxes: (R, 4) continuous XYXY in pixels of the image, best first.
        classes: (R,) int64.
    """

    boxes: torch.Tensor
    classes: torch.Tensor


def found_again(ours: Sequence[Found], theirs: Sequence[Found], iou: float = 0.5) -> float:
    """Percent of our detections that have a partner among theirs.

    Best first, each takes the one of its class that it overlaps most, if by ``iou`` or more and not
    taken yet.

    Args:
        ours: per image.
        theirs: per image, the same images.
        iou: 0 to 1.

    Returns:
        0 to 100; 100 if there are none.
    """
    total, found = 0, 0
    for a, b in zip(ours, theirs, strict=True):
        overlaps = box_iou(a.boxes, b.boxes) * (a.classes[:, None] == b.classes)
        total += len(a.boxes)
        for row in overlaps if len(b.boxes) else ():
            best = int(row.argmax())
            if row[best] >= iou:
                found += 1
                overlaps[:, best] = 0
    return 100 * found / total if total else 100.0

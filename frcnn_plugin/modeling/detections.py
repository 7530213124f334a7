"""Which of a head's boxes are detections: NMS per class, best of the image. No weights here."""

from __future__ import annotations

import torch
from torchvision.ops import batched_nms


def select_detections(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    *,
    nms_thresh: float,
    topk: int,
    keep_ties: bool = False,
) -> torch.Tensor:
    """Non-maximum suppression within each class, then the best of all classes.

    Args:
        boxes: (D, 4), XYXY.
        scores: (D,).
        classes: (D,) int64.
        nms_thresh: IoU above which the lower-scored box is suppressed.
        topk: detections kept at most; negative: all.
        keep_ties: all that score as the last kept are kept as well (check E20).

    Returns:
        (n,) int64 indices, by descending score.

    Source: py-faster-rcnn test.py.
    """
    # The classes are kept apart by moving them to far places. Float32 coordinates would lose up to
    # 0.01 px there, enough to turn a suppression; double ones lose nothing.
    keep = batched_nms(boxes.double(), scores.double(), classes, nms_thresh)
    if keep_ties and 0 < topk < len(keep):
        return keep[scores[keep] >= scores[keep[topk - 1]]]
    return keep[:topk] if topk >= 0 else keep

"""What the event storage learns about the classifier while it trains."""

from __future__ import annotations

import torch
from detectron2.utils.events import get_event_storage


def log_classification(scores: torch.Tensor, gt_classes: torch.Tensor) -> None:
    """Write the host's statistics of the classifier to its event storage; a GPU waits once.

    Args:
        scores: (R, K+1).
        gt_classes: (R,) int64; K is background.
    """
    total = gt_classes.numel()
    if total == 0:
        return
    background = scores.shape[1] - 1
    predicted = scores.argmax(dim=1)
    right = predicted == gt_classes
    is_object = (gt_classes >= 0) & (gt_classes < background)
    counts = torch.stack(
        [right, is_object, right & is_object, is_object & (predicted == background)]
    )
    num_right, num_objects, right_objects, missed = counts.sum(dim=1).tolist()
    storage = get_event_storage()
    storage.put_scalar("fast_rcnn/cls_accuracy", num_right / total)
    if num_objects > 0:
        storage.put_scalar("fast_rcnn/fg_cls_accuracy", right_objects / num_objects)
        storage.put_scalar("fast_rcnn/false_negative", missed / num_objects)

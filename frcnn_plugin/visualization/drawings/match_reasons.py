"""Why each anchor got its label.

The labels come from the model; this only finds the rule that gave them, and complains when none
did, so a picture cannot show another rule than the one that is trained with.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from detectron2.structures import Boxes, pairwise_iou


class Reason(IntEnum):
    """In the order of the legend."""

    ABOVE = 0  # IoU >= the upper threshold with an object: positive
    BEST = 1  # the highest IoU with some object: positive
    BELOW = 2  # IoU below the lower threshold with all objects: negative
    BETWEEN = 3  # ignored
    OUTSIDE = 4  # crosses the border of the image: ignored


@dataclass(frozen=True)
class MatchReasons:
    """Labels of all anchors of an image, explained.

    Attributes:
        reason: (R,) int64 `Reason`.
        iou: (R,) highest IoU with an object, 0 without objects.
        best_object: (R,) the object it is the best anchor of; where it is of none, or outside, the
            one it overlaps most; -1 without objects.
        thresholds: the lower and the upper one.
    """

    reason: torch.Tensor
    iou: torch.Tensor
    best_object: torch.Tensor
    thresholds: tuple[float, float]

    def count(self, reason: Reason) -> int:
        """Number of anchors with this reason."""
        return int((self.reason == reason).sum())


def explain_matches(
    anchors: Boxes,
    labels: torch.Tensor,
    inside: torch.Tensor,
    gt_boxes: Boxes,
    thresholds: tuple[float, float],
) -> MatchReasons:
    """Find the reason of every label.

    Args:
        anchors: (R, 4), network-input pixels.
        labels: (R,) before sampling: 1 positive, 0 negative, -1 ignored.
        inside: (R,) bool, anchors that take part in matching.
        gt_boxes: (G, 4), same frame.
        thresholds: IoU below which an anchor is negative, and from which it is positive.

    Returns:
        the reasons.

    Raises:
        ValueError: a label that none of the rules gives.
    """
    low, high = thresholds
    iou = pairwise_iou(gt_boxes, anchors)  # (G, R)
    iou[:, ~inside] = iou[:, ~inside].clamp(max=0)  # they were gone before matching
    if iou.numel():
        best_iou, best_object = iou.max(dim=0)
        is_best = (iou == iou.amax(dim=1, keepdim=True)) & inside
        # Of several objects it is the best anchor of, the one it overlaps most.
        chosen = torch.where(is_best, iou, -1.0).argmax(dim=0)
        best_object = torch.where(is_best.any(dim=0), chosen, best_object)
        best = is_best.any(dim=0)
    else:
        best_iou = torch.zeros(len(anchors))
        best_object = torch.full((len(anchors),), -1)
        best = torch.zeros(len(anchors), dtype=torch.bool)

    reason = torch.full((len(anchors),), -1)
    positive, negative = labels == 1, labels == 0
    reason[positive & best] = Reason.BEST
    reason[positive & (best_iou >= high)] = Reason.ABOVE
    reason[negative & (best_iou < low)] = Reason.BELOW
    reason[(labels == -1) & (best_iou >= low) & (best_iou < high)] = Reason.BETWEEN
    reason[(labels == -1) & ~inside] = Reason.OUTSIDE
    if (reason < 0).any():
        first = int((reason < 0).nonzero()[0])
        raise ValueError(
            f"anchor {first} has label {int(labels[first])} with IoU {float(best_iou[first]):.4f}, "
            f"which no rule with the thresholds {low:g} and {high:g} gives"
        )
    return MatchReasons(reason, best_iou, best_object, thresholds)

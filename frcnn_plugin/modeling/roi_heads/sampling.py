"""Which RoIs train the detector: at random, the hard ones, or all. No weights here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torchvision.ops import batched_nms, nms

from ...errors import check_choice
from ...layers.nms import float32_threshold

# How RoIs are chosen, see MODEL.ROI_HEADS.SAMPLING.
SAMPLINGS = ("random", "hard", "all")
# A batch size of Detectron2's sampling that takes every RoI there is.
ALL = 2**31 - 1


@contextmanager
def objects_left_out(roi_heads: Any, left_out: bool) -> Iterator[None]:
    """Keep the objects themselves from the RoIs of ROI heads, for losses that are only measured."""
    keys = [k for k in ("proposal_append_gt", "append_gt") if left_out and hasattr(roi_heads, k)]
    before = {key: getattr(roi_heads, key) for key in keys}
    vars(roi_heads).update(dict.fromkeys(keys, False))
    try:
        yield
    finally:
        vars(roi_heads).update(before)


@dataclass(frozen=True)
class HardExamples:
    """Online hard example mining: the choice of RoIs by their losses.

    Attributes:
        count: RoIs kept of an image; fewer if there are not as many.
        nms_thresh: of RoIs with a larger IoU, only the one with the highest loss counts; 1 or
            more: all count.
        per_label: only RoIs of the same class exclude each other.

    Source: ohem; with ``nms_thresh`` 1, R-FCN.
    """

    count: int
    nms_thresh: float = 0.7
    per_label: bool = True

    def choose(
        self, boxes: torch.Tensor, losses: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        """Choose RoIs of one image (example O1).

        Args:
            boxes: (R, 4), continuous XYXY.
            losses: (R,).
            classes: (R,) int64, background among them.

        Returns:
            (n,) int64 indices, by descending loss.
        """
        if self.nms_thresh >= 1:
            return losses.argsort(descending=True, stable=True)[: self.count]
        thresh, boxes, losses = float32_threshold(self.nms_thresh), boxes.double(), losses.double()
        if self.per_label:
            return batched_nms(boxes, losses, classes, thresh)[: self.count]
        return nms(boxes, losses, thresh)[: self.count]

    def choose_rois(
        self, losses: dict[str, torch.Tensor], rois: list[Instances]
    ) -> tuple[list[Instances], torch.Tensor]:
        """Choose RoIs of each image by the sums of their losses.

        Args:
            losses: each (R,), of the RoIs of all images.
            rois: per image, labelled: ``proposal_boxes`` and ``gt_classes``.

        Returns:
            per image, the chosen RoIs; and their indices among all R, (n,) int64.
        """
        total = torch.stack([loss.detach().double() for loss in losses.values()]).sum(dim=0)
        chosen, indices, first = [], [], 0
        for r, loss in zip(rois, total.split([len(r) for r in rois]), strict=True):
            index = self.choose(r.proposal_boxes.tensor, loss, r.gt_classes)
            chosen.append(r[index])
            indices.append(index + first)
            first += len(r)
        return chosen, torch.cat(indices)


def hard_examples(
    sampling: str, count: int, nms_thresh: float, per_label: bool
) -> HardExamples | None:
    """Return what chooses RoIs by their losses for a value of ``SAMPLING``; None: nothing does.

    The other arguments are those of :class:`HardExamples`.

    Raises:
        UserError: unknown sampling.
    """
    check_choice("MODEL.ROI_HEADS.SAMPLING", sampling, SAMPLINGS)
    return HardExamples(count, nms_thresh, per_label) if sampling == "hard" else None


def log_samples(rois: list[Instances], num_classes: int) -> None:
    """Log, as Detectron2's sampling does, how many objects and background boxes an image has."""
    objects = torch.stack([(r.gt_classes != num_classes).sum() for r in rois])
    num_objects = objects.double().mean().item()
    storage = get_event_storage()
    storage.put_scalar("roi_head/num_fg_samples", num_objects)
    storage.put_scalar("roi_head/num_bg_samples", sum(map(len, rois)) / len(rois) - num_objects)

"""Which boxes become proposals: clip, size filter, top-N, NMS, top-N. No weights here."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...layers.nms import prefix_nms
from ..box_ops import clip_inclusive


class Selection(NamedTuple):
    """Proposals of one image, by descending score, and where they come from.

    Attributes:
        boxes: (P, 4), continuous XYXY in network-input pixels.
        scores: (P,).
        indices: (P,) int64, their rows among the decoded boxes, hence their anchors.
        counts: number of boxes left after each step, in order: "candidates", "large" (after
            clipping and the size filter), "pre_nms", "nms" (survivors of the whole suppression),
            "proposals". None unless asked for.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    indices: torch.Tensor
    counts: dict[str, int] | None = None


def select_proposals(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    image_size: tuple[int, int],
    *,
    min_side: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    nms_thresh: float,
    count: bool = False,
) -> Selection:
    """Turn the decoded boxes of one image into proposals.

    The steps, in the originals' order: clip to the image; drop boxes with a side below
    ``min_side`` (or without area); sort by score; keep ``pre_nms_topk``; NMS; keep
    ``post_nms_topk``.

    Args:
        boxes: (R, 4), continuous XYXY in network-input pixels. Boxes with NaN are dropped.
        scores: (R,), any monotone score; boxes whose score is not finite are dropped.
        image_size: (height, width) of the network input.
        min_side: pixels; a side of exactly this length is kept.
        pre_nms_topk: boxes that enter NMS; 0 or less: all.
        post_nms_topk: proposals returned at most.
        nms_thresh: IoU above which the lower-scored box is suppressed.
        count: also count what each step leaves; NMS then cannot stop at ``post_nms_topk``.

    Returns:
        at most ``post_nms_topk`` proposals.

    Source: py-faster-rcnn proposal_layer.py, MATLAB proposal_test.m.
    """
    # First, so that only the part of a box inside the image counts: a wide box that hangs out may
    # be too small, and overlaps are those of the visible parts. A box outside stays one pixel wide
    # at the border, as in the originals, and goes only if ``min_side`` says so.
    clipped = clip_inclusive(boxes, image_size)
    sides = clipped[:, 2:] - clipped[:, :2]
    # Before the first top-N, so that small boxes take no place among the best 6000
    # (proposal_layer.py; Detectron2 filters afterwards, example E34). Indices and not a mask, whose
    # entries a GPU would count again at each use.
    large = ((sides >= min_side) & (sides > 0)).all(dim=1) & scores.isfinite()
    large = large.nonzero().squeeze(1)
    kept_boxes, kept_scores = clipped[large], scores[large]

    # Stable: equal scores stay in the order of the anchors, so that results can be repeated.
    # ONNX cannot say so, but its operator keeps that order.
    stable = {} if torch.onnx.is_in_onnx_export() else {"stable": True}
    kept_scores, order = kept_scores.sort(descending=True, **stable)
    if pre_nms_topk > 0:
        kept_scores, order = kept_scores[:pre_nms_topk], order[:pre_nms_topk]
    kept_boxes = kept_boxes[order]

    limit = len(kept_boxes) if count else post_nms_topk
    keep = prefix_nms(kept_boxes, kept_scores, nms_thresh, limit)
    counts = None
    if count:
        survivors, keep = len(keep), keep[:post_nms_topk]
        counts = {
            "candidates": len(boxes),
            "large": len(large),
            "pre_nms": len(order),
            "nms": survivors,
            "proposals": len(keep),
        }
    return Selection(kept_boxes[keep], kept_scores[keep], large[order[keep]], counts)

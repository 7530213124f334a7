"""Which boxes are proposals: clip, size filter, top-N, NMS, top-N. No weights here."""

from __future__ import annotations

import torch

from ...layers.nms import prefix_nms


def inside_image(boxes: torch.Tensor, image_size: tuple[int, int], border: float) -> torch.Tensor:
    """Which boxes cross the image's border by at most ``border`` pixels.

    A box that ends flush with the image is inside, unlike in the host's ``Boxes.inside_box``
    (point 6 of docs/faithfulness.md).

    Args:
        boxes: (R, 4), continuous XYXY.
        image_size: (height, width).
        border: pixels; negative: every box counts as inside.

    Returns:
        (R,) bool.
    """
    if border < 0:
        return torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    height, width = image_size
    x1, y1, x2, y2 = boxes.unbind(1)
    return (x1 >= -border) & (y1 >= -border) & (x2 <= width + border) & (y2 <= height + border)


def clip_boxes(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Boxes cut off at the image's border; the host's ``Boxes.clip`` makes a GPU wait for a check.

    Args:
        boxes: (R, 4), continuous XYXY.
        image_size: (height, width).

    Returns:
        (R, 4), new.
    """
    height, width = image_size
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack(
        (x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=1
    )


def select_proposals(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    image_size: tuple[int, int],
    *,
    min_side: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    nms_thresh: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn the decoded boxes of one image into proposals.

    Algorithm, in the originals' order (the host filters by size *after* the first top-N, check
    E34): clip to the image; drop boxes with a side below ``min_side`` (or without area); sort by
    score; keep ``pre_nms_topk``; NMS; keep ``post_nms_topk``.

    Args:
        boxes: (R, 4), continuous XYXY in network-input pixels. Boxes with NaN are dropped.
        scores: (R,), any monotone score.
        image_size: (height, width) of the network input.
        min_side: pixels; a side of exactly this length is kept.
        pre_nms_topk: boxes that enter NMS; 0 or less: all.
        post_nms_topk: proposals returned at most.
        nms_thresh: IoU above which the lower-scored box is suppressed.

    Returns:
        (P, 4) boxes and (P,) scores, sorted by descending score.

    Source: py-faster-rcnn proposal_layer.py, MATLAB proposal_test.m.
    """
    boxes = clip_boxes(boxes, image_size)
    sides = boxes[:, 2:] - boxes[:, :2]
    # Indices, as each mask would make a GPU wait.
    large = ((sides >= min_side) & (sides > 0)).all(dim=1).nonzero().squeeze(1)
    boxes, scores = boxes[large], scores[large]

    scores, order = scores.sort(descending=True, stable=True)
    if pre_nms_topk > 0:
        scores, order = scores[:pre_nms_topk], order[:pre_nms_topk]
    boxes = boxes[order]
    keep = prefix_nms(boxes, scores, nms_thresh, post_nms_topk)
    return boxes[keep], scores[keep]

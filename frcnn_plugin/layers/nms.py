"""Non-maximum suppression, hard and soft, that stops when enough boxes are kept."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.ops import nms

# How soft suppression decays scores.
DECAYS = ("linear", "gaussian")
_TINY = np.finfo(np.float32).tiny  # in place of a union of 0

_PIECE = 1024  # boxes that enter a suppression at a time
_MANY = 128  # kept boxes from which on a piece is compared with them before its own suppression
_ROWS = 256  # boxes compared with the kept ones at a time; the arrays then stay in the cache


def float32_threshold(thresh: float) -> float:
    """Round an IoU threshold to what Caffe's kernels see.

    torchvision compares float32 IoUs with a double threshold and so suppresses an IoU of exactly
    0.3, which the originals keep (example E14b). Rounding the threshold to float32 first agrees.
    """
    return float(np.float32(thresh))


def prefix_nms(
    boxes: torch.Tensor, scores: torch.Tensor, thresh: float, limit: int
) -> torch.Tensor:
    """Find the first ``limit`` survivors of non-maximum suppression, exactly.

    Only *kept* boxes with higher scores suppress a box. So boxes are taken piece by piece and
    compared with those kept so far, until enough are kept: the result is that of one suppression of
    all, whose time grows with the square of their number.

    Args:
        boxes: (R, 4), sorted by descending score.
        scores: (R,), descending.
        thresh: boxes with IoU > thresh to a kept one are suppressed; as float32, see
            :func:`float32_threshold`.
        limit: number of survivors wanted.

    Returns:
        (min(limit, survivors),) int64 indices, ascending.
    """
    thresh = float32_threshold(thresh)
    if not _in_pieces(boxes):
        return nms(boxes, scores, thresh)[:limit]
    keep = torch.empty(0, dtype=torch.int64)
    for piece in torch.arange(len(boxes)).split(_PIECE):
        if len(keep) < _MANY:
            candidates = torch.cat((keep, piece))
            keep = candidates[nms(boxes[candidates], scores[candidates], thresh)]
        else:
            piece = piece[~_overlap_any(boxes[piece], boxes[keep], thresh)]
            keep = torch.cat((keep, piece[nms(boxes[piece], scores[piece], thresh)]))
        if len(keep) >= limit:
            break
    return keep[:limit]


def soft_nms(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    *,
    method: str,
    thresh: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 0.001,
    limit: int = -1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decay the scores of boxes by their overlap with better ones of their class.

    The best box of a class is taken; the scores of its others decay by their IoU with it, and those
    below ``min_score`` are dropped; and so on (examples S1 to S3). A class's best always stays.

    Args:
        boxes: (D, 4), continuous XYXY.
        scores: (D,), finite.
        classes: (D,) int64.
        method: "linear": score * (1 - IoU) where IoU > ``thresh``; "gaussian":
            score * exp(-IoU^2 / ``sigma``).
        thresh: N_t.
        sigma: of the Gaussian.
        min_score: see above.
        limit: how many of the best of all classes are wanted, beside those that score as the last
            of them; -1: all.

    Returns:
        (n,) int64 indices, by descending decayed score; and these scores, (n,).

    Raises:
        ValueError: another method.

    Source: soft-nms cpu_nms.pyx.
    """
    if method not in DECAYS:
        raise ValueError(f"method is {method!r}, not one of {', '.join(DECAYS)}")
    # Each choice depends on the one before, for which a GPU would have to be asked: so numpy, on
    # the boxes of one class at a time. Scores only fall, so the first choices are the best of all.
    order = classes.argsort(stable=True)
    x1, y1, x2, y2 = np.ascontiguousarray(boxes[order].detach().float().cpu().numpy().T)
    decayed = scores[order].detach().float().cpu().numpy()
    areas = (x2 - x1) * (y2 - y1)
    ends = classes.bincount().cumsum(0).tolist()
    spans = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False) if a < b]
    best = np.array([decayed[span].max() for span in spans])
    kept: list[int] = []
    kept_scores: list[float] = []
    while len(best):
        k = int(best.argmax())
        score, span = best[k], spans[k]
        enough = 0 <= limit <= len(kept) and (limit == 0 or score < kept_scores[limit - 1])
        if enough or score == -np.inf:
            break
        i = span.start + int(decayed[span].argmax())
        kept.append(i)
        kept_scores.append(score)
        width = np.minimum(x2[span], x2[i]) - np.maximum(x1[span], x1[i])
        height = np.minimum(y2[span], y2[i]) - np.maximum(y1[span], y1[i])
        intersection = np.maximum(width, 0) * np.maximum(height, 0)
        iou = intersection / np.maximum(areas[span] + areas[i] - intersection, _TINY)
        if method == "linear":
            decay = np.where(iou > thresh, 1 - iou, np.float32(1))
        else:
            decay = np.exp(iou * iou / -sigma)
        rest = decayed[span] * decay
        rest[rest < min_score] = -np.inf
        rest[i - span.start] = -np.inf
        decayed[span], best[k] = rest, rest.max()
    indices = order[torch.tensor(kept, dtype=torch.int64, device=order.device)]
    return indices, torch.from_numpy(np.array(kept_scores, np.float32)).to(scores)


def _in_pieces(boxes: torch.Tensor) -> bool:
    """Tell whether to go piece by piece: not on a GPU or in a traced graph, which cannot stop."""
    return not boxes.is_cuda and not torch.jit.is_tracing() and len(boxes) > _PIECE


def _overlap_any(boxes: torch.Tensor, others: torch.Tensor, thresh: float) -> torch.Tensor:
    """Find the boxes that have an IoU > ``thresh`` with any of the others.

    The IoU is at most the ratio of the areas, so each box is compared only with those of about its
    size. It is computed as torchvision's ``nms`` does, operation by operation, to the last bit.
    """
    areas, order = _areas(boxes).sort()
    other_areas, other_order = _areas(others).sort()
    x1, y1, x2, y2 = boxes[order].t().unsqueeze(2)  # (R, 1) each
    a1, b1, a2, b2 = others[other_order].t().contiguous()  # (K,) each
    ratio = 0.99 * max(thresh, 0)  # a little less, as areas and IoU are rounded
    first = torch.searchsorted(other_areas, areas * ratio).tolist()
    last = torch.searchsorted(other_areas, areas / ratio, right=True).tolist()
    overlap = torch.zeros(len(boxes), dtype=torch.bool)
    for start in range(0, len(boxes), _ROWS):
        rows = slice(start, min(start + _ROWS, len(boxes)))
        near = slice(first[rows.start], last[rows.stop - 1])
        width = torch.minimum(x2[rows], a2[near]).sub_(torch.maximum(x1[rows], a1[near]))
        height = torch.minimum(y2[rows], b2[near]).sub_(torch.maximum(y1[rows], b1[near]))
        intersection = width.clamp_(min=0).mul_(height.clamp_(min=0))
        union = (areas[rows, None] + other_areas[near]).sub_(intersection)
        if near.start < near.stop:
            overlap[order[rows]] = intersection.div_(union).amax(dim=1) > thresh
    return overlap


def _areas(boxes: torch.Tensor) -> torch.Tensor:
    x1, y1, x2, y2 = boxes.unbind(1)
    return (x2 - x1) * (y2 - y1)

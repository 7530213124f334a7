"""py-faster-rcnn's anchors, box arithmetic, NMS and proposal layer in numpy, inclusive corners.

Nothing here comes from frcnn_plugin or Detectron2. Arithmetic is in float32 where the original's
is. Decisions that float rounding could turn are watched: `Margins` keeps the smallest distance
from a threshold, so that a test can ask for inputs on which the result is not a matter of luck.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Margins:
    """Smallest distance of a decisive IoU from its NMS threshold, of a corner from a half cell."""

    iou: float = np.inf
    cell: float = np.inf

    def see_rois(self, rois: np.ndarray, scale: float = 1 / 16) -> None:
        cells = rois[:, 1:].astype(float) * scale
        # Clipped corners are exact in both programs, wherever they are.
        distance = np.abs(cells - np.floor(cells) - 0.5) / scale
        moved = (rois[:, 1:] != 0) & (rois[:, 1:] != rois[:, 1:].max(0))
        self.cell = min(self.cell, distance[moved].min(initial=np.inf))


def base_anchors(scales: tuple[int, ...] = (8, 16, 32)) -> np.ndarray:
    """(3 * scales, 4) around the window 0 0 15 15; ratio outside, scale inside."""
    anchors = []
    for ratio in (0.5, 1.0, 2.0):
        w = np.round(np.sqrt(16 * 16 / ratio))
        h = np.round(w * ratio)
        for s in scales:
            reach_x, reach_y = (w * s - 1) / 2, (h * s - 1) / 2
            anchors.append([7.5 - reach_x, 7.5 - reach_y, 7.5 + reach_x, 7.5 + reach_y])
    return np.array(anchors)


def all_anchors(height: int, width: int, scales: tuple[int, ...] = (8, 16, 32)) -> np.ndarray:
    """(height * width * A, 4): cell by cell, row-major, the anchors of a cell in order."""
    base = base_anchors(scales)
    y, x = np.mgrid[:height, :width] * 16
    shifts = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
    return (shifts + base).reshape(-1, 4)


def decode(boxes: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """(R, 4) and (R, 4K) to (R, 4K): widths count the last pixel, corners x2, y2 do not."""
    boxes = boxes.astype(np.float32)
    w = boxes[:, 2:3] - boxes[:, 0:1] + np.float32(1)
    h = boxes[:, 3:4] - boxes[:, 1:2] + np.float32(1)
    cx = boxes[:, 0:1] + np.float32(0.5) * w
    cy = boxes[:, 1:2] + np.float32(0.5) * h
    mx, my = deltas[:, 0::4] * w + cx, deltas[:, 1::4] * h + cy
    half_w = np.float32(0.5) * (np.exp(deltas[:, 2::4]) * w)
    half_h = np.float32(0.5) * (np.exp(deltas[:, 3::4]) * h)
    result = np.stack([mx - half_w, my - half_h, mx + half_w, my + half_h], axis=2)
    return result.reshape(deltas.shape).astype(np.float32)


def encode(boxes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(R, 4) and (R, 4) to (R, 4) deltas."""
    size = boxes[:, 2:] - boxes[:, :2] + 1
    target_size = targets[:, 2:] - targets[:, :2] + 1
    shift = (targets[:, :2] + 0.5 * target_size - boxes[:, :2] - 0.5 * size) / size
    return np.hstack([shift, np.log(target_size / size)]).astype(np.float32)


def clip(boxes: np.ndarray, height: float, width: float) -> np.ndarray:
    """All four corners into [0, width - 1], [0, height - 1]."""
    boxes = boxes.copy()
    for k in range(4):
        limit = np.float32((height if k % 2 else width) - 1)
        boxes[:, k::4] = np.maximum(np.minimum(boxes[:, k::4], limit), 0)
    return boxes


def iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(4,) with (R, 4): (R,), widths + 1."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:], boxes[:, 2:])
    inter = np.maximum(high - low + 1, 0).prod(1)
    area, areas = (box[2:] - box[:2] + 1).prod(), (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    return inter / (area + areas - inter)


def nms(boxes: np.ndarray, thresh: float, limit: int, margins: Margins) -> list[int]:
    """Indices of at most `limit` survivors among boxes (R, 4) sorted by score."""
    thresh = np.float32(thresh)
    alive = np.ones(len(boxes), dtype=bool)
    keep: list[int] = []
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        keep.append(i)
        if len(keep) == limit:
            break
        later = np.flatnonzero(alive[i + 1 :]) + i + 1
        overlaps = iou(boxes[i], boxes[later])
        margins.iou = min(margins.iou, np.abs(overlaps - thresh).min(initial=np.inf))
        alive[later[overlaps > thresh]] = False
    return keep


def by_score(scores: np.ndarray) -> np.ndarray:
    """Descending order."""
    return np.argsort(-scores, kind="stable")


def proposal_layer(
    prob: np.ndarray,
    deltas: np.ndarray,
    im_info: tuple[float, float, float],
    scales: tuple[int, ...],
    pre_nms: int,
    post_nms: int,
    margins: Margins,
) -> np.ndarray:
    """RoIs (P, 5).

    prob is (1, 2A, H, W), background first, deltas (1, 4A, H, W), im_info (height, width, scale).
    """
    num, (height, width) = prob.shape[1] // 2, prob.shape[2:]
    scores = prob[0, num:].transpose(1, 2, 0).reshape(-1)
    deltas = deltas[0].transpose(1, 2, 0).reshape(-1, 4)
    boxes = clip(decode(all_anchors(height, width, scales), deltas), im_info[0], im_info[1])
    sides = boxes[:, 2:] - boxes[:, :2] + 1
    large = (sides >= np.float32(16) * np.float32(im_info[2])).all(1)
    boxes, scores = boxes[large], scores[large]
    order = by_score(scores)[:pre_nms]
    boxes = boxes[order]
    boxes = boxes[nms(boxes, 0.7, post_nms, margins)]
    return np.hstack([np.zeros((len(boxes), 1), np.float32), boxes])

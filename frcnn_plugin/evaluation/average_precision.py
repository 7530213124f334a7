"""Average precision as PASCAL VOC defines it, without images, models or files.

Boxes are continuous XYXY; their IoU equals Caffe's "+1" arithmetic on inclusive ones.

Shape shorthand: D detections, G ground-truth boxes, T IoU thresholds.
"""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Metric = Literal["11point", "area"]
MatchRule = Literal[">=", ">"]


def average_precision(recall: FloatArray, precision: FloatArray, metric: Metric) -> float:
    """Reduce a precision-recall curve to one number.

    Args:
        recall: (D,) recall after each detection, best score first.
        precision: (D,) precision after each detection.
        metric: "11point" = mean over the recalls 0, 0.1, ..., 1 of the best precision at that
            recall or beyond (VOC2007, and the paper); "area" = area under the curve after making
            precision monotone (VOC2010 on).

    Returns:
        AP in [0, 1]; 0 without detections.

    Raises:
        ValueError: for another metric.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {get_args(Metric)}, got {metric!r}")
    if len(recall) == 0:
        return 0.0
    # Best precision at this recall or beyond; recall never falls along the curve.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if metric == "11point":
        # The thresholds as the original code has them: the fourth is 0.30000000000000004, so a
        # recall of exactly 3/10 does not reach it (example E19b, docs/worked_examples.md).
        thresholds = np.arange(0.0, 1.1, 0.1)
        first = np.searchsorted(recall, thresholds, side="left")
        reached = np.append(envelope, 0.0)[first]
        return float(reached.sum() / 11.0)
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def precision_recall(
    true_positive: BoolArray, ignored: BoolArray, num_ground_truth: int
) -> tuple[FloatArray, FloatArray]:
    """Cumulate matches into a curve.

    Args:
        true_positive: (D,) in descending order of score.
        ignored: (D,) detections that count neither way.
        num_ground_truth: objects to be found, difficult ones not counted; at least 1.

    Returns:
        recall (D,) and precision (D,).
    """
    found = np.cumsum(true_positive)
    counted = np.cumsum(~ignored)
    # Before the first detection that counts, precision is 0, as in the original.
    return found / num_ground_truth, found / np.maximum(counted, 1)


def match_detections(
    det_boxes: FloatArray,
    det_images: IntArray,
    gt_boxes: FloatArray,
    gt_images: IntArray,
    gt_ignored: BoolArray,
    thresholds: FloatArray,
    match: MatchRule = ">=",
) -> tuple[BoolArray, BoolArray]:
    """Match the detections of one class to its ground truth, as the VOC devkit does.

    Each detection, best score first, looks only at the ground truth it overlaps most (ignored ones
    included). If their IoU passes the threshold: an ignored one makes the detection ignored, a free
    one makes it a true positive, a taken one a false positive. Else it is a false positive.

    Args:
        det_boxes: (D, 4) continuous XYXY in descending order of score.
        det_images: (D,) index of each detection's image.
        gt_boxes: (G, 4) continuous XYXY.
        gt_images: (G,) index of each box's image.
        gt_ignored: (G,) difficult (or crowd) ones.
        thresholds: (T,) IoU thresholds.
        match: whether the IoU must reach the threshold (">=", the devkit and MATLAB) or exceed it
            (">", py-faster-rcnn).

    Returns:
        true_positive (T, D) and ignored (T, D).
    """
    best_gt, best_iou = best_overlaps(det_boxes, det_images, gt_boxes, gt_images)
    level = np.asarray(thresholds)[:, None]
    passes = best_iou >= level if match == ">=" else best_iou > level
    passes &= best_gt >= 0
    on_ignored = np.zeros(len(best_gt), dtype=bool)
    on_ignored[best_gt >= 0] = gt_ignored[best_gt[best_gt >= 0]]
    ignored = passes & on_ignored
    true_positive = np.zeros_like(passes)
    for row, candidates in enumerate(passes & ~on_ignored):
        positions = np.flatnonzero(candidates)
        # np.unique gives the first, that is the best-scored, claim on each ground truth.
        _, first = np.unique(best_gt[positions], return_index=True)
        true_positive[row, positions[first]] = True
    return true_positive, ignored


def best_overlaps(
    det_boxes: FloatArray, det_images: IntArray, gt_boxes: FloatArray, gt_images: IntArray
) -> tuple[IntArray, FloatArray]:
    """Find the ground truth that each detection overlaps most in its own image.

    Args:
        det_boxes: (D, 4) continuous XYXY.
        det_images: (D,) image indices.
        gt_boxes: (G, 4) continuous XYXY.
        gt_images: (G,) image indices.

    Returns:
        best_gt (D,): index into `gt_boxes`, the first one of equals, -1 where the image has none.
        best_iou (D,): IoU with it, 0 where the image has none.
    """
    best_gt = np.full(len(det_boxes), -1, dtype=np.int64)
    best_iou = np.zeros(len(det_boxes))
    by_image = np.argsort(gt_images, kind="stable")
    starts = np.searchsorted(gt_images[by_image], det_images, side="left")
    counts = np.searchsorted(gt_images[by_image], det_images, side="right") - starts
    with_gt = np.flatnonzero(counts)
    if len(with_gt) == 0:
        return best_gt, best_iou
    starts, counts = starts[with_gt], counts[with_gt]
    # All pairs (detection, ground truth of its image), grouped by detection.
    ends = np.cumsum(counts)
    offsets = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    pair_gt = by_image[np.repeat(starts, counts) + offsets]
    iou = paired_iou(det_boxes[np.repeat(with_gt, counts)], gt_boxes[pair_gt])
    best = np.maximum.reduceat(iou, ends - counts)
    at_best = np.flatnonzero(iou == np.repeat(best, counts))
    owner = np.repeat(np.arange(len(with_gt)), counts)[at_best]
    _, first = np.unique(owner, return_index=True)
    best_gt[with_gt] = pair_gt[at_best[first]]
    best_iou[with_gt] = best
    return best_gt, best_iou


def paired_iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the IoU of (N, 4) and (N, 4) continuous XYXY boxes, pair by pair: (N,)."""
    corner = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    intersection = np.prod(np.clip(corner, 0.0, None), axis=1)
    areas = np.prod(a[:, 2:] - a[:, :2], axis=1) + np.prod(b[:, 2:] - b[:, :2], axis=1)
    union = areas - intersection
    return np.divide(intersection, union, out=np.zeros(len(a)), where=union > 0)

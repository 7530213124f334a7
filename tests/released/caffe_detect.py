"""py-faster-rcnn's `im_detect` and the loop body of `test_net`, in numpy.

Nothing here comes from frcnn_plugin or Detectron2.
"""

from __future__ import annotations

import numpy as np

from .caffe_boxes import Margins, by_score, clip, decode, nms
from .caffe_net import Blobs


def im_scale(height: int, width: int, target: int = 600, longest: int = 1000) -> float:
    """Factor that an image is resized by."""
    scale = target / min(height, width)
    if np.round(scale * max(height, width)) > longest:
        scale = longest / max(height, width)
    return scale


def network_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """OpenCV rounds sizes half to even."""
    return int(np.rint(height * scale)), int(np.rint(width * scale))


def im_detect(
    blobs: Blobs, im_shape: tuple[int, int], scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (R, K) and boxes (R, 4K), inclusive, in the original image; class 0 is background."""
    boxes = blobs["rois"].numpy()[:, 1:] / np.float32(scale)
    boxes = clip(decode(boxes, blobs["bbox_pred"].numpy()), *im_shape)
    return blobs["cls_prob"].numpy(), boxes


def detections(
    scores: np.ndarray,
    boxes: np.ndarray,
    margins: Margins,
    thresh: float = 0.05,
    nms_thresh: float = 0.3,
    max_per_image: int = 100,
) -> list[np.ndarray]:
    """Per class but background (n, 5): inclusive box and score."""
    found = []
    for j in range(1, scores.shape[1]):
        rows = np.flatnonzero(scores[:, j] > np.float32(thresh))
        rows = rows[by_score(scores[rows, j])]
        class_boxes = boxes[rows, 4 * j : 4 * j + 4]
        rows = rows[nms(class_boxes, nms_thresh, -1, margins)]
        found.append(np.hstack([boxes[rows, 4 * j : 4 * j + 4], scores[rows, j : j + 1]]))
    every_score = np.concatenate([dets[:, 4] for dets in found])
    if len(every_score) > max_per_image:
        lowest = np.sort(every_score)[-max_per_image]
        found = [dets[dets[:, 4] >= lowest] for dets in found]
    return found

"""py-faster-rcnn's targets and losses, in numpy and torch, for samples that somebody else drew.

Which anchors and RoIs are drawn is random, so the caller says it; labels, regression targets and
weights follow here. Nothing here comes from frcnn_plugin or Detectron2.
"""

from __future__ import annotations

import numpy as np
import torch

from . import caffe_layers as caffe
from .caffe_boxes import all_anchors, encode, iou
from .caffe_net import Blobs, Net

STDS = np.array([0.1, 0.1, 0.2, 0.2])  # BBOX_NORMALIZE_STDS


def overlaps(boxes: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """(R, 4) and (G, 4) to (R, G)."""
    return np.stack([iou(g.astype(float), boxes.astype(float)) for g in gt], axis=1)


def anchor_labels(net: Net, height: int, width: int, gt: np.ndarray, info) -> np.ndarray:
    """anchor_target_layer.py before it samples: 1, 0 or -1 of all anchors (H*W*A,)."""
    anchors = all_anchors(height, width, net.scales)
    inside = (anchors[:, :2] >= 0).all(1)
    inside &= (anchors[:, 2] < info[1]) & (anchors[:, 3] < info[0])
    table = overlaps(anchors[inside], gt)
    labels = np.full(len(table), -1)
    labels[table.max(1) < 0.3] = 0
    labels[(table == table.max(0)).any(1)] = 1
    labels[table.max(1) >= 0.7] = 1
    result = np.full(len(anchors), -1)
    result[inside] = labels
    return result


def rpn_losses(
    net: Net, blobs: Blobs, labels: np.ndarray, gt: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """rpn_loss_cls and rpn_loss_bbox for sampled labels (H*W*A,); gt (G, 4) inclusive."""
    height, width = blobs["rpn_bbox_pred"].shape[2:]
    num = 3 * len(net.scales)
    anchors = all_anchors(height, width, net.scales)
    targets = encode(anchors, gt[overlaps(anchors, gt).argmax(1)])
    outside = np.zeros_like(targets)
    outside[labels >= 0] = 1 / (labels >= 0).sum()
    inside = np.repeat((labels == 1)[:, None], 4, axis=1).astype(np.float32)

    def blob(rows: np.ndarray) -> torch.Tensor:
        """(H*W*A, 4) to (1, 4A, H, W)."""
        return torch.as_tensor(rows.reshape(1, height, width, 4 * num).transpose(0, 3, 1, 2))

    # (1, A*H, W), as the scores in rpn_cls_score_reshape.
    ordered = labels.reshape(height, width, num).transpose(2, 0, 1).reshape(1, -1, width)
    cls = caffe.softmax_with_loss(blobs["rpn_cls_score_reshape"], torch.as_tensor(ordered).long())
    box = caffe.smooth_l1_loss(
        blobs["rpn_bbox_pred"], blob(targets), blob(inside), blob(outside), sigma=3.0
    )
    return cls, box


def roi_labels(rois: np.ndarray, gt: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Class (1..) of each RoI (R, 4), 0 for background."""
    table = overlaps(rois, gt)
    return np.where(table.max(1) >= 0.5, classes[table.argmax(1)], 0)


def head_losses(
    blobs: Blobs,
    labels: np.ndarray,
    rois: np.ndarray,
    gt: np.ndarray,
    mean: np.ndarray | None = None,
    std: np.ndarray | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """loss_cls and loss_bbox.

    RoIs (R, 4) and the ground truth of each, (R, 4); targets are normalised by mean and std
    (classes with background, 4), or by the fixed deviations.
    """
    columns = blobs["bbox_pred"].shape[1]
    targets = np.zeros((len(rois), columns), np.float32)
    inside = np.zeros_like(targets)
    deltas = encode(rois, gt)
    for r in np.flatnonzero(labels > 0):
        k = labels[r]
        normal = deltas[r] / STDS if std is None else (deltas[r] - mean[k]) / std[k]
        targets[r, 4 * k : 4 * k + 4] = normal
        inside[r, 4 * k : 4 * k + 4] = 1
    cls = caffe.softmax_with_loss(blobs["cls_score"], torch.as_tensor(labels).long())
    weights = torch.as_tensor(inside)
    box = caffe.smooth_l1_loss(
        blobs["bbox_pred"], torch.as_tensor(targets), weights, weights, sigma=1.0
    )
    return cls, box

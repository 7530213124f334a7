"""Caffe's layers as plain numpy and torch functions, from their published definitions.

Written for comparison with the plugin: nothing here comes from frcnn_plugin or Detectron2. Blobs
are float32 torch tensors (N, C, H, W) or (R, C); gradients flow through everything that Caffe
propagates through.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn import functional as F


def conv(x: torch.Tensor, weights: list[torch.Tensor], stride: int, pad: int) -> torch.Tensor:
    """Convolution; weight (out, in, k, k), bias (out,)."""
    return F.conv2d(x, weights[0], weights[1], stride=stride, padding=pad)


def inner_product(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """Every other axis flattened in (C, H, W) order; weight (out, C*H*W), bias (out,)."""
    return F.linear(x.reshape(len(x), -1), weights[0], weights[1])


def relu(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0)


def pooled_size(n: int, kernel: int, stride: int, pad: int) -> int:
    """pooling_layer.cpp: rounds up; a last window that starts in the padding is dropped."""
    size = math.ceil((n + 2 * pad - kernel) / stride) + 1
    if pad and (size - 1) * stride >= n + pad:
        size -= 1
    return size


def max_pool(x: torch.Tensor, kernel: int, stride: int, pad: int) -> torch.Tensor:
    """Max over windows clipped to the map."""
    height, width = x.shape[-2:]
    ph, pw = (pooled_size(n, kernel, stride, pad) for n in (height, width))
    below = (ph - 1) * stride + kernel - pad - height
    right = (pw - 1) * stride + kernel - pad - width
    padded = F.pad(x, (pad, max(right, 0), pad, max(below, 0)), value=-torch.inf)
    windows = padded.unfold(2, kernel, stride).unfold(3, kernel, stride)[:, :, :ph, :pw]
    return windows.flatten(4).amax(4)


def lrn_within_channel(x: torch.Tensor, size: int, alpha: float, beta: float) -> torch.Tensor:
    """lrn_layer.cpp: square, average over size x size (zeros around), power, product."""
    pad = size // 2
    energy = F.pad(x * x, (pad, pad, pad, pad))
    mean = sum(
        energy[:, :, i : i + x.shape[2], j : j + x.shape[3]]
        for i in range(size)
        for j in range(size)
    ) / (size * size)
    return x * (1 + alpha * mean) ** (-beta)


def dropout(
    x: torch.Tensor, ratio: float, scale_train: bool, mask: torch.Tensor | None
) -> torch.Tensor:
    """`mask` of 0 and 1 in the train phase, None in the test phase."""
    if mask is None:
        return x if scale_train else x * (1 - ratio)
    return x * mask / (1 - ratio) if scale_train else x * mask


def c_round(x: np.ndarray) -> np.ndarray:
    """C's round: halves away from zero."""
    return np.where(x < 0, np.ceil(x - np.float32(0.5)), np.floor(x + np.float32(0.5)))


def roi_pool(x: torch.Tensor, rois: np.ndarray, side: int, scale: float = 1 / 16) -> torch.Tensor:
    """roi_pooling_layer.cu; rois (R, 5) of batch index and inclusive corners, float32."""
    channels, height, width = x.shape[1:]
    # One more cell at the end, of zeros, for bins that are empty.
    flat = torch.cat([x.flatten(2), x.new_zeros(len(x), channels, 1)], dim=2)
    maps = x.detach().numpy()
    cells = c_round(rois[:, 1:] * np.float32(scale)).astype(int)
    argmax = np.full((len(rois), channels, side * side), height * width)
    for r, (xs, ys, xe, ye) in enumerate(cells):
        image = maps[int(rois[r, 0])]
        bin_h = np.float32(max(ye - ys + 1, 1)) / np.float32(side)
        bin_w = np.float32(max(xe - xs + 1, 1)) / np.float32(side)
        for i in range(side):
            top = min(max(int(np.floor(np.float32(i) * bin_h)) + ys, 0), height)
            end = min(max(int(np.ceil(np.float32(i + 1) * bin_h)) + ys, 0), height)
            for j in range(side):
                left = min(max(int(np.floor(np.float32(j) * bin_w)) + xs, 0), width)
                stop = min(max(int(np.ceil(np.float32(j + 1) * bin_w)) + xs, 0), width)
                if end <= top or stop <= left:
                    continue
                first = image[:, top:end, left:stop].reshape(channels, -1).argmax(1)
                row, column = np.divmod(first, stop - left)
                argmax[r, :, i * side + j] = (row + top) * width + column + left
    batch = torch.as_tensor(rois[:, 0].astype(int))
    pooled = flat[batch].gather(2, torch.as_tensor(argmax)) if len(rois) else flat[:0, :, :1]
    return pooled.reshape(len(rois), channels, side, side) if len(rois) else pooled


def softmax_with_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """SoftmaxWithLoss along axis 1, ignore_label -1, divided by the labels that count."""
    log_prob = scores - scores.logsumexp(1, keepdim=True)
    valid = labels >= 0
    picked = log_prob.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    return -(picked * valid).sum() / max(int(valid.sum()), 1)


def smooth_l1_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    inside: torch.Tensor,
    outside: torch.Tensor,
    sigma: float,
) -> torch.Tensor:
    """SmoothL1Loss: weights inside and outside the function, divided by the first dimension."""
    d = inside * (pred - target)
    knee = 1 / sigma**2
    value = torch.where(d.abs() < knee, 0.5 * sigma**2 * d * d, d.abs() - 0.5 * knee)
    return (outside * value).sum() / len(pred)

"""The transcription itself: slow plain loops; literals by hand or from docs/worked_examples.md."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from . import caffe_boxes, caffe_layers
from .caffe_boxes import Margins
from .caffe_detect import detections, im_scale, network_size


def test_convolution_is_a_correlation() -> None:
    """As Caffe's im2col and matrix product: not mirrored, zeros around."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 5, 6, generator=generator)
    weight, bias = torch.randn(3, 2, 3, 3, generator=generator), torch.tensor([1.0, 2.0, 3.0])
    padded = torch.zeros(2, 7, 8)
    padded[:, 1:-1, 1:-1] = x[0]
    expected = torch.empty(3, 3, 3)
    for row in range(3):
        for column in range(3):
            patch = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            expected[:, row, column] = (weight * patch).sum((1, 2, 3)) + bias
    assert torch.allclose(caffe_layers.conv(x, [weight, bias], 2, 1)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "kernel", "stride", "pad", "expected"),
    [(75, 2, 2, 0, 38), (600, 2, 2, 0, 300), (300, 3, 2, 1, 151), (4, 3, 2, 1, 3), (5, 2, 2, 1, 3)],
)
def test_pooled_size(n: int, kernel: int, stride: int, pad: int, expected: int) -> None:
    """By hand; the last one: ceil(5 / 2) + 1 = 4 windows, the fourth of which starts in padding."""
    assert caffe_layers.pooled_size(n, kernel, stride, pad) == expected
    assert caffe_layers.max_pool(torch.zeros(1, 1, n, n), kernel, stride, pad).shape[2] == expected


def test_max_pool() -> None:
    x = -torch.arange(9.0).reshape(1, 1, 3, 3)
    assert caffe_layers.max_pool(x, 2, 2, 0).tolist() == [[[[0, -2], [-6, -8]]]]


def test_lrn_e16() -> None:
    out = caffe_layers.lrn_within_channel(torch.full((1, 1, 4, 4), 100.0), 3, 5e-5, 0.75)
    found = [out[0, 0, 0, 0].item(), out[0, 0, 0, 1].item(), out[0, 0, 1, 1].item()]
    assert found == pytest.approx([86.027513, 80.592745, 73.778795])


def test_dropout_e25() -> None:
    x, mask = torch.tensor([3.0, 3.0]), torch.tensor([1.0, 0.0])
    assert caffe_layers.dropout(x, 0.5, True, mask).tolist() == [6, 0]
    assert caffe_layers.dropout(x, 0.5, True, None).tolist() == [3, 3]
    assert caffe_layers.dropout(x, 0.5, False, mask).tolist() == [3, 0]
    assert caffe_layers.dropout(x, 0.5, False, None).tolist() == [1.5, 1.5]


@pytest.mark.parametrize(
    ("roi", "expected"),
    [
        ([0, 0, 47, 47], [7, 9, 19, 21]),
        ([8, 8, 40, 40], [14, 15, 20, 21]),
        ([0, 0, 56, 24], [8, 10, 14, 16]),
        ([32, 32, 10, 10], [14, 14, 14, 14]),
        ([200, 200, 300, 300], [0, 0, 0, 0]),
    ],
)
def test_roi_pool_e15b(roi: list[int], expected: list[int]) -> None:
    ramp = torch.arange(36.0).reshape(1, 1, 6, 6).requires_grad_()
    rois = np.array([[0, *roi]], np.float32)
    pooled = caffe_layers.roi_pool(ramp, rois, 2)
    assert pooled.flatten().tolist() == expected
    pooled.sum().backward()
    assert set(ramp.grad.flatten().nonzero().flatten().tolist()) == set(expected) - {0}


def test_losses_e11() -> None:
    """E11b: softmax with an ignored label; E11, E11c: smooth L1 of sigma 3 and 1."""
    scores = torch.tensor([[0.2, 0.5], [1, -1], [0.3, 0.3], [9, 9]])
    labels = torch.tensor([1, 0, 0, -1])
    assert caffe_layers.softmax_with_loss(scores, labels).item() == pytest.approx(0.458143, 1e-5)
    d = torch.tensor([[0.05, -0.2, 0.0, 0.5]])
    one = torch.ones(1, 4)
    for sigma, total in ((3.0, 0.600139), (1.0, 0.14625)):
        loss = caffe_layers.smooth_l1_loss(d, 0 * d, one, one, sigma)
        assert loss.item() == pytest.approx(total, 1e-5)
    weighted = caffe_layers.smooth_l1_loss(d, 0 * d, one, one / 3, 3.0)
    assert weighted.item() == pytest.approx(0.200046, 1e-5)


def test_anchors_e1() -> None:
    base = caffe_boxes.base_anchors()
    assert base[[0, 4, 8]].tolist() == [
        [-84, -40, 99, 55],
        [-120, -120, 135, 135],
        [-168, -344, 183, 359],
    ]
    assert caffe_boxes.all_anchors(38, 63)[589].tolist() == [-88, -104, 167, 151]  # E3b


def test_decode_and_encode_e5_e26() -> None:
    box = np.array([[200, 40, 455, 295]], np.float32)
    decoded = caffe_boxes.decode(box, np.array([[0.1, -0.2, 0.05, -0.1]], np.float32))
    assert decoded[0].tolist() == pytest.approx([219.0373, 0.98081, 488.1627, 232.61919], abs=1e-4)
    deltas = caffe_boxes.encode(np.array([[0.0, 0, 9, 9]]), np.array([[1.0, 2, 12, 16]]))
    assert deltas[0].tolist() == pytest.approx([0.2, 0.45, 0.182322, 0.405465], abs=1e-6)


def test_nms_e14() -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 0, 9, 4], [0, 0, 9, 2]], np.float32)
    assert caffe_boxes.nms(boxes[:2], 0.5, -1, Margins()) == [0, 1]
    assert caffe_boxes.nms(boxes[::2], 0.3, -1, Margins()) == [0, 1]
    margins = Margins()
    assert caffe_boxes.nms(boxes, 0.4, -1, margins) == [0, 2]
    assert margins.iou == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize(
    ("original", "size"),
    [
        ((375, 500), (600, 800)),
        ((333, 500), (600, 901)),
        ((299, 500), (598, 1000)),
        ((200, 500), (400, 1000)),
        ((400, 503), (600, 754)),
    ],
)
def test_resize_e7(original: tuple[int, int], size: tuple[int, int]) -> None:
    assert network_size(*original, im_scale(*original)) == size


def test_limit_e20() -> None:
    """Four of five boxes stay at a limit of 2: three tie for the second place."""
    scores = np.array([[0.1, s] for s in (0.9, 0.8, 0.8, 0.8, 0.1)], np.float32)
    boxes = np.array([[0, 0, 0, 0, 50 * i, 0, 50 * i + 9, 9] for i in range(5)], np.float32)
    (found,) = detections(scores, boxes, Margins(), max_per_image=2)
    assert len(found) == 4

"""RoI max pooling: to the bit torchvision's operator, with Caffe's gradient."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torchvision.ops import roi_pool

from frcnn_plugin.layers.roi_max_pool import CaffeRoIPool, roi_max_pool

GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def random_boxes(count: int, seed: int) -> torch.Tensor:
    """Inside, outside and across the border of a 400x250 image; some inverted."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 4, generator=generator) - 0.2) * torch.tensor([600, 400, 600, 400])


def expected(features: torch.Tensor, rois: list[torch.Tensor], size: int) -> torch.Tensor:
    return roi_pool(features, rois, size, 1 / 16)


@pytest.mark.parametrize("size", [7, 2, 1])
@pytest.mark.parametrize("channels_last", [True, False])
def test_equals_the_operator(size: int, channels_last: bool) -> None:
    features = torch.randn(2, 300, 16, 25, generator=torch.Generator().manual_seed(size))
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    rois = [random_boxes(60, 1), random_boxes(30, 2)]
    assert torch.equal(roi_max_pool(features, rois, size, 1 / 16), expected(features, rois, size))


def test_every_size_of_roi() -> None:
    """float32 decides where bins of n / 7 cells begin and end."""
    features = torch.randn(1, 3, 40, 64, generator=torch.Generator().manual_seed(0))
    sides = torch.arange(64.0) * 16
    rois = [torch.stack([sides * 0, sides * 0, sides, sides.flip(0)], dim=1)]
    assert torch.equal(roi_max_pool(features, rois, 7, 1 / 16), expected(features, rois, 7))


@pytest.mark.parametrize("size", [7, 13])
def test_fine_map(size: int) -> None:
    """Stride 4: bins of up to 22 rows, of which only some heights are tabulated, in parts."""
    generator = torch.Generator().manual_seed(size)
    features = torch.randn(1, 40, 150, 250, generator=generator)
    rois = random_boxes(80, 3) * 2.5
    found = roi_max_pool(features, [rois], size, 1 / 4)
    assert torch.equal(found, roi_pool(features, [rois], size, 1 / 4))


def test_one_cell_and_no_roi() -> None:
    features = torch.randn(2, 3, 1, 1)
    rois = [torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 15.0, 15.0], [90.0, 90.0, 99.0, 99.0]])]
    assert torch.equal(roi_max_pool(features, rois, 7, 1 / 16), expected(features, rois, 7))
    assert roi_max_pool(features, [rois[0]] * 2, 7, 1 / 16).shape == (0, 3, 7, 7)


def caffes_gradient(
    features: torch.Tensor, rois: list[list[int]], size: int, upstream: torch.Tensor
) -> torch.Tensor:
    """Caffe's backward pass on the CPU in plain loops: RoIs in cells, of one image, one channel.

    Source: Caffe roi_pooling_layer.cu, where each cell gathers from the bins that it may have won.
    """
    height, width = features.shape
    gradient = torch.zeros(height, width)
    for roi, (x1, y1, x2, y2) in enumerate(rois):
        starts, bins = (y1, x1), []
        for first, last in ((y1, y2), (x1, x2)):
            bins.append(np.float32(max(last - first + 1, 1)) / np.float32(size))
        for ph, pw in itertools.product(range(size), range(size)):
            best, winner = -math.inf, None
            spans = []
            for i, start, step, limit in zip((ph, pw), starts, bins, (height, width), strict=True):
                low, high = math.floor(np.float32(i) * step), math.ceil(np.float32(i + 1) * step)
                low, high = (min(max(cell + start, 0), limit) for cell in (low, high))
                spans.append(range(low, high))
            for y, x in itertools.product(*spans):
                if features[y, x] > best:
                    best, winner = float(features[y, x]), (y, x)
            if winner and y1 <= winner[0] <= y2 and x1 <= winner[1] <= x2:
                gradient[winner] += upstream[roi, 0, ph, pw]
    return gradient


@pytest.mark.parametrize(
    "rois",
    [
        [[0, 0, 56, 56]],  # the last of 7 bins reaches a 58th row and column, in float32
        [[2, 1, 58, 5], [3, 2, 9, 58]],
        [[0, 0, 13, 13], [2, 1, 58, 5], [5, 5, 5, 5]],
        [[9, 3, 5, 6], [3, 9, 6, 5]],  # corners exchanged: no gradient
        [[50, 50, 80, 70], [80, 80, 90, 90], [-9, -9, 47, 47]],  # over the border, outside
    ],
)
@pytest.mark.parametrize("ascending", [True, False])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_gradient_is_caffes(rois: list[list[int]], ascending: bool, device: str) -> None:
    features = torch.arange(60.0 * 60).view(1, 1, 60, 60)
    if not ascending:
        features = torch.rand(1, 1, 60, 60, generator=torch.Generator().manual_seed(0))
    features = features.to(device).requires_grad_()
    boxes = torch.tensor([[0, *roi] for roi in rois], dtype=torch.float32, device=device) * 16
    pooled = CaffeRoIPool(7, 1 / 16)(features, boxes)
    assert torch.equal(pooled, roi_pool(features, boxes, 7, 1 / 16))
    upstream = torch.rand(pooled.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(pooled, features, upstream.to(device))
    expected = caffes_gradient(features[0, 0].detach().cpu(), rois, 7, upstream)
    torch.testing.assert_close(gradient[0, 0].cpu(), expected)


def test_cell_beyond_the_roi_gets_no_gradient() -> None:
    """57 cells in 7 bins: the maximum of an ascending row is in the 58th, cell 57."""
    row = torch.arange(64.0).view(1, 1, 1, 64).requires_grad_()
    pooled = CaffeRoIPool(7, 1 / 16)(row, torch.tensor([[0.0, 0, 0, 56 * 16, 0]]))
    assert pooled[0, 0, 0].tolist() == [8, 16, 24, 32, 40, 48, 57]
    pooled.sum().backward()
    assert row.grad is not None
    # 7 rows of bins, all of the one row of cells
    assert row.grad.flatten().nonzero().flatten().tolist() == [8, 16, 24, 32, 40, 48]
    assert row.grad.sum() == 6 * 7


def test_rounding_is_exact() -> None:
    """The float32 below 0.5 is 0, though 0.5 added to it gives 1."""
    below = torch.nextafter(torch.tensor(8.0), torch.tensor(0.0)).item()
    features = torch.arange(4.0).view(1, 1, 1, 4)
    rois = [torch.tensor([[below, 0.0, below, 0.0], [8.0, 0.0, 8.0, 0.0], [-8.0, 0, 24, 0]])]
    pooled = roi_max_pool(features, rois, 1, 1 / 16)
    assert torch.equal(pooled, expected(features, rois, 1))
    assert pooled.flatten().tolist() == [0, 1, 2]

"""Position-sensitive RoI pooling, against numbers from Caffe's rule and a loop over its cells."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import ps_roi_pool as torchvision_ps_roi_pool

from frcnn_plugin.layers import PSRoIPool, ps_roi_pool

RAMP = torch.arange(36.0).view(1, 1, 6, 6).repeat(1, 4, 1, 1)
SCALE = 1 / 16
# Inclusive RoI on a 6x6 ramp in all channels, k = 2 -> bins.
EXAMPLES = {
    "P1": ([0, 0, 47, 47], [[3.5, 4.5], [9.5, 10.5]]),
    "P2": ([8, 8, 40, 40], [[3.5, 4.5], [9.5, 10.5]]),
    "P3 the whole map": ([0, 0, 95, 95], [[7, 10], [25, 28]]),
    "P4 corners exchanged": ([32, 32, 10, 10], [[14, 14], [14, 14]]),
    "P5 outside": ([200, 200, 300, 300], [[0, 0], [0, 0]]),
    "P6": ([0, 0, 56, 24], [[0.5, 2], [3.5, 5]]),
    "P7 last cell": ([80, 80, 95, 95], [[35, 35], [35, 35]]),
}


def rois_of(*boxes: list[float]) -> torch.Tensor:
    return torch.tensor([[0.0, *box] for box in boxes])


@pytest.mark.parametrize(("box", "expected"), EXAMPLES.values(), ids=EXAMPLES.keys())
def test_examples(box: list[float], expected: list[list[float]]) -> None:
    (pooled,) = PSRoIPool(2, SCALE)(RAMP, rois_of(box))
    assert pooled.tolist() == [expected]


def test_order_of_channels() -> None:  # example P8
    maps = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 6, 6)
    (pooled,) = ps_roi_pool(maps, rois_of([0, 0, 95, 95]), 2, SCALE)
    assert pooled.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]  # 4d + 2 * row + column


def test_torchvisions_operator_is_another() -> None:
    """If it ever becomes Caffe's, ours is superfluous."""
    rois = rois_of([80, 80, 95, 95])
    assert torchvision_ps_roi_pool(RAMP, rois, 2, SCALE).max() == 0
    assert ps_roi_pool(RAMP, rois, 2, SCALE).min() == 35


def loop(maps: torch.Tensor, rois: torch.Tensor, k: int) -> torch.Tensor:
    """Pool cell by cell, as psroi_pooling_layer.cu describes it; scalars are float32."""

    def c_round(value: float) -> float:
        return math.copysign(math.floor(abs(value) + 0.5), value)

    def f32(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float32)

    height, width = maps.shape[2:]
    out = maps.new_zeros(len(rois), maps.shape[1] // (k * k), k, k)
    for r, (index, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (f32(c_round(c)) for c in corners)
        left, top, right, bottom = x1 * SCALE, y1 * SCALE, (x2 + 1) * SCALE, (y2 + 1) * SCALE
        bin_w, bin_h = ((b - a).clamp(min=0.1) / k for a, b in ((left, right), (top, bottom)))
        for i in range(k):
            for j in range(k):
                rows = [int((i * bin_h + top).floor()), int(((i + 1) * bin_h + top).ceil())]
                cols = [int((j * bin_w + left).floor()), int(((j + 1) * bin_w + left).ceil())]
                rows = [min(max(v, 0), height) for v in rows]
                cols = [min(max(v, 0), width) for v in cols]
                cells = maps[int(index), :, slice(*rows), slice(*cols)][i * k + j :: k * k]
                if cells[0].numel():
                    out[r, :, i, j] = cells.mean(dim=(1, 2))
    return out


def random_rois(number: int, maps: int) -> torch.Tensor:
    """RoIs inside, across the border and outside of maps of 11 x 17 cells, some exchanged."""
    corners = torch.rand(number, 4) * 340 - 30
    corners[::3, 2:] = corners[::3, :2] + 60 * torch.rand(len(corners[::3]), 2)
    corners[1::5] = corners[1::5].floor() + 0.5  # halves, where rounding rules differ
    return torch.cat([torch.randint(maps, (number, 1)).float(), corners], dim=1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_equals_the_loop(memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3 * 9, 11, 17).contiguous(memory_format=memory_format)
    rois = random_rois(60, 2)
    torch.testing.assert_close(
        ps_roi_pool(maps, rois, 3, SCALE), loop(maps, rois, 3), rtol=1e-6, atol=2e-7
    )


def test_large_neighbours_cost_no_accuracy() -> None:
    """Differences of sums over the whole map, in float32, would lose these small values."""
    maps = torch.full((1, 1, 60, 60), 1e4)
    maps[..., 50:, 50:] = 0.125
    (pooled,) = ps_roi_pool(maps, rois_of([800, 800, 959, 959]), 1, SCALE)
    assert abs(pooled.item() - 0.125) < 1e-6


def test_gradient() -> None:
    torch.manual_seed(1)
    maps = torch.randn(2, 2 * 4, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.cat([random_rois(12, 2), rois_of([0, 0, 47, 47])])
    assert torch.autograd.gradcheck(lambda m: ps_roi_pool(m, rois, 2, SCALE), [maps])


def test_each_cell_of_a_bin_gets_one_over_its_area() -> None:
    maps = torch.zeros(1, 4, 6, 6, requires_grad=True)
    ps_roi_pool(maps, rois_of([0, 0, 56, 24]), 2, SCALE).sum().backward()
    assert maps.grad is not None
    # 57 x 25 pixels are 3.5625 x 1.5625 cells: bins of columns 0-1 and 1-3, of rows 0 and 0-1.
    first, last = maps.grad[0, 0], maps.grad[0, 3]
    assert first[0].tolist() == [0.5, 0.5, 0, 0, 0, 0]
    assert first[1:].abs().max() == 0
    torch.testing.assert_close(last[:2, 1:4], torch.full((2, 3), 1 / 6))
    torch.testing.assert_close(maps.grad.sum(dim=(2, 3)), torch.ones(1, 4))


def test_no_rois() -> None:
    assert ps_roi_pool(RAMP, torch.empty(0, 5), 2, SCALE).shape == (0, 1, 2, 2)

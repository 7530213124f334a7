"""RoI max pooling without gradient: to the bit torchvision's operator."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_pool

from frcnn_plugin.layers.roi_max_pool import roi_max_pool


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


def test_one_cell_and_no_roi() -> None:
    features = torch.randn(2, 3, 1, 1)
    rois = [torch.zeros(0, 4), torch.tensor([[0.0, 0.0, 15.0, 15.0], [90.0, 90.0, 99.0, 99.0]])]
    assert torch.equal(roi_max_pool(features, rois, 7, 1 / 16), expected(features, rois, 7))
    assert roi_max_pool(features, [rois[0]] * 2, 7, 1 / 16).shape == (0, 3, 7, 7)

"""RoI pooling with a gradient for boxes: by hand, torchvision's values, finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import roi_align

from frcnn_plugin.layers import PrROIPool, ROIAlignGrad, ROIWarp

RAMP = torch.arange(36, dtype=torch.float64).view(1, 1, 6, 6)
PRODUCT = torch.outer(torch.arange(6.0), torch.arange(6.0)).double().view(1, 1, 6, 6)


def pool(kind: type[nn.Module], features: torch.Tensor, box: list[float]) -> tuple[list, list]:
    """2 x 2 values, and the gradient of their sum for the box."""
    rois = torch.tensor([[0.0, *box]], dtype=torch.float64, requires_grad=True)
    pooled = kind(2, 1 / 16)(features, rois)
    pooled.sum().backward()
    assert rois.grad is not None and rois.grad[0, 0] == 0
    return pooled[0, 0].flatten().tolist(), rois.grad[0, 1:].tolist()


@pytest.mark.parametrize(
    ("box", "values"),
    [
        pytest.param([0, 0, 47, 47], [0, 1.5, 9, 10.5], id="W1"),
        pytest.param([8, 8, 40, 40], [7, 8, 13, 14], id="W2"),
        pytest.param([0, 0, 95, 95], [0, 3, 18, 21], id="W3"),
    ],
)
def test_warping(box: list[float], values: list[float]) -> None:
    pooled, gradient = pool(ROIWarp, RAMP, box)
    assert pooled == values
    # Of a RoI that is a cell wider, as the original has it: (.203125, 1.21875, ...) for W1.
    assert gradient == [0.1875, 1.125, 0.0625, 0.375]


def test_warping_of_no_area_and_outside_w4() -> None:
    assert pool(ROIWarp, RAMP, [32, 32, 10, 10])[0] == [14, 14, 14, 14]
    assert pool(ROIWarp, RAMP, [200, 200, 300, 300]) == ([0] * 4, [0] * 4)


@pytest.mark.parametrize(
    ("kind", "features", "values", "gradient"),
    [
        pytest.param(
            ROIAlignGrad, RAMP, [8.75, 10.25, 17.75, 19.25], [0.125, 0.75, 0.125, 0.75], id="W5"
        ),
        pytest.param(ROIAlignGrad, PRODUCT, [1.5625, 3.4375, 3.4375, 7.5625], [0.25] * 4, id="W6"),
        pytest.param(
            PrROIPool, RAMP, [12.25, 13.75, 21.25, 22.75], [0.125, 0.75, 0.125, 0.75], id="W7"
        ),
        pytest.param(
            PrROIPool, PRODUCT, [3.0625, 5.6875, 5.6875, 10.5625], [0.3125] * 4, id="W7 product"
        ),
    ],
)
def test_continuous_box(
    kind: type[nn.Module], features: torch.Tensor, values: list[float], gradient: list[float]
) -> None:
    pooled, slope = pool(kind, features, [16, 16, 64, 64])
    assert pooled == pytest.approx(values) and slope == pytest.approx(gradient)


def test_torchvision_gives_boxes_no_gradient_w10() -> None:
    rois = torch.tensor([[0.0, 16, 16, 64, 64]], requires_grad=True)
    features = RAMP.float().requires_grad_()
    roi_align(features, rois, 2, 1 / 16, 2, True).sum().backward()
    assert rois.grad is None


def rois_of(count: int) -> torch.Tensor:
    """Inside and outside of two 70x100 images, in any order."""
    generator = torch.Generator().manual_seed(3)
    corners = torch.rand(2, count, 2, generator=generator, dtype=torch.float64) * 120 - 15
    boxes = torch.cat([corners.amin(dim=0), corners.amax(dim=0) + 3], dim=1)
    return torch.cat([(torch.arange(count) % 2)[:, None], boxes], dim=1)


@pytest.mark.parametrize("size", [(5, 7), (7, 5), (1, 4), (1, 1)])
def test_align_equals_torchvision(size: tuple[int, int]) -> None:
    features = torch.rand(2, 3, *size, dtype=torch.float64)
    rois = rois_of(300)
    expected = roi_align(features, rois, 3, 1 / 16, 2, True)
    torch.testing.assert_close(ROIAlignGrad(3, 1 / 16)(features, rois), expected)


@pytest.mark.parametrize("kind", [ROIAlignGrad, PrROIPool])
@pytest.mark.parametrize("size", [(5, 7), (7, 5), (1, 4)])
def test_gradients_of_features_and_boxes(kind: type[nn.Module], size: tuple[int, int]) -> None:
    features = torch.rand(2, 2, *size, dtype=torch.float64, requires_grad=True)
    corners = rois_of(6)[:, 1:].requires_grad_()
    index = rois_of(6)[:, :1]
    assert torch.autograd.gradcheck(
        lambda f, c: kind(3, 1 / 16)(f, torch.cat([index, c], dim=1)), (features, corners)
    )


def test_gradient_of_warped_features() -> None:
    features = torch.rand(2, 2, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: ROIWarp(3, 1 / 16)(f, rois_of(6)), features)


def test_warped_corners_have_the_slope_between_cells() -> None:
    """Corners at .25 of a cell are rounded down; the gradient is the one of the whole cells."""
    features = torch.rand(1, 3, 9, 9, dtype=torch.float64)
    corners = torch.tensor([[36.0, 20.0, 100.0, 84.0]], dtype=torch.float64, requires_grad=True)
    index = torch.zeros(1, 1, dtype=torch.float64)
    pooled = ROIWarp(3, 1 / 16)(features, torch.cat([index, corners], dim=1)).sum()
    (gradient,) = torch.autograd.grad(pooled, corners)

    def unrounded(cells: list[float]) -> torch.Tensor:
        x1, y1, x2, y2 = cells
        total = torch.zeros((), dtype=torch.float64)
        for j in range(3):
            for i in range(3):
                x, y = x1 + j * (x2 - x1) / 3, y1 + i * (y2 - y1) / 3
                hat_x = (1 - (torch.arange(9).double() - x).abs()).clamp(min=0)
                hat_y = (1 - (torch.arange(9).double() - y).abs()).clamp(min=0)
                total = total + (hat_y @ features[0] @ hat_x).sum()
        return total

    cells = [2.0, 1.0, 6.0, 5.0]
    assert pooled.item() == pytest.approx(unrounded(cells).item())
    for k, slope in enumerate(gradient[0].tolist()):
        moved = list(cells)
        moved[k] += 1e-6
        difference = (unrounded(moved) - unrounded(cells)).item() / 1e-6 / 16
        assert slope == pytest.approx(difference, abs=1e-5)


@pytest.mark.parametrize("kind", [ROIWarp, PrROIPool, ROIAlignGrad])
def test_no_rois(kind: type[nn.Module]) -> None:
    assert kind(7, 1 / 16)(torch.rand(2, 3, 5, 7), torch.zeros(0, 5)).shape == (0, 3, 7, 7)

"""RoI pooling. Examples E15* (docs/worked_examples.md)."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from frcnn_plugin.modeling import InclusiveROIPooler, build_pooler, whole_pixels


def stock_pooler(output: int) -> ROIPooler:
    return ROIPooler(output_size=output, scales=(1 / 16,), sampling_ratio=0, pooler_type="ROIPool")


def pool(features: torch.Tensor, inclusive: list[float], output: int) -> torch.Tensor:
    """Pool one RoI given as the inclusive corners of docs/worked_examples.md."""
    box = Boxes(torch.tensor([inclusive], dtype=torch.float32) + torch.tensor([0.0, 0, 1, 1]))
    return InclusiveROIPooler(stock_pooler(output))([features], [box])[0, 0]


def winners(features: torch.Tensor) -> list[int]:
    """Cells that get a gradient from a RoI of six by six cells in four bins."""
    pool(features, [0, 0, 47, 47], 2).sum().backward()
    assert features.grad is not None
    return features.grad.flatten().nonzero().flatten().tolist()


def ramp(height: int, width: int) -> torch.Tensor:
    values = torch.arange(float(height * width)).view(1, 1, height, width)
    return values.requires_grad_()


@pytest.mark.parametrize(
    ("roi", "expected"),
    [
        ([0, 0, 47, 47], [[7, 9], [19, 21]]),
        ([8, 8, 40, 40], [[14, 15], [20, 21]]),
        ([0, 0, 56, 24], [[8, 10], [14, 16]]),
        ([32, 32, 10, 10], [[14, 14], [14, 14]]),  # inverted: one cell
        ([200, 200, 300, 300], [[0, 0], [0, 0]]),  # outside
    ],
)
def test_max_pool_e15b(roi: list[float], expected: list[list[float]]) -> None:
    assert pool(ramp(6, 6), roi, 2).tolist() == expected


def test_gradient_goes_to_the_maxima_e15b() -> None:
    assert winners(ramp(6, 6)) == [7, 9, 19, 21]


@pytest.mark.parametrize(
    ("x", "cell"), [(7, 0), (8, 1), (23, 1), (24, 2), (39, 2), (40, 3), (56, 4), (72, 5)]
)
def test_corners_round_half_away_from_zero_e15(x: int, cell: int) -> None:
    """A one-cell RoI shows which cell its corner rounds to."""
    assert pool(ramp(1, 8), [x, 0, x, 0], 1).item() == cell


def test_winner_of_several_bins_collects_e15g() -> None:
    features = torch.zeros(1, 1, 3, 3)
    features[0, 0, 1, 1] = 5
    features.requires_grad_()
    pooled = pool(features, [0, 0, 32, 32], 2)
    assert (pooled == 5).all()
    pooled.sum().backward()
    assert features.grad is not None
    assert features.grad[0, 0, 1, 1] == 4


def test_first_cell_wins_ties_e15h() -> None:
    assert winners(torch.ones(1, 1, 6, 6, requires_grad=True)) == [0, 2, 12, 14]


@pytest.mark.parametrize(
    ("cells", "bins"),
    [
        (5, [(0, 1), (0, 2), (1, 3), (2, 3), (2, 4), (3, 5), (4, 5)]),
        (3, [(0, 1), (0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 3)]),
    ],
)
def test_overlapping_bins_e15c(cells: int, bins: list[tuple[int, int]]) -> None:
    """On a rising ramp the maximum of a bin is its last column."""
    top_row = pool(ramp(1, cells), [0, 0, 16 * cells - 16, 0], 7)[0]
    assert top_row.tolist() == [end - 1 for _, end in bins]


def test_roi_of_the_whole_image_e15i() -> None:
    pooled = pool(ramp(38, 50), [0, 0, 799, 599], 7)
    assert pooled[0].tolist() == [257, 264, 271, 279, 286, 293, 299]


def test_continuous_corners_would_differ_e15f() -> None:
    box = [Boxes(torch.tensor([[0.0, 0.0, 56.0, 56.0]]))]
    assert stock_pooler(2)([ramp(6, 6)], box)[0, 0].tolist() == [[14, 16], [26, 28]]
    assert pool(ramp(6, 6), [0, 0, 55, 55], 2).tolist() == [[7, 9], [19, 21]]


def test_pooling_runs_in_float32_whatever_comes() -> None:
    """256 + 1 is not a bfloat16 number, so this also shows where values are rounded."""
    features = torch.full((1, 1, 4, 4), 256.0, dtype=torch.bfloat16)
    pooled = pool(features, [0, 0, 63, 63], 2)
    assert pooled.dtype == torch.bfloat16
    assert (pooled == 256).all()


def test_pooling_of_two_images_as_detectron2s_pooler() -> None:
    features = torch.rand(2, 8, 9, 12, requires_grad=True)
    boxes = [torch.tensor([[0.0, 0, 100, 90]]), torch.tensor([[16.0, 8, 80, 80], [0, 0, 9, 9]])]
    one = torch.tensor([0.0, 0.0, 1.0, 1.0])
    expected = stock_pooler(7)([features], [Boxes(b - one) for b in boxes])
    pooler = InclusiveROIPooler(stock_pooler(7))
    training = pooler([features], [Boxes(b) for b in boxes])
    assert torch.equal(training, expected) and training.requires_grad
    with torch.no_grad():
        assert torch.equal(pooler([features], [Boxes(b) for b in boxes]), expected)
        assert pooler([features[:1]], [Boxes(torch.zeros(0, 4))]).shape == (0, 8, 7, 7)


@pytest.mark.parametrize("kind", ["ROIPool", "ROIAlignV2"])
def test_build_pooler_takes_our_types_and_detectron2s(kind: str) -> None:
    pooler = build_pooler(kind, 2, (1 / 16,))
    assert isinstance(pooler, InclusiveROIPooler) is (kind == "ROIPool")
    assert pooler([ramp(6, 6)], [Boxes(torch.tensor([[0.0, 0, 48, 48]]))]).shape == (1, 1, 2, 2)


def test_rois_in_whole_pixels() -> None:
    """7.5 rounds to pixel 8, which is in cell 1 (E15); 23.4 to 23, in cell 1 as well."""
    box = torch.tensor([[7.5, 7.4, 24.4, 24.5]])
    assert whole_pixels(box).tolist() == [[8.0, 7.0, 24.0, 25.0]]
    pooler = InclusiveROIPooler(stock_pooler(1))
    features = ramp(6, 6).requires_grad_()
    plain = pooler([features], [Boxes(box)])
    pooler.integer_rois = True
    assert pooler([features], [Boxes(box)]).flatten() != plain.flatten()
    expected = pooler([features], [Boxes(torch.tensor([[8.0, 7.0, 24.0, 25.0]]))])
    assert torch.equal(pooler([features], [Boxes(box)]), expected)
    with torch.no_grad():
        assert torch.equal(pooler([features], [Boxes(box)]), expected)

"""Cells that RoI pooling reads, by hand and by pooling, and their picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from frcnn_plugin.modeling import InclusiveROIPooler
from frcnn_plugin.visualization.drawings.palette import VERMILION, YELLOW
from frcnn_plugin.visualization.drawings.roi_cells import (
    PooledCells,
    draw_roi_cells,
    lanes_of,
    pooled_cells,
)

from .artists import IMAGE, boxes, heading


def caffe_pooler(size: int = 7) -> InclusiveROIPooler:
    return InclusiveROIPooler(ROIPooler(size, [1 / 16], 0, "ROIPool"))


def test_bins_by_hand() -> None:
    """Inclusive corners 0 and 111: 111 / 16 = 6.94 rounds to 7, so 8 cells, bins of 8/7 cells."""
    cells = pooled_cells(caffe_pooler(), torch.tensor([0.0, 32.0, 112.0, 64.0]), (20, 20))
    assert cells.rounded.tolist() == [0, 2, 8, 5]
    # floor(j * 8/7), ceil((j + 1) * 8/7)
    bins = [[0, 2], [1, 3], [2, 4], [3, 5], [4, 6], [5, 7], [6, 8]]
    assert cells.columns.tolist() == bins
    # 32 / 16 = 2 to round(63 / 16) = 4: 3 cells, bins of 3/7 cells.
    assert cells.rows.tolist() == [[2, 3], [2, 3], [2, 4], [3, 4], [3, 5], [4, 5], [4, 5]]
    assert cells.read.tolist() == [0, 2, 8, 5]


def test_corners_beyond_the_map() -> None:
    """An 800 px wide image has 50 cells; its last inclusive pixel rounds to cell 50 (799 / 16)."""
    cells = pooled_cells(caffe_pooler(2), torch.tensor([752.0, 0.0, 800.0, 16.0]), (38, 50))
    assert cells.rounded.tolist() == [47, 0, 51, 2] and cells.read.tolist() == [47, 0, 50, 2]
    assert cells.columns.tolist() == [[47, 49], [49, 50]]
    narrow = pooled_cells(caffe_pooler(7), torch.tensor([785.0, 0.0, 800.0, 16.0]), (38, 50))
    # Cells 49 and 50, of which 50 does not exist: bins that read only that one are empty.
    assert narrow.rounded.tolist() == [49, 0, 51, 2]
    assert narrow.columns.tolist() == [[49, 50]] * 4 + [[0, 0]] * 3
    assert narrow.read.tolist() == [49, 0, 50, 2]


def test_nothing_to_read() -> None:
    """Pixel 792 / 16 = 49.5 rounds away from zero, to the cell after the last one."""
    cells = pooled_cells(caffe_pooler(), torch.tensor([792.0, 0.0, 800.0, 16.0]), (38, 50))
    assert cells.rounded.tolist() == [50, 0, 51, 2]
    assert cells.read.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("size", [6, 7])
def test_maxima_over_these_cells_are_what_is_pooled(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(1, 3, 19, 25, generator=generator)
    pooler = caffe_pooler(size)
    for _ in range(40):
        corner = torch.rand(2, generator=generator) * torch.tensor([380.0, 280.0])
        side = torch.rand(2, generator=generator) * 200 + 1
        end = torch.minimum(corner + side, torch.tensor([400.0, 304.0]))
        box = torch.cat([corner, end])
        cells = pooled_cells(pooler, box, (19, 25))
        pooled = pooler([features], [Boxes(box[None])])[0]
        expected = torch.zeros_like(pooled)
        for i, (y1, y2) in enumerate(cells.rows):
            for j, (x1, x2) in enumerate(cells.columns):
                if y1 < y2 and x1 < x2:
                    expected[:, i, j] = features[0, :, y1:y2, x1:x2].amax(dim=(1, 2))
        assert torch.equal(pooled, expected)


def test_lanes_keep_overlapping_bins_apart() -> None:
    assert lanes_of([[0, 2], [2, 4], [4, 6]]) == [1, 1, 1]
    assert lanes_of([[0, 2], [1, 3], [2, 4]]) == [1, 2, 1]
    assert lanes_of([[0, 1]] * 3) == [1, 2, 3]


def test_roi_cells() -> None:
    """A cell is 10 image pixels; the box rounds to columns 1 to 3 and rows 0 to 1."""
    columns, rows = np.array([[1, 3], [2, 4]]), np.array([[0, 1], [1, 2]])
    cells = PooledCells(np.array([1, 0, 4, 2]), columns, rows)
    box = np.array([12.0, 3, 38, 17])
    canvas = draw_roi_cells(IMAGE, box, cells, (10, 20), (10.0, 10.0), "dog")
    assert "3 x 2 feature cells pooled into 2 x 2 bins" in heading(canvas)
    for axes in canvas.axes:
        assert boxes(axes, YELLOW) == [(12, 3, 38, 17)]
        assert boxes(axes, VERMILION, "--") == [(10, 0, 40, 20)]
        # Lines at every tenth image pixel.
        lines = axes.collections[0].get_segments()
        assert sorted({x for line in lines for x, _ in line.tolist()})[:3] == [0, 10, 20]
    filled = [p for p in canvas.axes[1].patches if p.get_fill()]
    # Cells read; cells of the last bin; a bar for each column and row of bins.
    extents = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in filled]
    assert extents[:2] == [(10, 0, 30, 20), (20, 10, 20, 10)]
    assert [bar[0::2] for bar in extents[2:4]] == [(10, 20), (20, 20)]
    assert [bar[1::2] for bar in extents[4:6]] == [(0, 10), (10, 10)]
    assert "beyond" not in heading(canvas)

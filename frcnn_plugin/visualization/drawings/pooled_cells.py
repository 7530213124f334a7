"""Which feature cells RoI max pooling reads: asked of the pooler itself.

Nothing is rounded here. The pooler is given feature maps whose values are the positions of their
cells; the maxima it returns then name the first and last row and column of every bin. A bin is
empty where a map of ones comes back as 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from detectron2.structures import Boxes

Pooler = Callable[[list[torch.Tensor], list[Boxes]], torch.Tensor]
IntArray = npt.NDArray[np.int64]

_MARGIN = 4  # cells added to see where corners round to that leave the feature map


@dataclass(frozen=True)
class PooledCells:
    """What one RoI reads.

    Attributes:
        rounded: (4,) first column, first row, last column + 1, last row + 1 of the cells its
            corners are rounded to; they may lie beyond the feature map.
        columns: (n, 2) first column and last column + 1 of each bin from left to right, on the
            map; equal where it is empty.
        rows: (n, 2) likewise, from top to bottom.
    """

    rounded: IntArray
    columns: IntArray
    rows: IntArray

    @property
    def empty_bins(self) -> int:
        """Bins that lie beyond the map: they are 0."""
        columns = int((self.columns[:, 0] < self.columns[:, 1]).sum())
        rows = int((self.rows[:, 0] < self.rows[:, 1]).sum())
        return len(self.columns) * len(self.rows) - columns * rows

    @property
    def read(self) -> tuple[int, int, int, int]:
        """First column, first row, last column + 1, last row + 1 of the cells read."""
        (x1, x2), (y1, y2) = (
            (int(bins[full, 0].min()), int(bins[full, 1].max())) if full.any() else (0, 0)
            for bins in (self.columns, self.rows)
            for full in [bins[:, 0] < bins[:, 1]]
        )
        return x1, y1, x2, y2


def pooled_cells(pooler: Pooler, box: torch.Tensor, feature_size: tuple[int, int]) -> PooledCells:
    """Ask ``pooler`` what it reads for ``box``.

    Args:
        pooler: RoI *max* pooling of one feature map.
        box: (4,) continuous XYXY, network-input pixels.
        feature_size: height and width of the feature map, cells.

    Returns:
        the cells.
    """
    columns, rows = _bins(pooler, box, feature_size)
    beyond = (feature_size[0] + _MARGIN, feature_size[1] + _MARGIN)
    all_columns, all_rows = _bins(pooler, box, beyond)
    rounded = [all_columns[:, 0].min(), all_rows[:, 0].min()]
    rounded += [all_columns[:, 1].max(), all_rows[:, 1].max()]
    return PooledCells(np.array(rounded, dtype=np.int64), columns, rows)


def _bins(pooler: Pooler, box: torch.Tensor, size: tuple[int, int]) -> tuple[IntArray, IntArray]:
    """Bounds of the bins' columns and rows on a map of this size."""
    height, width = size
    x = torch.arange(1.0, width + 1).expand(height, width)
    y = torch.arange(1.0, height + 1)[:, None].expand(height, width)
    # The last position is the largest one; the first is the largest when counted from the end.
    probe = torch.stack([x, width + 1 - x, y, height + 1 - y])[None]
    pooled = pooler([probe], [Boxes(box[None].float())])[0].double().numpy()  # (4, n, n)
    last_x, first_x, last_y, first_y = pooled
    full = last_x > 0  # an empty bin is 0
    # A column of bins is the same in every row of bins that is not empty, and the other way round.
    columns = np.stack([width + 1 - first_x.max(axis=0) - 1, last_x.max(axis=0)], axis=1)
    rows = np.stack([height + 1 - first_y.max(axis=1) - 1, last_y.max(axis=1)], axis=1)
    columns[~full.any(axis=0)] = 0
    rows[~full.any(axis=1)] = 0
    return columns.astype(np.int64), rows.astype(np.int64)

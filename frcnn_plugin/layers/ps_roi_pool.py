"""Position-sensitive RoI pooling as Caffe's R-FCN computes it.

torchvision's ``ps_roi_pool`` is another operator: it rounds corners after scaling instead of
before, adds no pixel to x2 and y2, and never reads the last row and column of a map.

Shape shorthand in this module: N maps of H x W cells, R RoIs, k bins per side, D outputs.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torchvision import ops

from .roi_max_pool import round_half_away


def ps_roi_pool(
    features: torch.Tensor, rois: torch.Tensor, output_size: int, spatial_scale: float
) -> torch.Tensor:
    """Average the cells of each bin over the bin's own channel.

    Corners are rounded to *pixels*, half away from zero, and then scaled: x1 to the start of the
    RoI, x2 + 1 to its end. Bin (row, column) of output d has channel (d * k + row) * k + column. It
    covers all cells that it touches; a bin without cells is 0. A RoI is at least 0.1 cells wide, so
    one whose corners are exchanged reads the cell of x1, y1.

    The sums come from tables of cumulative sums in float64, so that the time does not depend on the
    RoIs' sizes; autograd hands each cell of a bin 1 / (number of its cells).

    Args:
        features: (N, D * k * k, H, W) float.
        rois: (R, 5) float, index of the map and inclusive XYXY in pixels.
        output_size: k.
        spatial_scale: cells per pixel.

    Returns:
        (R, D, k, k), in the features' dtype.

    Source: R-FCN's Caffe, psroi_pooling_layer.cu.
    """
    n, channels, height, width = features.shape
    bins = output_size * output_size
    # One more row and column, of zeros, so that the sum over cells [a, b) is table[b] - table[a].
    table = F.pad(features.double(), (1, 0, 1, 0)).cumsum(dim=3).cumsum(dim=2)
    table = table.view(n, channels // bins, bins, height + 1, width + 1).permute(0, 2, 3, 4, 1)
    table = table.reshape(-1, channels // bins)  # outputs innermost: each look-up reads one row
    x1, x2 = _edges(rois[:, 1], rois[:, 3], width, output_size, spatial_scale)
    y1, y2 = _edges(rois[:, 2], rois[:, 4], height, output_size, spatial_scale)
    # (R, 1, 1), (k, k), (R, k, 1) and (R, 1, k) make (R, k, k): map, bin, row, column.
    bin_index = torch.arange(bins, device=rois.device).view(output_size, output_size)
    plane = rois[:, 0].long()[:, None, None] * bins + bin_index

    def sums(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the sums of all cells above and left of (R, k) rows and columns: (R, k, k, D)."""
        rows = (plane * (height + 1) + y[:, :, None]) * (width + 1) + x[:, None, :]
        return table.index_select(0, rows.flatten()).view(*rows.shape, channels // bins)

    total = sums(y2, x2) - sums(y2, x1) - sums(y1, x2) + sums(y1, x1)
    area = (y2 - y1)[:, :, None] * (x2 - x1)[:, None, :]  # 0: all four look-ups are the same
    pooled = total / area.clamp(min=1)[..., None]
    return pooled.permute(0, 3, 1, 2).to(features.dtype)


class PSRoIPool(ops.PSRoIPool):
    """:func:`ps_roi_pool` with its constants: k, the bins per side, and the cells per pixel."""

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool (N, D * k * k, H, W) at RoIs, (R, 5) of index and inclusive XYXY: (R, D, k, k)."""
        return ps_roi_pool(input, rois, self.output_size, self.spatial_scale)


def _edges(
    first: torch.Tensor, last: torch.Tensor, size: int, bins: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where bins begin and end (exclusive) along one axis, (R, bins) int64 in [0, size]."""
    # In float32, as Caffe, whose rounding decides which cells a bin touches.
    start = round_half_away(first.float()) * scale
    end = (round_half_away(last.float()) + 1) * scale
    length = (end - start).clamp(min=0.1) / bins
    i = torch.arange(bins + 1, device=first.device, dtype=torch.float32)
    edges = length[:, None] * i + start[:, None]
    begins = edges[:, :-1].floor().clamp(0, size).long()
    ends = edges[:, 1:].ceil().clamp(0, size).long()
    # A bin off the map begins and ends at the same border.
    return begins, torch.maximum(begins, ends)

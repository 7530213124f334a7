"""RoI max pooling: with Caffe's gradient, and for inference on CPUs in a quarter of the time.

torchvision's operator visits every cell of every bin, channel by channel, in one thread. For
inference the maxima of small windows are tabulated once, for all positions, and each bin takes the
larger of two table entries; maxima do not round, so the result is the same to the last bit. Which
cells a box reads, as in Caffe, is decided in modeling/roi_heads/poolers.py.

Shape shorthand in this module: a map of H x W cells, R RoIs of an image, P bins per side (7).
"""

from __future__ import annotations

import torch
from torchvision.ops import RoIPool

_CHANNELS = 128  # worked on at a time; their tables then stay in the cache
_TABLE_BYTES = 2**26  # that tables take at most, of large maps with fewer channels at a time
_TALL = 8  # rows of a bin up to which all heights are tabulated


def roi_max_pool(
    features: torch.Tensor, rois: list[torch.Tensor], output_size: int, spatial_scale: float
) -> torch.Tensor:
    """Pool as ``torchvision.ops.roi_pool`` does, without a gradient.

    Args:
        features: (N, C, H, W) float, best in channels-last memory.
        rois: per image, (R, 4) inclusive XYXY in pixels of the image.
        output_size: P.
        spatial_scale: cells per pixel.

    Returns:
        (all R, C, P, P).
    """
    channels = features.shape[1]
    out = features.new_empty((sum(map(len, rois)), channels, output_size, output_size))
    first = 0
    for image, boxes in zip(features, rois, strict=True):
        if len(boxes) == 0:
            continue
        cells = round_half_away(boxes * spatial_scale).long()
        x = _bins(cells[:, 0], cells[:, 2], image.shape[2], output_size)
        y = _bins(cells[:, 1], cells[:, 3], image.shape[1], output_size)
        target = out[first : first + len(boxes)]
        step = _channels_at_a_time(image, x[1], y[1])
        for start in range(0, channels, step):
            part = slice(start, start + step)
            target[:, part] = _pool(image[part].permute(1, 2, 0), x, y)
        first += len(boxes)
    return out


class CaffeRoIPool(RoIPool):
    """torchvision's RoI max pooling with Caffe's gradient.

    The maxima are the same: where the size of a bin is rounded up, both let the last bin of an axis
    reach one cell beyond the RoI (57 cells in 7 bins). If that cell is the maximum, torchvision
    hands it the gradient and Caffe drops it; so too with RoIs whose corners are exchanged, which
    read the cell of x1, y1, but contain none.

    Source: Caffe roi_pooling_layer.cu (Backward: in_roi).
    """

    def forward(self, input: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool (N, C, H, W) at RoIs, (R, 5) of image index and inclusive XYXY, to (R, C, P, P)."""
        if not (torch.is_grad_enabled() and input.requires_grad) or torch.jit.is_tracing():
            return super().forward(input, rois)
        size, width = self.output_size, input.shape[3]
        pooled, winners = torch.ops.torchvision.roi_pool(
            input, rois, self.spatial_scale, size, size
        )
        corners = round_half_away(rois[:, 1:] * self.spatial_scale).long()
        first, last = corners.split(2, dim=1)  # (R, 2): x, y
        if rois.is_cuda:  # all, as a GPU would have to wait for the count of the few
            return torch.where(_outside(winners, last, width), pooled.detach(), pooled)
        length = last - first + 1
        bin_length = length.clamp(min=1).float() / size
        reaches = ((bin_length * size).ceil() > length).any(dim=1).nonzero().squeeze(1)
        if len(reaches) == 0:
            return pooled
        few = pooled[reaches]
        outside = _outside(winners[reaches], last[reaches], width)
        return pooled.index_copy(0, reaches, torch.where(outside, few.detach(), few))


def _outside(winners: torch.Tensor, last: torch.Tensor, width: int) -> torch.Tensor:
    """Tell which maxima, (R, C, P, P) of flat cells, lie beyond the RoI's last x, y, (R, 2)."""
    x, y = last[:, :, None, None, None].unbind(1)
    return (winners % width > x) | (winners // width > y)


def round_half_away(x: torch.Tensor) -> torch.Tensor:
    """Round half away from zero, as C does; torch.round goes to the even neighbour."""
    whole = x.trunc()
    return whole + ((x - whole) * 2).trunc()


def _bins(
    start: torch.Tensor, end: torch.Tensor, size: int, num_bins: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the first cell and the length, 0 if empty, of each bin along one axis, (R, P) each.

    ``start`` and ``end`` are the RoIs' first and last cells, (R,); ``size`` is that of the map.
    """
    step = (end - start + 1).clamp(min=1).float() / num_bins  # float32, as in the operator
    i = torch.arange(num_bins, dtype=torch.float32)
    low = (i * step[:, None]).floor().long() + start[:, None]
    high = ((i + 1) * step[:, None]).ceil().long() + start[:, None]
    low, high = low.clamp(0, size), high.clamp(0, size)
    return low, (high - low).clamp(min=0)


def _channels_at_a_time(image: torch.Tensor, x_size: torch.Tensor, y_size: torch.Tensor) -> int:
    levels, heights = int(x_size.max()).bit_length(), len(_heights(int(y_size.max())))
    one = max(1, levels) * heights * image[0].numel() * image.element_size()
    return int(min(_CHANNELS, max(1, _TABLE_BYTES // one)))


def _heights(tall: int) -> list[int]:
    """Return the heights of windows that are tabulated for bins of up to so many rows."""
    if tall <= _TALL:
        return list(range(1, max(1, tall) + 1))
    return [2**k for k in range(tall.bit_length())]


def _pool(
    cells: torch.Tensor, x: tuple[torch.Tensor, torch.Tensor], y: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Take the maxima of all bins of (H, W, C) ``cells``: (R, C, P, P), a view.

    ``x`` is the first column and the width of each bin, (R, P) each; ``y`` the row and height.
    """
    height, width, channels = cells.shape
    (x_low, x_size), (y_low, y_size) = x, y
    tall = int(y_size.max())
    heights = _heights(tall)
    levels = max(1, int(x_size.max())).bit_length()
    # table[k, n, i, j]: maximum of the rows from i, as many as the n-th of heights, and columns
    # j .. j + 2^k - 1. Windows that would reach over the border are never asked for.
    table = cells.new_empty((levels, len(heights), height, width, channels))
    table[0, 0] = cells
    for n, h in enumerate(heights[1:], start=1):
        shorter, this = table[0, n - 1], table[0, n]
        more = h - heights[n - 1]  # rows; where that is over the border, the maximum stays
        lower = shorter[more:] if tall > _TALL else cells[heights[n - 1] :]
        torch.maximum(shorter[: len(lower)], lower, out=this[: len(lower)])
        this[len(lower) :] = shorter[len(lower) :]
    for k in range(1, levels):
        half = 2 ** (k - 1)
        narrow, wide = table[k - 1], table[k]
        torch.maximum(narrow[:, :, :-half], narrow[:, :, half:], out=wide[:, :, :-half])
        wide[:, :, -half:] = narrow[:, :, -half:]
    # Two windows of 2^k columns, one at each end, cover a bin of 2^k to 2^(k+1) columns.
    level = torch.log2(x_size.clamp(min=1).float()).floor().long()
    second = (x_low + x_size - (1 << level)).clamp(0, width - 1)
    columns = (x_low.clamp(max=width - 1), second)
    if tall <= _TALL:
        starts = [(y_size.clamp(min=1) - 1) * height + y_low.clamp(max=height - 1)]
    else:  # as for the columns
        power = torch.log2(y_size.clamp(min=1).float()).floor().long()
        last = y_low + y_size - (1 << power)
        starts = [power * height + y.clamp(0, height - 1) for y in (y_low, last)]
    flat = table.view(-1, channels)
    out: torch.Tensor | None = None
    for start in starts:
        rows = (level[:, None, :] * len(heights) * height + start[:, :, None]) * width
        for column in columns:
            found = flat.index_select(0, (rows + column[:, None, :]).flatten())
            out = found if out is None else torch.maximum(out, found, out=out)
    assert out is not None
    out = out.view(len(x_low), y_low.shape[1], x_low.shape[1], channels)
    empty = (y_size == 0)[:, :, None] | (x_size == 0)[:, None, :]
    out.masked_fill_(empty[..., None], 0)
    return out.permute(0, 3, 1, 2)

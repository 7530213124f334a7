"""RoI pooling by interpolation, with a gradient for the corners of the RoIs as for the features.

torchvision's ``roi_align`` and ``roi_pool`` give corners none, without an error. Here each operator
says, along one axis, with what weight a cell of the map counts in a bin, as a differentiable
function of the two corners; both axes together are two matrix products. Autograd of these is the
exact adjoint.

Shape shorthand in this module: a map of H x W cells, whose centres are whole numbers; R RoIs, P
bins per side. The RoIs' corners are in cells.
"""

from __future__ import annotations

import torch
from torch import nn

from .roi_max_pool import round_half_away

_ROIS = 128  # worked on at a time, which bounds the memory of inference


class _InterpolatedPool(nn.Module):
    """Pool with weights of the cells that are a product of one for the row and one for the column.

    A subclass gives the weights of one axis.
    """

    def __init__(self, output_size: int, spatial_scale: float) -> None:
        """Set the constants.

        Args:
            output_size: bins per side, P.
            spatial_scale: cells per pixel.
        """
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool.

        Args:
            features: (N, C, H, W), float32 or float64.
            rois: (R, 5), the same dtype: image index, XYXY in pixels.

        Returns:
            (R, C, P, P).
        """
        height, width = features.shape[2:]
        corners = rois[:, 1:] * self.spatial_scale
        x = self.weights(corners[:, 0], corners[:, 2], width)
        y = self.weights(corners[:, 1], corners[:, 3], height)
        if torch.jit.is_tracing():  # it would fix the number of parts; there is one image
            return _weigh(features[0], x, y)
        order, pooled = [], []
        for i, image in enumerate(features):
            for part in (rois[:, 0] == i).nonzero().squeeze(1).split(_ROIS):
                order.append(part)
                pooled.append(_weigh(image, x[part], y[part]))
        return torch.cat(pooled)[torch.cat(order).argsort()]

    def weights(self, start: torch.Tensor, end: torch.Tensor, size: int) -> torch.Tensor:
        """Return the weights of the cells in each bin along one axis.

        Args:
            start: (R,), the RoIs' first corners.
            end: (R,), their second.
            size: cells of the map.

        Returns:
            (R, P, size).
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return one line for ``print(model)``."""
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"


class ROIWarp(_InterpolatedPool):
    """The RoI warping of MNC, with which non-approximate joint training was first done.

    The inclusive corners are rounded to cells, as in RoI pooling, and the gradient takes that for
    the identity. Each bin is one bilinear sample at its top left corner; a RoI spans x2 - x1 cells,
    without the + 1 of RoI pooling.

    Both gradients are the exact adjoints. The original's are not: it hands the features a third to
    three quarters of theirs, and spreads the corners' as if RoIs were a cell wider (example W1).

    Source: MNC roi_warping_layer.cu.
    """

    def weights(self, start: torch.Tensor, end: torch.Tensor, size: int) -> torch.Tensor:
        """See the base class; a sample more than half a cell off the map is 0."""
        start, end = _round(start), _round(end)
        share = torch.arange(self.output_size, device=start.device) / self.output_size
        positions = start[:, None] + _limit(end - start, 0)[:, None] * share
        return _samples(positions, size, -0.5, size - 0.5)


class ROIAlignGrad(_InterpolatedPool):
    """RoIAlign, "ROIAlignV2" of Detectron2, with 2 x 2 samples per bin.

    Values equal torchvision's with ``sampling_ratio=2, aligned=True``. Numbers of samples that
    follow the size of a box, as with ``sampling_ratio=0``, have no gradient.
    """

    samples = 2

    def weights(self, start: torch.Tensor, end: torch.Tensor, size: int) -> torch.Tensor:
        """See the base class; a sample more than a cell off the map is 0."""
        count = self.output_size * self.samples
        share = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
        positions = (start - 0.5)[:, None] + (end - start)[:, None] * share
        weights = _samples(positions, size, -1, size)
        return weights.view(-1, self.output_size, self.samples, size).mean(dim=2)


class PrROIPool(_InterpolatedPool):
    """Precise RoI pooling: the mean of the bilinear surface over each bin, without samples.

    The surface falls to 0 within a cell beyond the map. Values and gradients are continuous in the
    corners. A bin without area is 0.

    Source: PreciseRoIPooling prroi_pooling_gpu_impl.cu.
    """

    def weights(self, start: torch.Tensor, end: torch.Tensor, size: int) -> torch.Tensor:
        """See the base class."""
        share = torch.arange(self.output_size + 1, device=start.device) / self.output_size
        length = _limit(end - start, 0)
        edges = start[:, None] + length[:, None] * share
        cells = torch.arange(size, device=start.device)
        # A cell's value spreads as 1 - |t| around it; this is the integral from -1 to t.
        t = (edges[:, :, None] - cells).clamp(-1, 1)
        integrals = 0.5 + t - 0.5 * t * t.abs()
        integrals = integrals[:, 1:] - integrals[:, :-1]  # ONNX has no diff
        bins = (length / self.output_size)[:, None, None]
        return torch.where(bins > 0, integrals / torch.where(bins > 0, bins, 1), 0)


def _round(corners: torch.Tensor) -> torch.Tensor:
    """Round half away from zero, with the gradient of the identity."""
    fixed = corners.detach()
    return round_half_away(fixed) + (corners - fixed)


def _limit(x: torch.Tensor, low: float, high: float = float("inf")) -> torch.Tensor:
    """Clamp; numbers at the limits keep their gradient, which clamp leaves open.

    RoIs often lie there: those at the image's border, and after rounding those of one cell.
    """
    return torch.where(x < low, low, torch.where(x > high, high, x))


def _samples(positions: torch.Tensor, size: int, low: float, high: float) -> torch.Tensor:
    """Return the weights of cells in bilinear samples.

    Args:
        positions: (R, S), in cells.
        size: cells of the map.
        low: a sample before it is 0; beyond the map, the map's border goes on.
        high: the same for samples after it.

    Returns:
        (R, S, size).
    """
    inside = (positions >= low) & (positions <= high)
    positions = _limit(positions, 0, size - 1)
    # A pair of neighbours and not 1 - |distance|, which has no derivative on a cell's centre, where
    # rounded corners lie: there the slope to the next cell counts.
    first = positions.detach().floor().clamp(max=max(size - 2, 0))
    share = positions - first if size > 1 else torch.zeros_like(positions)
    step = torch.arange(size, device=positions.device) - first[:, :, None]  # 0: first, 1: second
    share = share[:, :, None]
    weights = (step == 0) * (1 - share) + (step == 1) * share
    return weights * inside[:, :, None]


def _weigh(image: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Sum the cells of an image, (C, H, W), by weights (R, P, W) and (R, P, H) to (R, C, P, P)."""
    if image.shape[2] > image.shape[1]:  # the longer side goes first, which takes less memory
        return _weigh(image.transpose(1, 2), y, x).transpose(2, 3)
    channels, height, width = image.shape
    count, bins = y.shape[:2]
    rows = y.flatten(0, 1) @ image.transpose(0, 1).reshape(height, -1)  # (R*P, C*W)
    pooled = rows.view(count, bins * channels, width) @ x.transpose(1, 2)  # (R, P*C, P)
    return pooled.view(count, bins, channels, bins).transpose(1, 2)

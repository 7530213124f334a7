"""Mean and deviation of many targets, one image at a time."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

logger = logging.getLogger(__name__)

# Below this a coordinate does not vary, it only has rounding errors. Real deviations are 100 times
# as large or more, in any unit that BBOX_REG_WEIGHTS are used for.
_MIN_STD = 1e-4


class TargetMoments:
    """Count, sum and sum of squares of box targets, per row, in float64."""

    def __init__(self, rows: int) -> None:
        """Start with nothing counted.

        Args:
            rows: classes, or 1.
        """
        self.count = torch.zeros(rows, dtype=torch.int64)
        self._total = torch.zeros(rows, 4, dtype=torch.float64)
        self._squares = torch.zeros(rows, 4, dtype=torch.float64)

    def add(self, targets: torch.Tensor, rows: torch.Tensor) -> None:
        """Count some targets.

        Args:
            targets: (R, 4) float64, on the CPU.
            rows: (R,) int64, the row of each.
        """
        self.count += torch.bincount(rows, minlength=len(self.count))
        self._total.index_add_(0, rows, targets)
        self._squares.index_add_(0, rows, targets**2)

    def add_mirrored(self) -> None:
        """Count all once more, with the sign of dx changed."""
        self.count *= 2
        self._total *= self._total.new_tensor([0, 2, 2, 2])
        self._squares *= 2

    def result(self, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation, divisor n (check E30).

        Args:
            names: of the rows, for the warning about those that have too few targets.

        Returns:
            mean (rows, 4) and std (rows, 4), float32; 0 and 1 without targets, std 1 where targets
            do not vary.
        """
        count = self.count.clamp(min=1)[:, None]
        mean = self._total / count
        std = (self._squares / count - mean**2).clamp(min=0).sqrt()
        constant = std < _MIN_STD
        if constant.any():
            rows = constant.any(dim=1).nonzero().squeeze(1).tolist()
            logger.warning(
                "too few box targets to take their deviation, using 1: %s",
                ", ".join(f"{names[i]} ({self.count[i].item()})" for i in rows),
            )
        std[constant] = 1.0
        return mean.float(), std.float()

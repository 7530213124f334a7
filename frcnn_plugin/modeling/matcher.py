"""Matching of boxes with ground truth by IoU.

What the RPN labels positive and negative with it: ``PaperRPN.match_anchors``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling.matcher import Matcher


class AsyncMatcher(Matcher):
    """Detectron2's matcher, with a guard against objects that no box overlaps.

    Rewrites Detectron2's ``__call__`` and ``set_low_quality_matches_`` with masks in place of
    indices, as a GPU would have to count these before the next operator can start.
    """

    def __init__(
        self,
        thresholds: Sequence[float],
        labels: Sequence[int],
        allow_low_quality_matches: bool = False,
        guard_zero: bool = False,
    ) -> None:
        """Set the rules.

        Args:
            thresholds: ascending IoUs that separate the labels.
            labels: one more than thresholds; each 1, 0 or -1.
            allow_low_quality_matches: a box with the highest IoU of some ground truth is positive.
            guard_zero: except where that highest IoU is 0, which would make all boxes positive that
                do not touch the object (example E9c).
        """
        super().__init__(list(thresholds), list(labels), allow_low_quality_matches)
        self.guard_zero = guard_zero

    def __call__(self, match_quality_matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Match boxes with ground truths, from their IoUs (G, I), none negative.

        Returns:
            index of the ground truth (I,) int64; labels (I,) int8.
        """
        if match_quality_matrix.numel() == 0:
            return super().__call__(match_quality_matrix)
        best, matches = match_quality_matrix.max(dim=0)
        labels = torch.ones_like(matches, dtype=torch.int8)
        for label, low, high in zip(
            self.labels, self.thresholds[:-1], self.thresholds[1:], strict=True
        ):
            labels.masked_fill_((best >= low) & (best < high), label)
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(labels, match_quality_matrix)
        return matches, labels

    def set_low_quality_matches_(
        self, match_labels: torch.Tensor, match_quality_matrix: torch.Tensor
    ) -> None:
        """Label 1, in place, all boxes with the highest IoU of some ground truth, ties included."""
        highest = match_quality_matrix.amax(dim=1, keepdim=True)
        is_highest = match_quality_matrix == highest
        if self.guard_zero:
            is_highest &= highest > 0
        match_labels.masked_fill_(is_highest.any(dim=0), 1)

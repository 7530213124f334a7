"""The matcher that no GPU waits for: Detectron2's labels."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.matcher import Matcher

from frcnn_plugin.modeling.matcher import AsyncMatcher


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize(
    ("thresholds", "labels"),
    [([0.3, 0.7], [0, -1, 1]), ([0.5], [0, 1]), ([0.1, 0.5], [-1, 0, 1])],
)
def test_equals_detectron2s(thresholds: list[float], labels: list[int], low_quality: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    # Tenths, so that thresholds are met and there are ties.
    iou = (torch.rand(6, 50, generator=generator) * 11).floor() / 10
    iou[3] = 0  # a ground truth that nothing touches
    for matrix in (iou, iou[:1], iou[:0], iou[:, :0]):
        expected = Matcher(list(thresholds), list(labels), low_quality)(matrix)
        actual = AsyncMatcher(thresholds, labels, low_quality)(matrix)
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == e.dtype and a.tolist() == e.tolist()

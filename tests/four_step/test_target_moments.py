"""Sums over box targets. Check E30 (docs/checks.md)."""

from __future__ import annotations

import torch

from frcnn_plugin.four_step.statistics import TargetMoments
from tests.four_step.statistics_records import close

E30 = torch.tensor([[0.2, 0, 0.1, 0], [0, 0, 0, 0], [-0.2, 0.1, 0.3, 0.2]], dtype=torch.float64)


def test_moments_e30() -> None:
    moments = TargetMoments(2)
    moments.add(E30[:1], torch.tensor([1]))
    moments.add(E30[1:], torch.tensor([1, 1]))
    mean, std = moments.result(["cat", "dog"])
    assert moments.count.tolist() == [0, 3]
    assert close(mean[1], [0, 0.033333, 0.133333, 0.066667])
    assert close(std[1], [0.163299, 0.04714, 0.124722, 0.094281])
    assert mean[0].tolist() == [0] * 4 and std[0].tolist() == [1] * 4


def test_mirrored_moments_are_those_of_both_copies() -> None:
    mirror = E30 * torch.tensor([-1, 1, 1, 1])
    both, closed = TargetMoments(1), TargetMoments(1)
    rows = torch.zeros(3, dtype=torch.int64)
    both.add(E30, rows)
    both.add(mirror, rows)
    closed.add(E30, rows)
    closed.add_mirrored()
    for a, b in zip(both.result(["x"]), closed.result(["x"]), strict=True):
        assert torch.allclose(a, b, atol=1e-7)
    assert both.count == closed.count == 6

"""benchmarks/agreement.py; by hand."""

from __future__ import annotations

import pytest
import torch

from .benchmark_tool import part


def found(*rows: tuple[float, float, float, float, int]):
    table = torch.tensor(rows).reshape(-1, 5)
    return part("agreement").Found(table[:, :4], table[:, 4].long())


A, B, MOVED_A = (0, 0, 10, 10), (50, 50, 60, 70), (0, 0, 10, 6)  # IoU of A and MOVED_A: 0.6


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ([(*A, 1), (*B, 2)], 100),
        ([(*B, 2), (*A, 1)], 100),  # their order does not matter
        ([(*MOVED_A, 1), (*B, 2)], 100),
        ([(*A, 2), (*B, 2)], 50),  # another class
        ([(*A, 1), (*A, 1), (*A, 1)], 50),
        ([], 0),
    ],
)
def test_found_again(theirs: list[tuple[float, ...]], expected: float) -> None:
    ours = found((*A, 1), (*B, 2))
    assert part("agreement").found_again([ours], [found(*theirs)]) == expected


def test_each_partner_counts_once() -> None:
    twice, once = found((*A, 1), (*MOVED_A, 1)), found((*A, 1))
    assert part("agreement").found_again([twice], [once]) == 50


def test_overlap_wanted() -> None:
    ours, theirs = [found((*A, 1))], [found((*MOVED_A, 1))]
    assert part("agreement").found_again(ours, theirs, iou=0.6) == 100
    assert part("agreement").found_again(ours, theirs, iou=0.61) == 0


def test_over_all_images() -> None:
    ours, theirs = [found((*A, 1)), found(), found((*B, 1))], [found(), found((*A, 1)), found()]
    assert part("agreement").found_again(ours, theirs) == 0
    assert part("agreement").found_again([found()], [found((*A, 1))]) == 100

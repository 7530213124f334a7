"""Operators that make a CPU wait for a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torchvision.ops import batched_nms

from benchmarks.contenders import Contender, calibrated_weights
from benchmarks.syncs import count_syncs, sync_rows, totals
from frcnn_plugin.layers import prefix_nms
from frcnn_plugin.modeling import TargetStatistics

from .tiny import spec_and_work


def count(run: Callable[[], object]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for n, operator, line in sync_rows(count_syncs(run)):
        assert line.startswith("test_syncs.py:") or "torchvision/" in line
        counts[operator] = counts.get(operator, 0) + n
    return counts


def test_waiting_operators_are_counted() -> None:
    x = torch.tensor([3.0, -1.0, 2.0])

    def run() -> None:
        for _ in range(2):
            x.sum().item()
        if x.sum() > 0:  # bool()
            (x > 0).nonzero()
        x[x > 0]
        y = x.clone()
        y[x > 0] = x[:2]
        y.index_put_((x > 0,), x[0])  # as some versions of torch do y[x > 0] = 1: no wait
        x.unique()
        x.tolist()
        x.cpu().numpy()
        x.to("cpu")
        x.new_tensor([1.0])
        torch.tensor([1.0], device=x.device)

    assert count(run) == {
        "local_scalar_dense": 3,
        "nonzero": 1,
        "index": 1,
        "index_put": 1,
        "unique2": 1,
        "tolist": 1,
        "cpu": 1,
        "numpy": 1,
        "to cpu": 1,
        "from numbers": 2,
    }
    rows = sync_rows(count_syncs(run))
    assert totals(rows) == (11, 2)


def test_what_does_not_wait_is_not_counted() -> None:
    x, index = torch.rand(4, 4), torch.tensor([0, 1])

    def run() -> None:
        (x[index] + x[:2]).sum()
        x.to(x.device)
        torch.tensor([1.0])  # stays on the CPU
        torch.where(x > 0, x, -x).sort()

    assert count(run) == {}


def test_suppression_is_counted_as_on_a_gpu() -> None:
    """In one call, by class as well; on a CPU so many boxes take several."""
    corner = torch.rand(3000, 2) * 500
    boxes, scores = torch.cat([corner, corner + 20], 1), torch.linspace(1, 0, 3000)

    def run() -> None:
        prefix_nms(boxes, scores, 0.7, 2000)
        batched_nms(boxes, scores, torch.arange(3000) % 20, 0.7)

    counts = count_syncs(run)
    assert sum(n for (operator, _), n in counts.items() if operator == "nms") == 2
    assert {operator for operator, _ in counts} == {"nms"}


def test_backward_is_counted() -> None:
    x = torch.rand(4, requires_grad=True)
    assert count(lambda: x[x > -1].sum().backward()) == {"index": 1, "index_put": 1}


def test_packages_are_told_by_their_folder() -> None:
    """A script in a clone, or another folder, of the package's name belongs to no package."""
    code = compile("x.sum().item()", "/home/me/frcnn_plugin/mine.py", "exec")
    rows = sync_rows(count_syncs(lambda: exec(code, {"x": torch.ones(2)})))
    assert [line for _, _, line in rows] == ["mine.py:1"]
    statistics = TargetStatistics(1)
    rows = sync_rows(count_syncs(lambda: statistics.active))
    assert rows and all(
        line.startswith("frcnn_plugin/modeling/target_statistics.py:") for _, _, line in rows
    )


@pytest.mark.parametrize(("training", "limit"), [(False, 6), (True, 12)])
def test_the_detector_waits_no_more_often_than_promised(training: bool, limit: int) -> None:
    """Also where more detections are found than kept, with ties (docs/benchmarks.md)."""
    spec, work = spec_and_work(training)
    contender = Contender(spec, work, calibrated_weights(spec, work))
    assert 4 <= totals(sync_rows(count_syncs(contender.run)))[0] <= limit
    if not training:
        assert len(contender.forward()[0]["instances"]) == 10  # all that are wanted

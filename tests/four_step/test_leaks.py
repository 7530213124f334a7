"""Switching stages leaves nothing behind."""

from __future__ import annotations

import gc
import logging
import multiprocessing
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from torch.utils.data import DataLoader

from tests.four_step.four_step_runs import make_trainer

pytestmark = pytest.mark.usefixtures("with_data")

SHORT = [
    *("FOUR_STEP.ITERS", "[1,1,1,1]"),
    *("FOUR_STEP.DROPS", "[[],[],[],[]]"),
    *("FOUR_STEP.RPN_TARGET_STATISTICS", "True"),
]
KINDS = (torch.nn.Module, torch.optim.Optimizer, DataLoader, torch.Tensor)


def count() -> Counter[str]:
    """Live objects by kind, and bytes of tensors."""
    gc.collect()
    result: Counter[str] = Counter()
    for item in gc.get_objects():
        # Not isinstance alone: proxies answer for what they stand for.
        kind = next((k for k in KINDS if issubclass(type(item), k)), None)
        if kind is not None:
            result[kind.__name__] += 1
        if kind is torch.Tensor:
            result["bytes"] += item.numel() * item.element_size()
    result["children"] = len(multiprocessing.active_children())
    result["filters"] = sum(
        len(h.filters) for name in ("detectron2", "fvcore", "frcnn_plugin")
        for h in logging.getLogger(name).handlers
    )  # fmt: skip
    return result


class Census(HookBase):
    """Counts before every iteration."""

    def __init__(self) -> None:
        self.counts: list[Counter[str]] = []

    def before_step(self) -> None:
        self.counts.append(count())


@pytest.mark.parametrize("workers", ["0", "1"])
def test_old_loaders_and_tensors_are_gone_within_a_run(tmp_path: Path, workers: str) -> None:
    trainer = make_trainer(tmp_path, [*SHORT, "DATALOADER.NUM_WORKERS", workers])
    census = Census()
    trainer.register_hooks([census])
    trainer.train()
    counts = census.counts
    before = Counter(counts[0])
    assert len(counts) == 4
    for now in counts[1:]:
        for kind in ("Module", "Optimizer", "DataLoader", "children"):
            assert now[kind] <= before[kind], (kind, now, before)
    # Like stages need the same; tensors of a data set's records may differ a little.
    for first, second in ((0, 2), (1, 3)):
        assert counts[second]["Tensor"] <= counts[first]["Tensor"] + 20
        assert counts[second]["bytes"] <= counts[first]["bytes"] * 1.01


def test_many_short_runs_do_not_grow(tmp_path: Path) -> None:
    """12 stages, after those that fill caches."""
    after = []
    for i in range(5):
        make_trainer(tmp_path / str(i), SHORT).train()
        if i in (1, 4):
            after.append(count())
    assert after[0] == after[1]
    held = make_trainer(tmp_path / "held", SHORT)  # the census would notice one that is left over
    assert all(count()[kind.__name__] > after[0][kind.__name__] for kind in KINDS)
    assert held.max_iter == 4

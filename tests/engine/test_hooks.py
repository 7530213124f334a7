"""Hooks. Literals: example E17 (docs/worked_examples.md)."""

from __future__ import annotations

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer, hooks

from frcnn_plugin.engine import CaffeMomentum


class Linear(torch.nn.Module):
    """Loss = w, so the gradient is constantly 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))

    def forward(self, data: object) -> dict[str, torch.Tensor]:
        return {"loss": self.w * 1.0}


class Steps(HookBase):
    """Records how far the weight moved in each iteration."""

    def __init__(self, model: Linear) -> None:
        self.model = model
        self.last = 0.0
        self.moves: list[float] = []

    def after_step(self) -> None:
        now = self.model.w.item()
        self.moves.append(self.last - now)
        self.last = now


def moves(caffe: bool) -> list[float]:
    model = Linear().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [200], 0.1)
    trainer = SimpleTrainer(model, [None], optimizer)
    steps = Steps(model)
    trainer.register_hooks(
        [steps, hooks.LRScheduler(optimizer, scheduler), *([CaffeMomentum(optimizer)] * caffe)]
    )
    trainer._data_loader_iter_obj = iter([None] * 300)
    trainer.train(0, 203)
    return steps.moves[199:203]


def test_momentum_across_a_drop_e17() -> None:
    assert moves(caffe=True) == pytest.approx([0.01, 0.0091, 0.00829, 0.007561], abs=1e-6)


def test_torch_alone_differs_e17() -> None:
    assert moves(caffe=False) == pytest.approx([0.01, 0.001, 0.001, 0.001], abs=1e-6)

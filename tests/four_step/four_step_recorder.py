"""Watches a four-step training from outside."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from typing import Any

import torch
from detectron2.engine import HookBase, hooks

from frcnn_plugin.engine import PaperTrainer
from frcnn_plugin.modeling.proposal_generator import rpn as rpn_module

LOGGERS = ("detectron2", "fvcore", "frcnn_plugin")


class Recorder(HookBase):
    """The last hook of a trainer: sees an iteration after all that other hooks do.

    Attributes, per iteration or, where said, per number of the stage:
        rates: the smallest learning rate.
        entered: by stage, all weights at its first iteration, before the update.
        momentum: by stage, number of parameters with momentum at that time.
        moved: by stage, names of parameters that some iteration changed.
        trainable: by stage, names of parameters with ``requires_grad``.
        batches: by stage, the set of (phase, images, with proposals?) of training batches.
        conv_gradient: by stage, whether some feature map had a ``grad_fn``.
        selected: by stage, calls of ``select_proposals`` in training.
        losses: by stage, names of the losses in the storage.
        lines: what was logged, in order, as a handler sees it.
    """

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.entered: dict[int, dict[str, torch.Tensor]] = {}
        self.momentum: dict[int, int] = {}
        self.moved: dict[int, set[str]] = defaultdict(set)
        self.trainable: dict[int, set[str]] = {}
        self.batches: dict[int, set[tuple[str, int, bool]]] = defaultdict(set)
        self.conv_gradient: dict[int, bool] = defaultdict(bool)
        self.selected: Counter[int] = Counter()
        self.losses: dict[int, set[str]] = defaultdict(set)
        self.lines: list[str] = []
        self._stage = 0

    def watch(self, trainer: PaperTrainer) -> None:
        """Train ``trainer`` under observation."""
        self._model = trainer.model
        for hook in trainer._hooks:
            if isinstance(hook, hooks.PeriodicWriter):
                hook._period = 1
        trainer.register_hooks([self])
        before = self._model.register_forward_pre_hook(self._see_batch)
        after = self._model.backbone.register_forward_hook(self._see_features)
        handler = _Lines(self.lines)
        levels = {name: logging.getLogger(name).level for name in LOGGERS}
        for name in LOGGERS:
            logging.getLogger(name).addHandler(handler)
            logging.getLogger(name).setLevel(logging.INFO)
        select = rpn_module.select_proposals
        rpn_module.select_proposals = self._count(select)
        try:
            trainer.train()
        finally:
            rpn_module.select_proposals = select
            for name, level in levels.items():
                logging.getLogger(name).removeHandler(handler)
                logging.getLogger(name).setLevel(level)
            before.remove()
            after.remove()

    def before_step(self) -> None:
        self._stage = int(self.trainer.storage.latest()["stage"][0])
        self._before = self._weights()
        self.rates.append(min(g["lr"] for g in self.trainer.optimizer.param_groups))
        if self._stage not in self.entered:
            self.entered[self._stage] = {k: v.clone() for k, v in self._model.state_dict().items()}
            self.momentum[self._stage] = len(self.trainer.optimizer.state)
            self.trainable[self._stage] = {
                n for n, p in self._model.named_parameters() if p.requires_grad
            }

    def after_step(self) -> None:
        now = self._weights()
        self.moved[self._stage] |= {n for n in now if not torch.equal(now[n], self._before[n])}
        self.losses[self._stage] |= {n for n in self.trainer.storage.latest() if "loss" in n}

    def _weights(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self._model.named_parameters()}

    def _see_batch(self, model: Any, args: tuple[list[dict[str, Any]]]) -> None:
        if model.training:
            seen = (model.phase, len(args[0]), all("proposals" in x for x in args[0]))
            self.batches[self._stage].add(seen)

    def _see_features(self, backbone: Any, args: Any, features: dict[str, torch.Tensor]) -> None:
        if backbone.training:
            has_gradient = any(f.grad_fn is not None for f in features.values())
            self.conv_gradient[self._stage] |= has_gradient

    def _count(self, select: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._model.training:
                self.selected[self._stage] += 1
            return select(*args, **kwargs)

        return counted


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.INFO)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record.getMessage())

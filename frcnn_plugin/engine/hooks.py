"""Small hooks."""

from __future__ import annotations

from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from ..host import start_data_loader


class CaffeMomentum(HookBase):
    """Rescale SGD's momentum at every change of the learning rate, as Caffe's update implies.

    Caffe keeps ``lr * gradient`` in the momentum buffer, torch the bare gradient. With a constant
    rate both change the weights alike; after a drop Caffe's buffer still holds gradients times the
    old rate, for about 20 iterations. Multiplying torch's buffer by old rate / new rate reproduces
    that exactly (example E17 of docs/worked_examples.md, point 34 of docs/faithfulness.md).

    Put it right after Detectron2's ``LRScheduler`` hook, which changes the rate.
    """

    def __init__(self, optimizer: Any) -> None:
        """Watch the learning rates of ``optimizer`` (``torch.optim.SGD``)."""
        self._optimizer = optimizer
        self._rates: list[float] = []

    def before_train(self) -> None:
        """Remember the rates that training starts, or resumes, with."""
        self._rates = [group["lr"] for group in self._optimizer.param_groups]

    def after_step(self) -> None:
        """Rescale the buffers of every group whose rate has just changed."""
        for i, group in enumerate(self._optimizer.param_groups):
            before, now = self._rates[i], group["lr"]
            if now == before or now == 0:  # of a rate of 0 no buffer comes back
                continue
            for parameter in group["params"]:
                buffer = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
                if buffer is not None:
                    buffer.mul_(before / now)
            self._rates[i] = now


class SeedEveryIteration(HookBase):
    """Make the random numbers of an iteration depend on its number, not on what ran before.

    Sampling of anchors and RoIs, and dropout, then repeat exactly when a run is resumed, however it
    was interrupted.
    """

    def __init__(self, seed: int, first: int = 0) -> None:
        """Set the run's seed.

        Args:
            seed: ``cfg.SEED``.
            first: number of the run's first iteration, if it is the later part of another run.
        """
        self._seed = seed + 1009 * first

    def before_step(self) -> None:
        """Seed all generators of this process."""
        # Starting a data loader draws a number. That happens in the first iteration, of a resumed
        # run too, so it is done before the seed: the numbers of an iteration are then its own.
        start_data_loader(self.trainer)
        # Apart by more than the number of processes, so that no two share a seed.
        seed_all_rng((self._seed + 1009 * self.trainer.iter + comm.get_rank()) % 2**31)

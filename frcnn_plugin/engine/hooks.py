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
    rate both take the same steps; after a drop Caffe keeps the old rate's momentum for about 20
    steps. Multiplying torch's buffer by old rate / new rate reproduces that exactly (check E17 of
    docs/checks.md, point 34 of docs/faithfulness.md).

    Put it right behind the host's ``LRScheduler`` hook.
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
            if now == before or now == 0:
                continue
            for parameter in group["params"]:
                buffer = self._optimizer.state.get(parameter, {}).get("momentum_buffer")
                if buffer is not None:
                    buffer.mul_(before / now)
            self._rates[i] = now


class SeedEveryStep(HookBase):
    """Make the random numbers of an iteration depend on its number, not on what ran before.

    Sampling of anchors and RoIs and dropout then repeat exactly when a run is resumed, however it
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
        # Starting a data loader draws a number; it must not be one of this iteration.
        start_data_loader(self.trainer)
        # Apart by more than the number of processes, so that no two share a seed.
        seed_all_rng((self._seed + 1009 * self.trainer.iter + comm.get_rank()) % 2**31)

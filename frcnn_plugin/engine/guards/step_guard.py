"""Watch every training iteration, and explain an error that ends the run in one message."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from ...errors import UserError
from ...process import unwrap_model
from .anomaly import StepRecord, explain_anomaly
from .memory_errors import memory_errors_explained

# Of the module that logs every exception of a training with its traceback.
_LOOP_LOGGER = "detectron2.engine.train_loop"


class StepGuard(HookBase):
    """Stops on a loss that is not finite, before the optimizer spoils the weights with it.

    Detectron2 checks as well, but one iteration later for the other processes, and says no more
    than the losses. This hook looks after every backward pass, in all processes: the one that sees
    it writes ``OUTPUT_DIR/nan_dump_<iteration>.pth``, and all stop. Gradients that overflow in
    mixed precision do not stop it: the scaler leaves such iterations out.

    Register it with the *inner* trainer, which calls ``after_backward``, and run the iterations
    inside :meth:`explaining`::

        guard = StepGuard(cfg, model)
        inner_trainer(trainer).register_hooks([guard])
    """

    def __init__(self, cfg: CfgNode, model: torch.nn.Module) -> None:
        """Watch ``model``, wrapped or not; the losses are what it returns in training."""
        self._cfg = cfg
        self._model: Any = unwrap_model(model)
        self._record = StepRecord()
        self._batch: list[dict[str, Any]] = []
        this = weakref.ref(self)

        # Functions, not methods: a copy of the model must not copy the trainer.
        def before(_: Any, args: tuple[Any, ...]) -> None:
            guard = this()
            if guard is not None and guard._model.training:
                guard._begin(args[0])

        def after(_: Any, __: Any, losses: Any) -> None:
            guard = this()
            if guard is not None and guard._model.training:
                guard._note(losses)

        self._model.register_forward_pre_hook(before)
        self._model.register_forward_hook(after)
        _log_user_errors_plainly()

    def _begin(self, batch: Any) -> None:
        self._batch[:] = batch
        self._record = StepRecord(batch=self._batch, previous_losses=self._record.losses)

    def _note(self, losses: Any) -> None:
        if isinstance(losses, torch.Tensor):
            losses = {"total_loss": losses}
        self._record.losses = {name: value.detach() for name, value in losses.items()}

    def after_backward(self) -> None:
        """Look at the losses of this iteration.

        Raises:
            UserError: in every process, if one of them has a loss that is nan or infinite.
        """
        self._record.has_gradients = True
        losses = self._record.losses
        if not losses:
            return
        total = torch.stack([value.sum().float() for value in losses.values()]).sum()
        processes = comm.get_world_size()
        # The lowest rank that sees something; the number of processes if none does.
        rank = torch.where(total.isfinite(), processes, comm.get_rank())
        if processes > 1:
            dist.all_reduce(rank, op=dist.ReduceOp.MIN)
        first = int(rank)
        if first == processes:
            return
        message = self._explain() if comm.get_rank() == first else ""
        raise UserError(comm.all_gather(message)[first])

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Run a part of training, and turn the errors that this class knows into UserErrors.

        Raises:
            UserError: memory ran out, or Detectron2 found numbers that are not finite.
        """
        phase = getattr(self._model, "phase", "joint")
        # The list is filled when the batch of the iteration is known.
        with memory_errors_explained(self._cfg, self._batch, phase):
            try:
                yield
            except FloatingPointError as e:
                raise UserError(self._explain(str(e).partition("\n")[0])) from None
        self._batch.clear()  # after a good iteration its images may go

    def _explain(self, found: str = "") -> str:
        return explain_anomaly(
            self._cfg, self._model, self.trainer, self._record, self.trainer.iter, found
        )


def _log_user_errors_plainly() -> None:
    """Filter what Detectron2's training loop logs; a second call changes nothing."""
    logger = logging.getLogger(_LOOP_LOGGER)
    if not any(isinstance(f, _PlainUserErrors) for f in logger.filters):
        logger.addFilter(_PlainUserErrors())


class _PlainUserErrors(logging.Filter):
    """Log a user's mistake in the middle of training as a sentence, not as a stack trace."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Take the traceback off a record about a UserError; never drop one."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, UserError):
            record.msg, record.args = "training stopped: %s", (str(error),)
            record.exc_info = None
        return True

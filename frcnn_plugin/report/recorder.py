"""Notes for the training report: command, environment, plan, and when each step ran."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from ..errors import UserError
from ..four_step.hook import FourStepHook
from ..host import registered_hooks
from ..process import environment
from .run_record import RunRecord, Session, Span

logger = logging.getLogger(__name__)


class RunRecorder(HookBase):
    """Keeps ``OUTPUT_DIR/run.json`` up to date: at the start, at the ends of each step, at the end.

    For the main process, and the last hook: iterations are then timed without what other hooks do
    between the steps, and the end is behind the last evaluation.
    """

    def __init__(
        self, cfg: CfgNode, config_file: str = "", command: Sequence[str] | None = None
    ) -> None:
        """Prepare; nothing is written before training starts.

        Args:
            cfg: config of the run.
            config_file: the YAML it was started with; "" for none.
            command: words of the command line; those of this process if None.
        """
        self._cfg = cfg.clone()
        self._config_file = config_file
        self._command = list(sys.argv if command is None else command)
        self._begun = time.perf_counter()
        self._record: RunRecord | None = None

    def before_train(self) -> None:
        """Begin a record, or go on with that of the run that is resumed."""
        hooks = registered_hooks(self.trainer)
        self._four_step = next((h for h in hooks if isinstance(h, FourStepHook)), None)
        self._stages = self._four_step.stages if self._four_step else []
        folder = Path(self._cfg.OUTPUT_DIR)
        record = None
        if self.trainer.start_iter > 0:
            try:
                record = RunRecord.load(folder)
            except UserError as error:  # not worth a training
                logger.warning("%s; the report will lack the time before this", error)
        if record is None:
            metrics = folder / "metrics.json"
            kept = self.trainer.start_iter > 0 or not metrics.is_file()
            record = RunRecord(
                config_file=self._config_file and os.path.abspath(self._config_file),
                config="",
                plan=[],
                metrics_start=0 if kept else metrics.stat().st_size,
            )
        # A resumed run may go on beyond the step that it was to stop after.
        record.config = self._cfg.dump()
        record.plan = self._four_step.plan if self._four_step else []
        self._record = record
        self._session = Session(
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=self._command,
            first=self.trainer.start_iter,
            environment={**environment(), "device": self._cfg.MODEL.DEVICE},
        )
        record.sessions.append(self._session)
        self._save()

    def before_step(self) -> None:
        """Note where a step begins."""
        i = self.trainer.iter
        if i == self.trainer.start_iter or any(i == stage.start for stage in self._stages):
            step = next((s.number for s in self._stages if s.start <= i < s.end), 0)
            self._session.spans.append(Span(step, i, self._seconds()))
            self._save()

    def after_step(self) -> None:
        """Note where a step ends."""
        after = self.trainer.iter + 1
        if after == self.trainer.max_iter or any(after == stage.end for stage in self._stages):
            _wait_for_device(self._cfg.MODEL.DEVICE)
            self._session.spans[-1].ends = self._seconds()
            self._save()

    def after_train(self) -> None:
        """Note the end; also called after an error."""
        if self._record is None:  # an error before anything began
            return
        self._session.ended = self._seconds()
        self._session.complete = self.trainer.iter >= self.trainer.max_iter
        self._save()

    def _save(self) -> None:
        assert self._record is not None
        try:
            self._record.save(self._cfg.OUTPUT_DIR)
        except OSError as error:  # not worth a training either
            logger.warning("cannot write the notes for the report: %s", error)

    def _seconds(self) -> float:
        return round(time.perf_counter() - self._begun, 3)


def _wait_for_device(device: str) -> None:
    # Work is queued there; the step is over when it is done.
    if device.startswith("cuda"):
        torch.cuda.synchronize()

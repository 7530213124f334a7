"""What four-step training logs: every line says its stage, and only that stage's losses."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .. import host
from .stages import STAGES

_LOGGERS = ("detectron2", "fvcore", "frcnn_plugin")


class StageLog(logging.Filter):
    """Put "[stage 2/4]" in front of what the loggers of Detectron2 and of the plugin print.

    It is a filter of their handlers, as there is no other way to change lines that Detectron2's
    own hooks write.
    """

    def __init__(self) -> None:
        """Start without a stage: lines stay as they are."""
        super().__init__()
        self.stage = 0
        self._handlers: list[logging.Handler] = []

    def start(self) -> None:
        """Enter the handlers that exist now, each once."""
        self._handlers = []
        for name in _LOGGERS:
            for handler in logging.getLogger(name).handlers:
                if handler not in self._handlers:
                    handler.addFilter(self)
                    self._handlers.append(handler)

    def stop(self) -> None:
        """Leave the handlers."""
        for handler in self._handlers:
            handler.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the line; never drop one."""
        # Several handlers see the same record.
        if self.stage and not str(record.msg).startswith("[stage "):
            record.msg = f"[stage {self.stage}/{len(STAGES)}] {record.msg}"
        return True


def forget_losses(storage: Any) -> None:
    """Drop all losses from Detectron2's ``EventStorage``.

    It prints the newest value of every loss, also of those that have ended.
    """
    host.forget_scalars(storage, "loss")


def put_results(storage: Any, number: int, results: Mapping[str, Any]) -> None:
    """Write what was measured of a stage to Detectron2's ``EventStorage``.

    Args:
        storage: of the trainer.
        number: of the stage.
        results: per test set, metrics by task.
    """
    for dataset, metrics in results.items():
        # The set's name stands in the key where there are several, as Detectron2 does it.
        prefix = f"stage{number}/" + (f"{dataset}/" if len(results) > 1 else "")
        for task, values in metrics.items():
            for key, value in values.items():
                storage.put_scalar(f"{prefix}{task}/{key}", value, smoothing_hint=False)

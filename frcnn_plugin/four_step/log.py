"""Every log line of four-step training says its step, and only that step's losses."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ..host import forget_scalars

_LOGGERS = ("detectron2", "fvcore", "frcnn_plugin")


class StageLog(logging.Filter):
    """Puts "[step 2/4]" in front of what the host's and the plugin's loggers print."""

    def __init__(self) -> None:
        """Start without a step: lines stay as they are."""
        super().__init__()
        self.stage = 0
        self._handlers: list[logging.Handler] = []

    def start(self) -> None:
        """Hook into the handlers that exist now, each once."""
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
        """Change the line; never drops one."""
        prefix = f"[step {self.stage}/4] "
        # Several handlers see the same record.
        if self.stage and not str(record.msg).startswith("[step "):
            record.msg = prefix + str(record.msg)
        return True


def forget_losses(storage: Any) -> None:
    """Drop all losses from the host's ``EventStorage``.

    It prints the newest value of every loss, also of those that have ended.
    """
    forget_scalars(storage, "loss")


def put_results(storage: Any, number: int, results: Mapping[str, Any]) -> None:
    """Write what was measured of a step to the host's ``EventStorage``.

    Args:
        storage: of the trainer.
        number: of the step.
        results: per test set, metrics by task.
    """
    for dataset, metrics in results.items():
        # The set's name stands in the key where there are several, as the host does it.
        prefix = f"stage{number}/" + (f"{dataset}/" if len(results) > 1 else "")
        for task, values in metrics.items():
            for key, value in values.items():
                storage.put_scalar(f"{prefix}{task}/{key}", value, smoothing_hint=False)

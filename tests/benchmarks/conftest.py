"""What all tests of the benchmarks need."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from detectron2.utils.logger import setup_logger


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """The tool's log goes to a stream that ends with the test."""
    logs = [logging.getLogger(name) for name in ("benchmarks", "frcnn_plugin")]
    before = [(list(log.handlers), log.level, log.propagate) for log in logs]
    yield
    for log, state in zip(logs, before, strict=True):
        log.handlers, log.level, log.propagate = state
    setup_logger.cache_clear()

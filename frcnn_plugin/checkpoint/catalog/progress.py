"""How far a download or an unpacking is: a bar on a terminal, lines in a log file otherwise."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from tqdm import tqdm

LOG_EVERY = 10.0  # seconds


class ByteProgress:
    """Counts bytes; use it in a ``with``."""

    def __init__(self, title: str, total: int, logger: logging.Logger, start: int = 0) -> None:
        """Start counting.

        Args:
            title: what is being read.
            total: bytes; 0 if unknown.
            logger: gets a line every `LOG_EVERY` seconds where there is no terminal.
            start: bytes that were there before.
        """
        self._title, self._total, self._logger, self._done = title, total, logger, start
        self._last = time.monotonic()
        self._on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            desc=title,
            total=total or None,
            initial=start,
            unit="B",
            unit_scale=True,
            disable=not self._on_terminal,
        )

    def __enter__(self) -> ByteProgress:
        return self

    def add(self, count: int) -> None:
        """`count` more bytes are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if not self._on_terminal and now - self._last >= LOG_EVERY:
            self._last = now
            of = f" of {megabytes(self._total)}" if self._total else ""
            self._logger.info("%s: %s%s", self._title, megabytes(self._done), of)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()


def megabytes(count: int) -> str:
    """``553.4 MB``; a small number in bytes."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count} bytes"

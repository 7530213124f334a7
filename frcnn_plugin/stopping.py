"""Stopping from outside: the first SIGTERM or Ctrl-C asks for it, a second one leaves at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STATUS = 75  # "temporary failure" in sysexits.h: the same command with --resume goes on
# Seconds in which signals count as one: terminal, launcher and batch system may all send it.
_ONE = 2.0

_first: tuple[int, float] | None = None  # the signal that asked, and when


class Stopped(SystemExit):
    """A run ended early. `message`: the line for the user, "" if it is printed already."""

    def __init__(self, message: str = "", status: int = STATUS) -> None:
        super().__init__(status)
        self.message = message


def asked() -> str:
    """Return the name of the signal that asked this process to stop; "" if none did."""
    return signal.Signals(_first[0]).name if _first else ""


@contextmanager
def listening(pass_on: Callable[[int], None] | None = None) -> Iterator[None]:
    """Only note a SIGTERM or SIGINT, for :func:`asked`, while the ``with`` block runs.

    A second one ends the process, with 128 + its number; so does any if the process that started
    this one is dead. Outside of the main thread nothing changes.

    Args:
        pass_on: called with each signal, where other processes do the work. A second one is then
            raised as KeyboardInterrupt.
    """
    global _first

    def note(number: int, _: object) -> None:
        global _first
        again = _first is not None and time.monotonic() - _first[1] >= _ONE
        parent = multiprocessing.parent_process()
        if (again and pass_on is None) or (parent is not None and not parent.is_alive()):
            os._exit(128 + number)  # a dead parent's folder may be another run's now
        if _first is None:
            _first = number, time.monotonic()
            # Loader processes may have had it, too. torch's handler would raise that they are
            # dead wherever the code happens to be, as in writing a checkpoint.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        elif not again:
            return
        if pass_on is not None:
            pass_on(number)
        if again:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _first = None

"""Damaged and evil files for readers: a UserError or a result, and little memory."""

from __future__ import annotations

import multiprocessing
import random
import resource
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from frcnn_plugin.errors import UserError

_EDGES = (0, 1, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
MEGABYTE = 2**20


class Calls:
    """Pickled as a call, which an unguarded reader makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Change, cut, repeat or insert a few bytes, more often at the beginning."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        size = len(changed)
        place = rng.randrange(size if rng.random() < 0.6 else min(size, 300)) if size else 0
        width = rng.choice((1, 2, 4, 8))
        kind = rng.randrange(6)
        if kind == 0:
            changed[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            number = rng.choice(_EDGES) % 256**width
            changed[place : place + width] = number.to_bytes(width, "little")
        elif kind == 2:
            del changed[place : place + width]
        elif kind == 3:
            changed[place:place] = rng.randbytes(width)
        elif kind == 4:
            start = rng.randrange(size + 1)
            changed[place:place] = changed[start : start + 4 * width]
        elif rng.random() < 0.3:
            del changed[place:]
    return bytes(changed)


def check_reader(
    read: Callable[[], Any], path: Path, contents: Sequence[bytes], runs: int = 300
) -> None:
    """Read damaged versions of `contents`, as `path`, in a process of limited memory."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_read_all, args=(read, path, contents, runs, queue))
    process.start()
    process.join(120)
    assert process.exitcode == 0, "the process ended"
    problem, outcomes, grown = queue.get()
    assert not problem, problem
    assert outcomes["refused"] > runs / 10, outcomes  # or nothing was damaged
    assert grown < 100 * MEGABYTE, grown


def _read_all(
    read: Callable[[], Any], path: Path, contents: Sequence[bytes], runs: int, queue: Any
) -> None:
    status = Path("/proc/self/statm")
    if status.exists():  # Linux
        now = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 1024 * MEGABYTE,) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for number in range(runs):
        path.write_bytes(damaged(rng, contents[number % len(contents)]))
        try:
            read()
        except UserError:
            outcomes["refused"] += 1
        except BaseException:
            queue.put((f"{path.read_bytes()!r}\n{traceback.format_exc()}", outcomes, 0))
            return
        else:
            outcomes["read"] += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    queue.put(("", outcomes, grown * 1024))

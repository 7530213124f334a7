"""Reading ``metrics.json``, also of a run that was killed, resumed or started anew."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# The host writes it at every iteration that it logs, and only there.
_TRAINING_KEY = "lr"


@dataclass
class Metrics:
    """What was logged.

    Attributes:
        training: values of the iterations that were logged, by name, in order of "iteration".
        results: newest value of everything else, such as "stage2/bbox/AP50".
        unreadable: lines that are no JSON object with an iteration.
    """

    training: list[dict[str, float]] = field(default_factory=list)
    results: dict[str, float] = field(default_factory=dict)
    unreadable: int = 0

    def series(self, name: str, first: int = 0, end: int | None = None) -> list[tuple[int, float]]:
        """``(iteration, value)`` where `name` was logged, first <= iteration < end."""
        return [
            (int(row["iteration"]), row[name])
            for row in self.training
            if name in row and first <= row["iteration"] < (math.inf if end is None else end)
        ]

    def losses(self) -> list[str]:
        """Names of all losses, the total first."""
        names = {name for row in self.training for name in row if "loss" in name}
        return sorted(names, key=lambda name: (name != "total_loss", name))

    @property
    def done(self) -> int:
        """Iterations known to be done."""
        return int(self.training[-1]["iteration"]) + 1 if self.training else 0

    def not_finite(self) -> tuple[str, int] | None:
        """The first loss that is nan or infinite, and its iteration."""
        for row in self.training:
            for name, value in row.items():
                if "loss" in name and not math.isfinite(value):
                    return name, int(row["iteration"])
        return None


def read_metrics(path: Path, start: int = 0) -> Metrics:
    """Reads a ``metrics.json``.

    The host appends to it. Where iterations go back, a run was resumed or started anew: what the
    file has beyond that iteration is not part of the run any more.

    Args:
        path: the file; nothing is there if it is missing.
        start: bytes to pass over.
    """
    metrics = Metrics()
    if not path.is_file():
        return metrics
    results: dict[str, tuple[int, float]] = {}
    for line in path.read_bytes()[start:].decode("utf-8", errors="replace").splitlines():
        row = _parse(line)
        if row is None:
            metrics.unreadable += bool(line.strip())
            continue
        iteration = int(row["iteration"])
        if _TRAINING_KEY not in row:
            results.update({k: (iteration, v) for k, v in row.items() if k != "iteration"})
            continue
        if metrics.training and metrics.training[-1]["iteration"] >= iteration:
            metrics.training = [r for r in metrics.training if r["iteration"] < iteration]
            results = {k: v for k, v in results.items() if v[0] <= iteration}
        metrics.training.append(row)
    metrics.results = {name: value for name, (_, value) in results.items()}
    return metrics


def _parse(line: str) -> dict[str, float] | None:
    try:
        row: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not isinstance(row.get("iteration"), int):
        return None
    return {k: v for k, v in row.items() if isinstance(v, (int, float))}

"""Statistics of repeated measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2000


@dataclass(frozen=True)
class Spread:
    """Median and quartiles, in the unit of the values."""

    median: float
    lower: float
    upper: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of one value or more."""
    lower, median, upper = np.percentile(values, [25, 50, 75])
    return Spread(float(median), float(lower), float(upper))


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians and its 95% interval."""

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.lower:.3f}, {self.upper:.3f}]"


def ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Ratio:
    """Median of ours divided by the median of theirs.

    The interval is from bootstrap resamples of whole rounds, as the two of a round belong together.

    Args:
        ours: one value per round.
        theirs: likewise.
        seed: of the resamples.
    """
    a, b = np.asarray(ours, float), np.asarray(theirs, float)
    picked = np.random.default_rng(seed).integers(0, len(a), (_RESAMPLES, len(a)))
    resampled = np.median(a[picked], axis=1) / np.median(b[picked], axis=1)
    lower, upper = np.percentile(resampled, [2.5, 97.5])
    return Ratio(float(np.median(a) / np.median(b)), float(lower), float(upper))

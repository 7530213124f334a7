"""Says in one line why detections cannot be those of a trained detector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SAME_SCORE = 1e-3
_CONFIDENT = 0.5


def diagnose_scores(
    scores: Sequence[float] | npt.NDArray[np.float64], num_classes: int
) -> str | None:
    """Looks at the scores alone.

    Args:
        scores: of all detections of a data set, in any order.
        num_classes: number of classes, background not counted.

    Returns:
        The line, or None if nothing looks wrong.
    """
    if len(scores) == 0:
        return (
            "no detections at all: is MODEL.WEIGHTS the trained detector (and not, say, a "
            "backbone), and MODEL.ROI_HEADS.SCORE_THRESH_TEST low enough? A detector that has "
            "trained only a few iterations calls everything background"
        )
    lowest, highest = float(np.min(scores)), float(np.max(scores))
    if len(scores) > 1 and highest - lowest <= _SAME_SCORE:
        return (
            f"all {len(scores)} scores lie within {_SAME_SCORE} of {highest:.4f} (chance is "
            f"{1 / (num_classes + 1):.4f}): the predictor looks untrained; is MODEL.WEIGHTS the "
            f"trained detector, with the same number of classes?"
        )
    return None


def diagnose_misses(scores: Sequence[float] | npt.NDArray[np.float64], ap50: float) -> str | None:
    """Looks at confident detections none of which is right.

    Args:
        scores: of all detections of a data set, in any order.
        ap50: their AP50, in percent.

    Returns:
        The line, or None if nothing looks wrong.
    """
    if len(scores) == 0 or not ap50 == 0 or np.max(scores) < _CONFIDENT:
        return None
    return (
        f"AP50 is 0 although there are {len(scores)} detections, the best with score "
        f"{float(np.max(scores)):.3f}: their classes or boxes are not those of the annotations. Is "
        f"the class list of the test set, in this order, the one that MODEL.WEIGHTS was trained "
        f"with, and are its boxes where the objects are?"
    )

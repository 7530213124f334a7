"""Why detections cannot be those of a trained detector, in one warning."""

import numpy as np
import pytest

from frcnn_plugin.evaluation.detections import diagnose


def test_no_detections():
    text = diagnose([], 20) or ""
    for part in ("no detections at all", "MODEL.WEIGHTS", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"):
        assert part in text


def test_chance_level():
    """1 / 21 = 0.0476, the number that people report."""
    text = diagnose([0.0476, 0.0475, 0.0480], 20) or ""
    assert "all 3 scores lie within 0.001 of 0.0480 (chance is 0.0476)" in text
    assert "is MODEL.WEIGHTS the trained detector, with the same number of classes" in text


@pytest.mark.parametrize("scores", [[0.04, 0.05], [0.3], np.array([0.9, 0.1])])
def test_nothing_wrong(scores):
    assert diagnose(scores, 20) is None


def test_confident_but_never_right():
    text = diagnose([0.2, 0.98], 20, 0.0) or ""
    assert "AP50 is 0 although there are 2 detections, the best with score 0.980" in text
    assert "Is the class list of the test set, in this order, the one that MODEL.WEIGHTS" in text
    for scores, ap50 in (([0.2, 0.98], 0.1), ([0.2, 0.4], 0.0), ([0.9], float("nan"))):
        assert diagnose(scores, 20, ap50) is None


@pytest.mark.parametrize(
    ("scores", "classes", "looks_untrained"),
    [
        ([0.9998, 1.0, 0.9999], 3, False),  # a perfect detector
        ([1.0, 1.0], 1, False),
        ([0.5012, 0.5015], 1, True),  # chance is 1/2
        ([0.2501, 0.2502], 3, True),
    ],
)
def test_one_score_for_all(scores: list[float], classes: int, looks_untrained: bool) -> None:
    assert ("looks untrained" in (diagnose(scores, classes) or "")) is looks_untrained

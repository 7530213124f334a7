"""The drawing functions: extents in image pixels, numbers in titles, nothing to draw."""

from __future__ import annotations

import numpy as np
import pytest

from frcnn_plugin.visualization import (
    Objects,
    Sample,
    draw_anchors,
    draw_data,
    draw_detections,
    draw_proposals,
    draw_samples,
)
from frcnn_plugin.visualization.drawings.palette import BLUE, GREY, VERMILION, YELLOW

from .artists import IMAGE, boxes, heading, legend, texts

NOTHING = Objects(np.zeros((0, 4)), [], np.zeros(0, dtype=bool))


def objects(*rows: tuple[list[float], str, bool]) -> Objects:
    table = list(zip(*rows, strict=True))
    return Objects(np.array(table[0], dtype=float), table[1], np.array(table[2]))


TWO = objects(([10, 20, 60, 80], "dog", False), ([100, 10, 130, 40], "cat", True))


def test_data() -> None:
    canvas = draw_data(IMAGE, TWO, "000001", [])
    assert heading(canvas) == (
        "data: 000001, 1 object, 1 difficult or crowd 200 x 100 pixels"
    )  # fmt: skip
    assert boxes(canvas.axes[0], YELLOW, "-") == [(10, 20, 60, 80)]
    assert boxes(canvas.axes[0], GREY, "--") == [(100, 10, 130, 40)]
    assert texts(canvas.axes[0]) == ["1 dog 50 x 60", "2 cat 30 x 30, difficult"]
    assert legend(canvas) == ["object", "difficult or crowd"]
    empty = draw_data(IMAGE, NOTHING, "000002", [])
    assert "0 objects, 0 difficult" in heading(empty) and boxes(empty.axes[0]) == []


def test_anchors_reach_beyond_the_image() -> None:
    anchors = np.array([[90.0, 40, 110, 60], [-50, 20, 250, 80]])
    canvas = draw_anchors(
        IMAGE, anchors, np.array([[32.0, 32], [480, 96]]), np.array([True, False]), [1.0, 0.5],
        np.array([95.0, 45, 105, 55]), "cell",
    )  # fmt: skip
    assert "1 of 2 inside the image" in heading(canvas)
    axes = canvas.axes[0]
    assert axes.get_xlim() == (-54, 254) and axes.get_ylim() == (104, -4)  # 2% of 200 around
    assert boxes(axes, dash="--") == [(-50, 20, 250, 80)]
    assert (90, 40, 110, 60) in boxes(axes, dash="-") and (95, 45, 105, 55) in boxes(axes)
    assert sorted(texts(axes)) == ["32 x 32", "480 x 96"]


def test_samples() -> None:
    positive, negative = np.array([[10.0, 20, 60, 80]]), np.array([[0.0, 0, 20, 20]] * 3)
    rpn = Sample("RPN anchors", positive, negative)
    head = Sample("head RoIs", positive[:0], negative, ("foreground", "background"))
    canvas = draw_samples(IMAGE, [rpn, head], TWO, "7")
    title = heading(canvas)
    assert "4 = 1 positive + 3 negative" in title and "3 = 0 foreground + 3 background" in title
    assert boxes(canvas.axes[0], BLUE) == [(10, 20, 60, 80)]
    assert len(boxes(canvas.axes[0], VERMILION)) == len(boxes(canvas.axes[1], VERMILION)) == 3
    assert boxes(canvas.axes[1], BLUE) == []
    centres = canvas.axes[0].lines[1].get_xydata()
    assert centres.tolist() == [[35, 50]]
    nothing = Sample("RPN anchors", positive[:0], positive[:0])
    assert "0 = 0 positive + 0 negative" in heading(draw_samples(IMAGE, [nothing], NOTHING, "7"))


def test_proposals() -> None:
    found = np.array([[10.0, 20, 60, 80], [0, 0, 200, 100]])
    truth = objects(
        ([10, 20, 60, 80], "dog", False), ([100, 10, 130, 40], "cat", False),
        ([1, 1, 5, 5], "bird", True),
    )  # fmt: skip
    canvas = draw_proposals(
        IMAGE, found, np.array([0.9, 0.25]), 300, truth, {"best 2": "1 of 2"}, "7"
    )
    assert "the best 2 of 300 recall of the best 2: 1 of 2" in heading(canvas)
    written = texts(canvas.axes[0])
    # 30 * 30 / (200 * 100) of the cat, 16 / 20000 of the bird.
    expected = {"dog: IoU 1.00", "cat: IoU 0.04", "bird: IoU 0.00", "0.900", "0.250"}
    assert set(written) == expected
    assert boxes(canvas.axes[0], YELLOW, ":") == [(100, 10, 130, 40)]
    assert "object not covered at IoU .5" in legend(canvas)
    assert "last one drawn, 0.250" in legend(canvas)


@pytest.mark.parametrize("truth", [None, NOTHING, TWO])
def test_no_proposals(truth) -> None:
    canvas = draw_proposals(IMAGE, np.zeros((0, 4)), np.zeros(0), 0, truth, {}, "7")
    assert "the best 0 of 0" in heading(canvas)
    expected = [] if truth is not TWO else [(10, 20, 60, 80)]
    assert boxes(canvas.axes[0], YELLOW, ":") == expected


DETECTED = np.array([[10.0, 20, 60, 80], [11, 21, 61, 81], [100, 10, 130, 40], [150, 50, 190, 90]])
NAMES = ["dog", "dog", "cat", "cat"]


def test_detections() -> None:
    truth = Objects(
        np.vstack([TWO.boxes, [[2, 2, 9, 9]]]), [*TWO.names, "cat"],
        np.append(TWO.ignored, False),
    )  # fmt: skip
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    # Right; a second one of the same dog; on a difficult cat; on nothing.
    verdicts = (
        np.array([True, False, False, False]), np.array([False, False, True, False]),
        np.array([True, False, False]),
    )  # fmt: skip
    canvas = draw_detections(IMAGE, DETECTED, NAMES, scores, truth, verdicts, "detections: 7")
    assert "detections: 7, 1 right, 2 wrong, 1 missed, 1 not counted" in heading(canvas)
    axes = canvas.axes[0]
    assert boxes(axes, BLUE) == [(10, 20, 60, 80)]
    assert boxes(axes, VERMILION) == [(150, 50, 190, 90), (11, 21, 61, 81)]  # best on top
    assert boxes(axes, GREY, "-") == boxes(axes, GREY, "--") == [(100, 10, 130, 40)]
    assert boxes(axes, YELLOW, ":") == [(2, 2, 9, 9)]
    assert texts(axes) == ["dog 0.90", "dog 0.80", "cat 0.70", "cat 0.60", "missed cat"]


def test_detections_without_truth_are_not_judged() -> None:
    canvas = draw_detections(IMAGE, DETECTED, NAMES, np.ones(4), None, None, "detections: 7")
    assert "4 detections, no ground truth given" in heading(canvas)
    assert legend(canvas) == ["detection"]


def test_no_detections_no_objects() -> None:
    none = np.zeros(0, dtype=bool)
    canvas = draw_detections(
        IMAGE, np.zeros((0, 4)), [], np.zeros(0), NOTHING, (none, none, none), "detections: 7"
    )
    assert "0 right, 0 wrong, 0 missed" in heading(canvas)

"""Data, proposals, detections: extents in image pixels, numbers in titles, nothing to draw."""

from __future__ import annotations

import numpy as np
import pytest

from frcnn_plugin.visualization import (
    contact_sheet,
    draw_comparison,
    draw_detections,
    draw_proposals,
)
from frcnn_plugin.visualization.drawings.objects import NO_OBJECTS, draw_data
from frcnn_plugin.visualization.drawings.palette import (
    BLUE,
    CLASS_COLOURS,
    GREY,
    VERMILION,
    YELLOW,
)

from .artists import IMAGE, TWO, blank, boxes, heading, legend, objects, texts


def test_data() -> None:
    canvas = draw_data(IMAGE, TWO, "000001")
    assert heading(canvas).startswith("data: 000001, 1 object, 1 difficult or crowd 200 x 100 pix")
    assert boxes(canvas.axes[0], YELLOW, "-") == [(10, 20, 60, 80)]
    assert boxes(canvas.axes[0], GREY, "--") == [(100, 10, 130, 40)]
    assert texts(canvas.axes[0]) == ["1 dog 50 x 60", "2 cat 30 x 30, difficult"]
    assert legend(canvas) == ["object", "difficult or crowd"]
    empty = draw_data(IMAGE, NO_OBJECTS, "000002")
    assert "0 objects, 0 difficult" in heading(empty) and boxes(empty.axes[0]) == []


def test_proposals() -> None:
    found = np.array([[10.0, 20, 60, 80], [0, 0, 200, 100]])
    truth = objects(
        ([10, 20, 60, 80], "dog", False), ([100, 10, 130, 40], "cat", False),
        ([1, 1, 5, 5], "bird", True),
    )  # fmt: skip
    canvas = draw_proposals(IMAGE, found, np.array([0.9, 0.25]), "proposals: 7", truth, ["a note"])
    assert heading(canvas) == "proposals: 7 a note"
    # 30 * 30 / (200 * 100) of the cat, 16 / 20000 of the bird.
    expected = {"dog: IoU 1.00", "cat: IoU 0.04", "bird: IoU 0.00", "0.900", "0.250"}
    assert set(texts(canvas.axes[0])) == expected
    assert boxes(canvas.axes[0], YELLOW, ":") == [(100, 10, 130, 40)]
    assert {"object not covered at IoU .5", "last one drawn, 0.250"} <= set(legend(canvas))


@pytest.mark.parametrize("truth", [NO_OBJECTS, TWO])
def test_no_proposals(truth) -> None:
    canvas = draw_proposals(IMAGE, np.zeros((0, 4)), np.zeros(0), "proposals: 7", truth)
    expected = [] if truth is not TWO else [(10, 20, 60, 80)]
    assert boxes(canvas.axes[0], YELLOW, ":") == expected


DETECTED = np.array([[10.0, 20, 60, 80], [11, 21, 61, 81], [100, 10, 130, 40], [150, 50, 190, 90]])
NAMES = ["dog", "dog", "cat", "cat"]


def test_detections() -> None:
    truth = objects(
        ([10, 20, 60, 80], "dog", False), ([100, 10, 130, 40], "cat", True),
        ([2, 2, 9, 9], "cat", False),
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


def test_comparison_has_truth_on_the_left_detections_on_the_right() -> None:
    canvas = draw_comparison(
        blank(120, 160), [[10, 20, 90, 100], [0, 0, 9, 9]], [0, 1],
        [[12, 22, 92, 102], [1, 2, 3, 4]], [0, 0], [0.97, 0.5], ["circle", "cat"], [False, True],
    )  # fmt: skip
    left, right = canvas.axes
    assert left.get_title("left") == "ground truth (2)"
    assert right.get_title("left") == "detections (2)"
    red = CLASS_COLOURS[0]
    assert boxes(left, red) == [(10, 20, 90, 100)] and boxes(left, GREY) == [(0, 0, 9, 9)]
    assert boxes(right, red) == [(1, 2, 3, 4), (12, 22, 92, 102)]  # the best one on top
    assert texts(left) == ["circle", "cat (difficult)"]
    assert texts(right) == ["circle 0.97", "circle 0.50"]
    assert left.get_window_extent().width == pytest.approx(480)


def test_comparison_of_unknown_classes_and_of_other_lengths() -> None:
    box = [[-5.0, 0, 5, 5]]
    canvas = draw_comparison(blank(1, 1), box, [5], box, [7], [0.5], ["one class only"])
    assert [texts(axes) for axes in canvas.axes] == [
        ["5"],
        ["7 0.50"],
    ] and canvas.pixels().ndim == 3
    with pytest.raises(ValueError):
        draw_comparison(blank(50, 50), box, [], [], [], [], ["cat"])


def test_contact_sheet() -> None:
    images = [blank(10, 20, 1), blank(30, 8, 2), blank(5, 5, 3)]
    sheet = contact_sheet(images, 2)
    # Margins of 6 around cells of 30 by 20.
    assert sheet.shape == (6 + 2 * 36, 6 + 2 * 26, 3)
    assert sheet[6, 6, 0] == 1 and sheet[6, 32, 0] == 2 and sheet[42, 6, 0] == 3
    assert sheet[20, 6, 0] == 255  # below the first picture
    assert contact_sheet(images, 5).shape == (6 + 36, 6 + 3 * 26, 3)

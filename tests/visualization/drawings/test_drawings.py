"""The drawing functions: extents in image pixels, numbers in titles, nothing to draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes

from frcnn_plugin.visualization import (
    Objects,
    PooledCells,
    Reason,
    Sample,
    draw_anchors,
    draw_data,
    draw_detections,
    draw_matches,
    draw_proposals,
    draw_roi_cells,
    draw_samples,
    explain_matches,
    judge,
)
from frcnn_plugin.visualization.drawings.matches import spots
from frcnn_plugin.visualization.drawings.palette import BLUE, GREY, SKY, VERMILION, YELLOW

from .artists import boxes, heading, legend, texts

IMAGE = np.full((100, 200, 3), 90, dtype=np.uint8)
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


def match_picture(gt: list[list[float]]):
    """Two by one cells of 100 px with two anchors each; image pixels are network pixels."""
    anchors = torch.tensor(
        [[10.0, 20, 60, 75], [10, 20, 60, 40], [100, 0, 190, 95], [-20, 0, 190, 95]]
    )
    labels = torch.tensor([1, 0, 0, -1] if not gt else [1, -1, 0, -1])
    if not gt:
        labels[0] = 0
    inside = torch.tensor([True, True, True, False])
    boxes_ = Boxes(torch.tensor(gt).reshape(-1, 4))
    reasons = explain_matches(Boxes(anchors), labels, inside, boxes_, (0.3, 0.7))
    truth = Objects(np.array(gt).reshape(-1, 4), ["dog"] * len(gt), np.zeros(len(gt), dtype=bool))
    return reasons, draw_matches(
        IMAGE, anchors.double().numpy(), reasons, (1, 2, 1, 2), (100.0, 100.0), truth, "7"
    )


def test_matches() -> None:
    # IoUs 55/60, 20/60, 0: above, in between, below.
    reasons, canvas = match_picture([[10.0, 20, 60, 80]])
    assert [reasons.count(reason) for reason in Reason] == [1, 0, 1, 1, 1]
    assert "1 positive, 1 negative, 2 ignored anchors" in heading(canvas)
    assert legend(canvas)[:5] == [
        "positive: IoU >= 0.7 (1)", "positive: the best of an object (0)",
        "negative: IoU < 0.3 (1)", "ignored: in between (1)", "ignored: crosses the border (1)",
    ]  # fmt: skip
    left, right = canvas.axes
    assert boxes(left, BLUE) == [(10, 20, 60, 75)] and boxes(left, SKY) == []
    assert "0.92" in texts(left)
    # The map: one row of two cells with two spots each, over 200 x 100 image pixels.
    table = right.images[1]
    assert table.get_array().shape == (1, 4, 4) and list(table.get_extent()) == [0, 200, 100, 0]
    assert right.get_xlim() == (0, 200)


def test_matches_without_objects() -> None:
    _, canvas = match_picture([])
    assert "0 positive, 3 negative, 1 ignored" in heading(canvas)
    assert boxes(canvas.axes[0]) == []


def test_every_object_has_an_anchor_among_those_drawn() -> None:
    """80 anchors above the threshold, and one best anchor of low IoU."""
    many = torch.tensor([[0.0, 0, 50, 50]] * 80 + [[100.0, 0, 130, 30]])
    gt = Boxes(torch.tensor([[0.0, 0, 50, 50], [100, 0, 130, 80]]))
    inside = torch.ones(81, dtype=torch.bool)
    reasons = explain_matches(Boxes(many), torch.ones(81), inside, gt, (0.3, 0.7))
    truth = Objects(gt.tensor.double().numpy(), ["dog", "cat"], np.zeros(2, dtype=bool))
    canvas = draw_matches(
        IMAGE, many.double().numpy(), reasons, (1, 1, 9, 9), (16.0, 16.0), truth, "7"
    )
    assert "81 positive" in heading(canvas)
    assert canvas.axes[0].get_title("left") == (
        "60 of 81 positive anchors, highest IoU first"
    )  # fmt: skip
    assert boxes(canvas.axes[0], SKY) == [(100, 0, 130, 30)]
    assert "best of 2: 0.38" in texts(canvas.axes[0])  # 900 / 2400


def test_spots_are_laid_out_cell_by_cell() -> None:
    reason = np.arange(1 * 2 * 6)  # two cells with six anchors
    assert spots(reason, (1, 2, 2, 3)).tolist() == [
        [0, 1, 2, 6, 7, 8],
        [3, 4, 5, 9, 10, 11],
    ]


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


def test_verdicts() -> None:
    """Right; a second one of the same dog; on a difficult cat; on nothing."""
    verdicts = judge(DETECTED, NAMES, TWO)
    assert verdicts.right.tolist() == [True, False, False, False]
    assert verdicts.ignored.tolist() == [False, False, True, False]
    assert verdicts.missed.tolist() == [False, False]
    other_class = judge(DETECTED[:1], ["cat"], TWO)
    assert not other_class.right.any() and other_class.missed.tolist() == [True, False]


def test_match_rule_counts() -> None:
    truth = objects(([0, 0, 10, 10], "dog", False))
    half = np.array([[0.0, 0, 10, 5]])
    assert judge(half, ["dog"], truth, ">=").right.all()
    assert not judge(half, ["dog"], truth, ">").right.any()


def test_detections() -> None:
    truth = Objects(
        np.vstack([TWO.boxes, [[2, 2, 9, 9]]]), [*TWO.names, "cat"],
        np.append(TWO.ignored, False),
    )  # fmt: skip
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    canvas = draw_detections(IMAGE, DETECTED, NAMES, scores, truth, "detections: 7")
    assert "detections: 7, 1 right, 2 wrong, 1 missed, 1 not counted" in heading(canvas)
    axes = canvas.axes[0]
    assert boxes(axes, BLUE) == [(10, 20, 60, 80)]
    assert boxes(axes, VERMILION) == [(150, 50, 190, 90), (11, 21, 61, 81)]  # best on top
    assert boxes(axes, GREY, "-") == boxes(axes, GREY, "--") == [(100, 10, 130, 40)]
    assert boxes(axes, YELLOW, ":") == [(2, 2, 9, 9)]
    assert texts(axes) == ["dog 0.90", "dog 0.80", "cat 0.70", "cat 0.60", "missed cat"]


def test_detections_without_truth_are_not_judged() -> None:
    canvas = draw_detections(IMAGE, DETECTED, NAMES, np.ones(4), None, "detections: 7")
    assert "4 detections, no ground truth given" in heading(canvas)
    assert legend(canvas) == ["detection"]


def test_no_detections_no_objects() -> None:
    canvas = draw_detections(IMAGE, np.zeros((0, 4)), [], np.zeros(0), NOTHING, "detections: 7")
    assert "0 right, 0 wrong, 0 missed" in heading(canvas)


def test_roi_cells() -> None:
    """A cell is 10 image pixels; the box rounds to columns 1 to 3 and rows 0 to 1."""
    columns, rows = np.array([[1, 3], [2, 4]]), np.array([[0, 1], [1, 2]])
    cells = PooledCells(np.array([1, 0, 4, 2]), columns, rows)
    box = np.array([12.0, 3, 38, 17])
    canvas = draw_roi_cells(IMAGE, box, cells, (10, 20), (10.0, 10.0), "dog")
    assert "3 x 2 feature cells pooled into 2 x 2 bins" in heading(canvas)
    for axes in canvas.axes:
        assert boxes(axes, YELLOW) == [(12, 3, 38, 17)]
        assert boxes(axes, VERMILION, "--") == [(10, 0, 40, 20)]
        # Lines at every tenth image pixel.
        lines = axes.collections[0].get_segments()
        assert sorted({x for line in lines for x, _ in line.tolist()})[:3] == [0, 10, 20]
    filled = [p for p in canvas.axes[1].patches if p.get_fill()]
    # Cells read; cells of the last bin; a bar for each column and row of bins.
    extents = [(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in filled]
    assert extents[:2] == [(10, 0, 30, 20), (20, 10, 20, 10)]
    assert [bar[0::2] for bar in extents[2:4]] == [(10, 20), (20, 20)]
    assert [bar[1::2] for bar in extents[4:6]] == [(0, 10), (10, 10)]
    assert "beyond" not in heading(canvas)

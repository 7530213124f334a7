from __future__ import annotations

import numpy as np
import pytest

from frcnn_plugin.visualization import contact_sheet, draw_comparison
from frcnn_plugin.visualization.drawings.palette import CLASS_COLOURS, GREY

from .artists import blank, boxes, texts


def test_truth_on_the_left_detections_on_the_right() -> None:
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
    picture = canvas.pixels()
    frame = left.get_window_extent()
    assert frame.width == pytest.approx(480)
    # The left edge of the box, 3 times enlarged; BGR.
    row, column = len(picture) - round(frame.y1) + 60 * 3, round(frame.x0 + 30)
    assert picture[row, column].tolist() == [40, 39, 214]
    assert picture[row, column + 40].tolist() == [128, 128, 128]  # the image itself


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (480, 20)])
def test_any_shape_many_boxes_unknown_class(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    many = rng.uniform(-5, 30, (20, 4))
    many[:, 2:] += 36
    canvas = draw_comparison(
        blank(*shape), many, [5] * 20, many, range(20), rng.random(20), ["one class only"]
    )
    assert canvas.pixels().ndim == 3 and texts(canvas.axes[0]) == ["5"] * 20


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError):
        draw_comparison(blank(50, 50), [[0, 0, 5, 5]], [], [], [], [], ["cat"])


def test_contact_sheet() -> None:
    images = [blank(10, 20, 1), blank(30, 8, 2), blank(5, 5, 3)]
    sheet = contact_sheet(images, 2)
    # Margins of 6 around cells of 30 by 20.
    assert sheet.shape == (6 + 2 * 36, 6 + 2 * 26, 3)
    assert sheet[6, 6, 0] == 1 and sheet[6, 32, 0] == 2 and sheet[42, 6, 0] == 3
    assert sheet[20, 6, 0] == 255  # below the first picture
    assert contact_sheet(images, 5).shape == (6 + 36, 6 + 3 * 26, 3)
    for arguments in ([], 2), (images, 0):
        with pytest.raises(ValueError, match="need pictures and columns"):
            contact_sheet(*arguments)

"""Pictures with detections in them."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from matplotlib.text import Text

from frcnn_plugin.predict.annotate import annotate_image
from frcnn_plugin.visualization.drawings.palette import CLASS_COLOURS


def detections(boxes: list, classes: list[int], scores: list[float]) -> Instances:
    result = Instances((300, 480))
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.pred_classes, result.scores = torch.tensor(classes), torch.tensor(scores)
    return result


def grey(height: int = 300, width: int = 480) -> np.ndarray:
    return np.full((height, width, 3), 90, dtype=np.uint8)


def near(picture: np.ndarray, colour: str) -> np.ndarray:
    rgb = list(bytes.fromhex(colour[1:]))
    return np.abs(picture[:, :, ::-1].astype(int) - rgb).max(axis=2) < 40


def test_size_and_colours() -> None:
    found = detections([[100, 100, 200, 150]], [1], [0.9])
    picture = annotate_image(grey(), found, ["a", "b"]).pixels()
    assert picture.shape == (300, 480, 3) and picture.dtype == np.uint8
    rows, columns = near(picture, CLASS_COLOURS[1]).nonzero()
    # The box, and its label above it; letters are 13 pixels.
    assert 98 <= columns.min() <= 101 and 199 <= columns.max() <= 202
    assert 149 <= rows.max() <= 152 and 75 <= rows.min() <= 95
    assert (picture[:60] == 90).all() and (picture[110:140, 110:190] == 90).all()


def test_nothing_found_changes_nothing() -> None:
    picture = annotate_image(grey(), detections([], [], []), ["a"]).pixels()
    assert (picture == 90).all()


def test_small_pictures_are_enlarged() -> None:
    found = detections([[5, 5, 30, 15]], [0], [0.5])
    picture = annotate_image(grey(20, 60), found, ["a"]).pixels()
    assert picture.shape == (160, 480, 3)
    assert near(picture, CLASS_COLOURS[0])[115:125, 100:200].any()  # the lower side, at 15 * 8


def labels(shape: tuple[int, int], found: Instances, names: str | list[str]) -> list[Text]:
    return list(annotate_image(grey(*shape), found, names).axes[0].texts)


def test_name_of_the_only_class() -> None:
    drawn = labels((300, 480), detections([[9, 50, 90, 90]], [0], [0.876]), ["a $b_ c"])
    assert [label.get_text() for label in drawn] == ["a $b_ c 0.88"]


def test_labels_do_not_cover_each_other() -> None:
    boxes = [[0, 0, 480, 300], [0, 2, 470, 290], [100, 50, 300, 200], [101, 51, 299, 202]]
    boxes += [[102, 52, 298, 201], [460, 280, 480, 300]]
    drawn = labels((300, 480), detections(boxes, [0] * 6, [0.5] * 6), ["elephant"])
    extents = [label.get_window_extent() for label in drawn]
    for i, a in enumerate(extents):
        assert a.x0 >= 0 and a.y0 >= 0 and a.x1 <= 480 and a.y1 <= 300
        assert not any(a.overlaps(b) for b in extents[:i])


def test_best_is_on_top() -> None:
    drawn = labels((300, 480), detections([[9, 9, 90, 90]] * 3, [0, 1, 2], [0.9, 0.8, 0.7]), "abc")
    orders = [label.get_zorder() for label in drawn]
    assert orders == sorted(orders, reverse=True) and len(set(orders)) == 3


def test_letters_grow_with_the_picture() -> None:
    found = detections([[9, 90, 90, 99]], [0], [0.9])
    (small,), (large,) = (labels(shape, found, "a") for shape in ((300, 480), (900, 1440)))
    assert 1.9 < large.get_fontsize() / small.get_fontsize() < 3.1

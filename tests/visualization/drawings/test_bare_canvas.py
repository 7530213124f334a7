from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from frcnn_plugin.visualization import BareCanvas
from frcnn_plugin.visualization.drawings.palette import DIFFICULT, RIGHT, WRONG

SVG = "{http://www.w3.org/2000/svg}"
BLUE = [178, 114, 0]  # BGR of #0072B2


@pytest.mark.parametrize(
    "shape, size",
    [((300, 480), (300, 480)), ((1, 1), (480, 480)), ((20, 60), (160, 480)), ((905, 7), (905, 7))],
)
def test_size_is_the_image_s_unless_it_is_small(shape, size) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    picture = BareCanvas(image).pixels()
    assert picture.shape == (*size, 3) and picture.dtype == np.uint8
    if shape == size:
        assert (picture == image).all()


def test_sides() -> None:
    image = np.full((600, 1000, 3), 90, dtype=np.uint8)
    for view in (image, image[:, ::-1, ::-1]):
        assert BareCanvas(view, sides=(480, 480)).pixels().shape == (288, 480, 3)
        assert BareCanvas(view).svg()


def test_only_what_is_drawn_changes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    before = image.copy()
    canvas = BareCanvas(image)
    canvas.box((100, 100, 200, 150), RIGHT)
    picture = canvas.pixels()
    rows, columns = (picture != image).any(axis=2).nonzero()
    # The line is 2.5 pixels wide, its rim 4.5.
    assert 97 <= rows.min() <= 98 and 151 <= rows.max() <= 152
    assert 97 <= columns.min() <= 98 and 201 <= columns.max() <= 202
    assert picture[125, 100].tolist() == BLUE
    assert (picture[105:145, 105:195] == image[105:145, 105:195]).all()
    assert (image == before).all()


def test_boxes_along_the_border_are_drawn_inside() -> None:
    canvas = BareCanvas(np.full((300, 500, 3), 90, dtype=np.uint8))
    canvas.box((-20, 0, 500, 310), RIGHT)
    picture = canvas.pixels()
    for row, column in ((150, 3), (150, 497), (3, 250), (297, 250)):
        assert picture[row, column].tolist() == BLUE
    for row, column in ((150, 1), (150, -1), (1, 250), (-1, 250)):
        assert picture[row, column].min() > 200  # the rim


def test_svg_stands_alone() -> None:
    image = np.full((300, 600, 3), (200, 0, 0), dtype=np.uint8)
    canvas = BareCanvas(image, sides=(480, 480), letter=17)
    canvas.box((50, 100, 150, 200), DIFFICULT, hint="object: <b> & 'c'")
    canvas.box((100, 50, 300, 250), WRONG, alpha=0.5)
    canvas.label((100, 50, 300, 250), "dog <1>", WRONG)
    canvas.label((50, 100, 150, 200), "cat", DIFFICULT)
    root = ElementTree.fromstring(canvas.svg('boxes of "x"'))
    assert root.get("viewBox") == "0 0 480 240" and root.get("aria-label") == 'boxes of "x"'
    (photo,) = root.iter(f"{SVG}image")
    kind, _, content = photo.get("href", "").partition(",")
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
    assert kind == "data:image/jpeg;base64" and decoded.shape == (240, 480, 3)
    assert np.abs(decoded[100, 100].astype(int) - (200, 0, 0)).max() < 4
    first, second = root.findall(f"{SVG}g")
    assert first[0].text == "object: <b> & 'c'" and second.get("opacity") == "0.5"
    rim, line = first[1:]
    # 0.8 times the image's pixels.
    place = [line.get(key) for key in ("x", "y", "width", "height")]
    assert place == ["40.0", "80.0", "80.0", "80.0"]
    assert line.get("stroke") == DIFFICULT.colour and line.get("stroke-dasharray") == "9.2 4.0"
    assert rim.get("stroke") == "#000000" and second[2].get("stroke-dasharray") is None
    # What was labelled first lies on top.
    assert [text.text for text in root.iter(f"{SVG}text")] == ["cat", "dog <1>"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", canvas.svg())

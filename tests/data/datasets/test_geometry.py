"""Boxes and sizes held against images: what is kept, clipped, dropped, refused."""

import math
import re
from pathlib import Path

import pytest
from PIL import Image

from frcnn_plugin.data.datasets.geometry import BoxFindings, SizeFindings, fit_box
from frcnn_plugin.errors import UserError

LEAVES = "it leaves the image"


@pytest.mark.parametrize(
    ("box", "fitted", "problem"),
    [
        ((0, 0, 100, 80), (0, 0, 100, 80), ""),
        ((10, 20, 10.25, 20.5), (10, 20, 10.25, 20.5), ""),  # small, but all of it is inside
        ((-0.9, 20, 50, 80.9), (0, 20, 50, 80), ""),  # rounding
        ((-1, 20, 50, 60), (0, 20, 50, 60), LEAVES),
        ((-500, -400, 1, 1), (0, 0, 1, 1), LEAVES),
        ((60, 20, 150, 80), (60, 20, 100, 80), LEAVES),
        ((-0.2, 20, 0.2, 60), (0, 20, 0.2, 60), ""),  # half of it is inside
        ((-5, 20, 0.5, 60), None, "it lies outside the image"),
        ((100, 20, 120, 60), None, "it lies outside the image"),
        ((10, 80, 30, 90), None, "it lies outside the image"),
        ((50, 20, 50, 60), None, "it has no width or height"),
        ((50, 60, 70, 20), None, "it has no width or height"),
        ((math.nan, 20, 50, 60), None, "a coordinate is missing or not a finite number"),
        ((10, 20, math.inf, 60), None, "a coordinate is missing or not a finite number"),
    ],
)
def test_a_box_in_an_image_of_100x80(box, fitted, problem):
    assert fit_box(box, (100, 80)) == (fitted, problem)


def test_how_many_of_how_many():
    findings = BoxFindings()
    for box in [(0, 0, 9, 9), (-5, 0, 9, 9), (200, 0, 300, 9)]:
        findings.fit(box, (100, 80), "a.xml", f"box {box[0]}")
    assert findings.report("mine") == (
        "1 of 3 boxes are dropped: a.xml: it lies outside the image (box 200); "
        "1 of 3 boxes leave their image and are clipped: a.xml: it leaves the image (box -5)"
    )
    assert BoxFindings().report("mine") == ""


def test_fractions_are_not_pixels():
    findings = BoxFindings()
    for box in [(0.1, 0.2, 0.9, 1.0), (0.5, 0.5, 0.75, 0.75)]:
        findings.fit(box, (100, 80), "", "")
    with pytest.raises(UserError, match="mine: no coordinate of its 2 boxes is above 2: they seem"):
        findings.report("mine")
    findings.fit((10, 20, 50, 60), (100, 80), "", "")
    assert findings.report("mine") == ""


def test_a_file_that_is_no_image(tmp_path):
    """It keeps the size that its annotation says, or gets one that holds its boxes."""
    findings = SizeFindings()
    boxes = [(3.0, 4.0, 50.5, 20.0), (0.0, 0.0, 9.0, 70.0), (0.0, 0.0, math.nan, 900.0)]
    file = f"{tmp_path}/a.jpg"
    assert findings.size_of(file, (100, 80), boxes) == (100, 80)
    assert findings.size_of(file, (0, 80), boxes) == (51, 70)
    assert findings.size_of(f"{tmp_path}/b.jpg", (0, 0), None) == (1, 1)
    marks = [findings.mark(file), findings.mark("c.jpg")]
    assert marks == [{"unreadable": f"there is no file {file}"}, {}]
    assert findings.report("mine").startswith("2 of 3 images cannot be used: there is no file")
    with pytest.raises(UserError, match="mine: 2 of 2 images cannot be used: there is no file"):
        findings.total = 2
        findings.report("mine")


def write(folder: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (100, 80)).save(folder / "a.jpg", exif=exif)
    return folder / "a.jpg"


IN_BOTH, IN_100x80, IN_80x100 = (5, 5, 50, 60), (5, 5, 90, 60), (5, 5, 50, 90)
TAKE_OUT, OTHER_SIZE = "orientation 6.*Take the orientation out", "not of the size that their"


@pytest.mark.parametrize(
    ("orientation", "said", "boxes", "error"),
    [
        # Turned by a quarter: 80x100 as viewers show it.
        (6, (100, 80), [IN_BOTH], TAKE_OUT),
        (6, (100, 80), [IN_100x80], TAKE_OUT),
        (6, (0, 0), [IN_100x80], TAKE_OUT),
        (6, (100, 80), None, TAKE_OUT),
        (1, (50, 40), [(5, 5, 20, 20)], OTHER_SIZE),
        (1, (200, 160), [(150, 150, 180, 160)], OTHER_SIZE),
        (1, (80, 100), [IN_80x100], OTHER_SIZE),
        (1, (99, 80), None, OTHER_SIZE),
    ],
)
def test_sizes_of_another_picture(tmp_path, orientation, said, boxes, error):
    findings = SizeFindings()
    findings.size_of(write(tmp_path, orientation), said, boxes)
    with pytest.raises(UserError, match=f"mine: 1 of 1 images are .*{error}"):
        findings.report("mine")


@pytest.mark.parametrize(
    ("orientation", "said", "boxes", "size", "warning"),
    [
        (1, (100, 80), [IN_BOTH], (100, 80), ""),
        (1, (0, 0), [IN_BOTH], (100, 80), ""),
        (9, (100, 80), [IN_BOTH], (100, 80), ""),  # no orientation
        (6, (80, 100), [IN_BOTH], (80, 100), ""),
        (6, (0, 0), [IN_BOTH], (80, 100), "turned or mirrored by the EXIF"),
        (3, (100, 80), [IN_BOTH], (100, 80), r"turned or mirrored.*a.jpg \(orientation 3\)"),
        (6, (100, 80), [IN_80x100], (80, 100), "another size than their annotations say"),
        (6, (100, 80), [], (80, 100), "another size than their annotations say"),
        (1, (80, 100), [IN_BOTH], (100, 80), "another size than their annotations say"),
        (1, (80, 60), [IN_100x80], (100, 80), "another size than their annotations say"),
        (1, (98, 81), [IN_BOTH], (100, 80), "another size than their annotations say"),
    ],
)
def test_sizes_that_are_read(tmp_path, orientation, said, boxes, size, warning):
    findings = SizeFindings()
    assert findings.size_of(write(tmp_path, orientation), said, boxes) == size
    text = findings.report("mine")
    assert ("1 of 1 images" in text) == bool(warning)
    assert re.search(warning, text)

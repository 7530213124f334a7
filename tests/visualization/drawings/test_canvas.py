from __future__ import annotations

import gc
from pathlib import Path

import cv2
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from frcnn_plugin.visualization import BareCanvas
from frcnn_plugin.visualization.drawings.canvas import Canvas, Panel, save_picture
from frcnn_plugin.visualization.drawings.palette import OBJECT, RIGHT, Style

from .artists import blank, boxes, heading, legend


def panel_size(canvas: Canvas, panel: int = 0) -> tuple[int, int]:
    box = canvas.axes[panel].get_window_extent()
    return round(box.width), round(box.height)


@pytest.mark.parametrize(
    "shape, size",
    [
        ((30, 60), (720, 360)),  # small: enlarged
        ((1000, 800), (800, 1000)),  # as it is
        ((3000, 4000), (1200, 900)),  # large: reduced
        ((1, 1), (720, 720)),
        ((2, 600), (720, 2)),
    ],
)
def test_long_side_is_between_720_and_1200_pixels(shape, size) -> None:
    canvas = Canvas(blank(*shape), "title")
    assert panel_size(canvas) == size
    # The axes are the image's own pixels, whatever the size of the picture.
    assert canvas.axes[0].get_xlim() == (0, shape[1]) and canvas.axes[0].get_ylim() == (shape[0], 0)


def test_two_panels_are_smaller_and_side_by_side() -> None:
    views = [Panel("left"), Panel("right", (10.0, 10.0, 20.0, 30.0))]
    canvas = Canvas(blank(50, 100), "t", panels=views)
    assert panel_size(canvas) == (560, 280) and panel_size(canvas, 1) == (280, 560)
    first, second = (axes.get_window_extent() for axes in canvas.axes)
    assert first.x1 < second.x0 and first.y1 == pytest.approx(second.y1)


def test_titles_of_narrow_panels_do_not_meet() -> None:
    narrow = Panel("a title that is wider than the panel", (0.0, 0.0, 5.0, 100.0))
    canvas = Canvas(blank(100, 100), "t", panels=[narrow, narrow])
    canvas.figure.canvas.draw()
    left, right = (axes._left_title.get_window_extent() for axes in canvas.axes)
    assert left.x1 < right.x0 and right.x1 <= canvas.figure.bbox.x1


def test_box_is_where_it_was_put_in_the_file(tmp_path) -> None:
    """Pixels of the PNG: the left edge of the box lies at x1 of the image, enlarged 7.2 times."""
    canvas = Canvas(blank(50, 100), "t")
    canvas.box((20, 10, 60, 40), RIGHT)
    assert boxes(canvas.axes[0]) == [(20, 10, 60, 40)]
    picture = cv2.imread(str(canvas.save(tmp_path / "sub" / "p.png")))
    frame = canvas.axes[0].get_window_extent()
    row = len(picture) - round(frame.y1) + round(25 * 7.2)
    at = [round(frame.x0 + x * 7.2) for x in (20, 60, 40)]
    blue = [178, 114, 0]  # BGR of #0072B2
    assert any(picture[row, at[0] + d].tolist() == blue for d in (-1, 0, 1))
    assert any(picture[row, at[1] + d].tolist() == blue for d in (-1, 0, 1))
    assert picture[row, at[2]].tolist() == [128, 128, 128]
    assert [file.name for file in (tmp_path / "sub").iterdir()] == ["p.png"]


def test_colours_of_the_image_stay(tmp_path) -> None:
    image = blank(100, 100, 0)
    image[:, :, 0] = 200  # blue
    for panel, expected in (
        (Panel(), [200, 0, 0]),
        (Panel(grey=True), [66, 66, 66]),  # 200 / 3, rounded down
        (Panel(fade=1.0), [255, 255, 255]),
    ):
        picture = cv2.imread(str(Canvas(image, "t", panels=[panel]).save(tmp_path / "p.png")))
        assert picture[len(picture) // 2, picture.shape[1] // 2].tolist() == expected


def test_save_picture(tmp_path) -> None:
    for name in ("a.jpg", "a.png"):
        assert save_picture(tmp_path / "new" / name, blank(30, 40)) == tmp_path / "new" / name
        assert (cv2.imread(str(tmp_path / "new" / name)) == 128).all()
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.jpg", "a.png"]


def test_failed_writing_leaves_the_old_picture(tmp_path, monkeypatch) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(b"old")
    canvas = Canvas(blank(20, 20), "t")
    monkeypatch.setattr(Path, "write_bytes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        canvas.save(path)
    assert path.read_bytes() == b"old"


def test_labels_do_not_cover_each_other() -> None:
    canvas = Canvas(blank(100, 100), "t")
    for _ in range(12):  # two rows above, two inside, below, at the lower edge; left and right
        canvas.label((20, 20, 60, 60), "dog 0.93", OBJECT)
    extents = [text.get_window_extent() for text in canvas.axes[0].texts]
    assert len(extents) == 12
    assert not any(a.overlaps(b) for i, a in enumerate(extents) for b in extents[:i])
    canvas.label((20, 20, 60, 60), "no room", OBJECT, optional=True)
    assert len(canvas.axes[0].texts) == 12


def test_label_stays_in_the_picture_with_any_characters() -> None:
    canvas = Canvas(blank(100, 100), "$x_1 & <b> \\frac")
    canvas.label((95, -10, 180, 40), "a_$long$ name", OBJECT)
    inside, label = canvas.axes[0].get_window_extent(), canvas.axes[0].texts[0].get_window_extent()
    assert inside.x0 <= label.x0 and label.x1 <= inside.x1 and label.y1 <= inside.y1
    canvas.figure.canvas.draw()  # not read as mathematics


def test_long_titles_and_legends_stay_in_the_figure() -> None:
    entries = [(f"a rather long entry number {number}", Style("#000000")) for number in range(9)]
    canvas = Canvas(blank(400, 80), "many words " * 20, ["a note " * 40], entries)
    canvas.figure.canvas.draw()
    whole = canvas.figure.bbox
    parts = [text.get_window_extent() for text in canvas.figure.texts]
    parts.append(canvas.figure.legends[0].get_window_extent())
    assert all(part.x0 >= 0 and part.x1 <= whole.x1 and part.y0 >= 0 for part in parts)
    frame = canvas.axes[0].get_window_extent()
    assert min(part.y0 for part in parts[:-1]) >= frame.y1 and parts[-1].y1 <= frame.y0
    assert heading(canvas).count("words") == 20 and len(legend(canvas)) == 9


def test_no_picture_leaves_anything_in_memory() -> None:
    def draw() -> None:
        for canvas in (Canvas(blank(40, 60), "t"), BareCanvas(blank(40, 60))):
            canvas.box((1, 2, 30, 30), RIGHT)
            canvas.label((1, 2, 30, 30), "dog", RIGHT)
            canvas.pixels()

    def figures() -> int:
        gc.collect()
        # Not isinstance: a proxy answers for what it stands for, and raises where that is gone.
        return sum(issubclass(type(thing), Figure) for thing in gc.get_objects())

    draw()
    before = figures()
    for _ in range(3):
        draw()
    assert figures() <= before
    assert pyplot.get_fignums() == []

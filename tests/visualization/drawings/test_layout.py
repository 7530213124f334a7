"""Places of labels, literals by hand."""

from frcnn_plugin.visualization.drawings.layout import Place, overlap, place_label

SIZE, BOX, TEXT = (100, 80), (20.0, 30.0, 60.0, 50.0), (15, 5)


def test_above_inside_below_from_the_left_and_from_the_right() -> None:
    taken: list[Place] = []
    for _ in range(12):
        taken.append(place_label(SIZE, BOX, TEXT, taken))
    assert [place[:2] for place in taken] == [
        (x, y) for y in (25.0, 30.0, 50.0, 45.0, 35.0, 20.0) for x in (20.0, 45.0)
    ]
    assert all((x2 - x1, y2 - y1) == TEXT for x1, y1, x2, y2 in taken)


def test_inside_the_picture() -> None:
    assert place_label(SIZE, (-9.0, -9.0, 109.0, 99.0), TEXT, []) == (0, 0, 15, 5)
    assert place_label(SIZE, (95.0, 3.0, 99.0, 9.0), TEXT, []) == (85, 3, 100, 8)


def test_where_all_is_covered_the_least_covered() -> None:
    everything = (0.0, 0.0, 100.0, 80.0)
    but_once = [everything, (0.0, 0.0, 100.0, 50.0), (0.0, 53.0, 100.0, 80.0)]
    assert place_label(SIZE, BOX, TEXT, but_once)[:2] == (20, 50)


def test_larger_than_the_picture() -> None:
    assert place_label((10, 4), (2.0, 1.0, 8.0, 3.0), TEXT, []) == (0, 0, 15, 5)


def test_overlap() -> None:
    assert overlap((0, 0, 4, 3), (2, 1, 9, 9)) == 4
    assert overlap((0, 0, 4, 3), (4, 0, 5, 3)) == overlap((0, 0, 4, 3), (9, 9, 10, 10)) == 0

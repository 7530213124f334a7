"""Where the labels of boxes go in a picture."""

from collections.abc import Iterable, Sequence

Place = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the picture


def place_label(
    size: tuple[float, float],
    box: Iterable[float],
    text_size: tuple[float, float],
    taken: Sequence[Place],
) -> Place:
    """Finds room for a label: above its box, else in it, else below, off the other labels.

    Args:
        size: width and height of the picture, pixels.
        box: XYXY in its pixels; may leave it.
        text_size: width and height of the label.
        taken: places of other labels.

    Returns:
        The place, inside the picture where the label fits it: the first that is free, else the
        least covered.
    """
    x1, y1, x2, y2 = (float(value) for value in box)
    width, height = text_size
    rightmost = max(0.0, size[0] - width)
    left, right = (min(max(0.0, x), rightmost) for x in (x1, x2 - width))
    places = [
        (x, y, x + width, y + height)
        for y in (y1 - height, y1, y2, y2 - height, y1 + height, y1 - 2 * height)
        for x in (left, right)
        if 0 <= y <= size[1] - height
    ]
    return min(
        places or [(left, 0.0, left + width, height)],
        key=lambda place: sum(overlap(place, other) for other in taken),
    )


def overlap(a: Place, b: Place) -> float:
    """Area that two rectangles share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)

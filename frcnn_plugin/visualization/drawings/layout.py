"""Room for text in a picture: places of labels, line breaks of titles, columns of legends."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

Place = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the picture

DPI = 100
TITLE, NOTE, LEGEND, LABEL, TICKS = 19, 15, 14, 13, 11  # font sizes, pixels


def place_label(
    size: tuple[float, float],
    box: Iterable[float],
    text_size: tuple[float, float],
    taken: Sequence[Place],
) -> Place:
    """Find room for a label: above its box, else in it, else below it, off the other labels.

    Sizes are width and height, the first that of the picture, which the box may leave. Return the
    first place that is free, else the least covered one; inside the picture, unless the label is
    larger than that.
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
    """Return the area that two rectangles share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def points(pixels: float) -> float:
    """Convert a size to Matplotlib's unit."""
    return pixels * 72 / DPI


@lru_cache(maxsize=1)
def _renderer() -> RendererAgg:
    return FigureCanvasAgg(Figure(figsize=(1, 1), dpi=DPI)).get_renderer()


def text_width(text: str, size: float) -> float:
    """Return the pixels that a line in a font of `size` pixels takes."""
    font = FontProperties(size=points(size), weight="bold" if size == TITLE else "normal")
    width, _, _ = _renderer().get_text_width_height_descent(text, font, ismath=False)
    return float(width)


def wrap(text: str, width: int, size: int) -> list[str]:
    """Break text into lines of whole words that fit into `width` pixels, less the margins."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width - 30:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def legend_shape(texts: Sequence[str], width: int) -> tuple[int, int]:
    """Return the rows and columns of a legend that fits into `width` pixels."""
    if not texts:
        return 0, 1
    longest = max(text_width(text, LEGEND) for text in texts) + 80
    columns = min(len(texts), max(1, int(width / longest)))
    rows = -(-len(texts) // columns)
    return rows, -(-len(texts) // rows)

"""How much room text takes: line breaks of titles, columns of legends."""

from collections.abc import Sequence
from functools import lru_cache

from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

DPI = 100
SMALL = 14  # font size of legends, pixels


def points(pixels: float) -> float:
    """Matplotlib's unit of sizes."""
    return pixels * 72 / DPI


@lru_cache(maxsize=1)
def _renderer() -> RendererAgg:
    return FigureCanvasAgg(Figure(figsize=(1, 1), dpi=DPI)).get_renderer()


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Pixels that a line of a font of ``size`` pixels takes."""
    font = FontProperties(size=points(size), weight=weight)
    width, _, _ = _renderer().get_text_width_height_descent(text, font, ismath=False)
    return float(width)


def wrap(text: str, width: int, size: int, weight: str = "normal") -> list[str]:
    """Lines of whole words that fit into ``width`` pixels, margins taken off."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, weight) <= width - 30:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def legend_shape(texts: Sequence[str], width: int) -> tuple[int, int]:
    """Rows and columns that fit into ``width`` pixels."""
    if not texts:
        return 0, 1
    longest = max(text_width(text, SMALL) for text in texts) + 80
    columns = min(len(texts), max(1, int(width / longest)))
    rows = -(-len(texts) // columns)
    return rows, -(-len(texts) // rows)

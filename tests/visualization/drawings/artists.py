"""What a picture holds: boxes and texts, in the coordinates they were drawn in."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from frcnn_plugin.visualization import Canvas, Objects

Box = tuple[float, float, float, float]
IMAGE = np.full((100, 200, 3), 90, dtype=np.uint8)


def objects(*rows: tuple[list[float], str, bool]) -> Objects:
    table = list(zip(*rows, strict=True))
    return Objects(np.array(table[0], dtype=float), table[1], np.array(table[2]))


TWO = objects(([10, 20, 60, 80], "dog", False), ([100, 10, 130, 40], "cat", True))


def blank(height: int, width: int, value: int = 128) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def boxes(axes: Axes, colour: str = "", dash: str = "") -> list[Box]:
    """XYXY of outlined rectangles, of one colour and line style if asked for."""
    found = []
    for patch in axes.patches:
        if not isinstance(patch, Rectangle) or patch.get_fill():
            continue
        if colour and to_hex(patch.get_edgecolor()).upper() != colour:
            continue
        if dash and patch.get_linestyle() != dash:
            continue
        x, y = patch.get_xy()
        box = (x, y, x + patch.get_width(), y + patch.get_height())
        found.append(tuple(round(float(value), 3) for value in box))
    return found


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def heading(canvas: Canvas) -> str:
    """Title and notes, in one line."""
    return " ".join(text.get_text() for text in canvas.figure.texts)


def legend(canvas: Canvas) -> list[str]:
    return [text.get_text() for legend in canvas.figure.legends for text in legend.get_texts()]

"""The anchors of one cell, on the image."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .canvas import Canvas, Panel, view_around
from .palette import BLUE, GREEN, GREY, PURPLE, SKY, ImageArray, Style

# One colour per shape (ratio), in turn; sizes within it are told apart by themselves.
_SHAPES = (BLUE, GREEN, PURPLE, SKY)
_CELL = Style("#000000", 2)


def draw_anchors(
    image_bgr: ImageArray,
    anchors: npt.NDArray[np.float64],
    network_sizes: npt.NDArray[np.float64],
    inside: npt.NDArray[np.bool_],
    ratios: Sequence[float],
    cell_box: npt.NDArray[np.float64],
    name: str,
    notes: Sequence[str] = (),
) -> Canvas:
    """Draw the anchors of one cell.

    Args:
        image_bgr: (H, W, 3) uint8 BGR.
        anchors: (A, 4) continuous XYXY, pixels of the original image.
        network_sizes: (A, 2) width and height in network pixels, for the labels.
        inside: (A,) those that are trained on.
        ratios: (A,) height / width of each.
        cell_box: (4,) the cell.
        name: what the title calls the image and the cell.
        notes: lines below the title.

    Returns:
        the picture; it reaches as far as the anchors do.
    """
    height, width = image_bgr.shape[:2]
    view = view_around(image_bgr, anchors, margin=0.02 * max(width, height))
    kinds = list(dict.fromkeys(ratios))
    colours = {ratio: _SHAPES[number % len(_SHAPES)] for number, ratio in enumerate(kinds)}
    legend = [
        *((f"height / width {ratio:g}", Style(colours[ratio], 2.5)) for ratio in kinds),
        ("dashed: crosses the border", Style(GREY, 2.5, "--")),
        ("the cell", _CELL),
    ]
    title = f"anchors: {name}, {int(inside.sum())} of {len(anchors)} inside the image"
    canvas = Canvas(image_bgr, title, notes, legend, [Panel(view=view, fade=0.35)])
    canvas.box((0, 0, width, height), Style("#444444", 1.5))
    smallest_first = np.argsort(np.prod(anchors[:, 2:] - anchors[:, :2], axis=1), kind="stable")
    canvas.boxes(
        anchors[smallest_first],
        [Style(colours[ratios[i]], 2.5, "-" if inside[i] else "--") for i in smallest_first],
        [f"{w:.0f} x {h:.0f}" for w, h in network_sizes[smallest_first]],
        optional=True,
    )
    canvas.box(cell_box, _CELL)
    return canvas

"""The anchors of one cell, on the image."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .canvas import Canvas, Panel
from .palette import BLUE, GREEN, GREY, PURPLE, SKY, ImageArray, Style

# One colour per shape (ratio), in turn; sizes within it are told apart by themselves.
_SHAPES = (BLUE, GREEN, PURPLE, SKY)


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
    reach = np.vstack([anchors, [[0, 0, width, height]]])
    margin = 0.02 * max(width, height)
    view = (*(reach[:, :2].min(0) - margin), *(reach[:, 2:].max(0) + margin))
    kinds = list(dict.fromkeys(ratios))
    styles = {r: Style(_SHAPES[kind % len(_SHAPES)], 2.5) for kind, r in enumerate(kinds)}
    legend = [(f"height / width {ratio:g}", styles[ratio]) for ratio in kinds]
    legend += [
        ("dashed: crosses the border", Style(GREY, 2.5, "--")),
        ("the cell", Style("#000000", 2)),
    ]
    title = f"anchors: {name}, {int(inside.sum())} of {len(anchors)} inside the image"
    canvas = Canvas(image_bgr, title, notes, legend, [Panel(view=view, fade=0.35)])
    canvas.box((0, 0, width, height), Style("#444444", 1.5))
    largest_first = np.argsort(-np.prod(anchors[:, 2:] - anchors[:, :2], axis=1))
    drawn = [
        (anchors[i], Style(styles[ratios[i]].colour, 2.5, "-" if inside[i] else "--"), i)
        for i in largest_first
    ]
    for box, style, _ in drawn:
        canvas.box(box, style)
    canvas.box(cell_box, Style("#000000", 2))
    for box, style, i in reversed(drawn):
        w, h = network_sizes[i]
        canvas.label(box, f"{w:.0f} x {h:.0f}", style, optional=True)
    return canvas

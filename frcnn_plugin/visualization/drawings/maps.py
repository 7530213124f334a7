"""Values in place: feature maps and scores over the image, boxes step by step, boxes by their loss.

Boxes are continuous XYXY in pixels of the original image; so are sides of cells, width and height.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.colors import to_hex

from .canvas import Canvas, Legend, Panel, resize
from .objects import Objects
from .palette import RIGHT, ImageArray, Style

FloatArray = npt.NDArray[np.floating]
_SMALL = (230.0, 340.0)  # sides of panels of which several stand side by side
_MAP = colormaps["plasma"]
_MOST_LABELS = 6


def draw_maps(
    image_bgr: ImageArray,
    maps: Sequence[tuple[str, FloatArray]],  # title and (rows, columns) of each panel
    cells: Sequence[tuple[float, float]],
    title: str = "",
    notes: Sequence[str] = (),
    most: float | None = None,  # what is drawn brightest; None: each map's highest value
) -> Canvas:
    """Draw maps over the image side by side: dark is 0, yellow is `most`."""
    panels = [Panel(text, grey=True) for text, _ in maps]
    canvas = Canvas(image_bgr, title, notes, panels=panels, ticks=False, sides=_SMALL)
    for number, ((_, values), cell) in enumerate(zip(maps, cells, strict=True)):
        highest = max(float(values.max()) if most is None else most, 1e-9)
        canvas.overlay(
            values, values.shape, cell, number, cmap="viridis", vmin=0, vmax=highest, alpha=0.8
        )
    return canvas


def draw_funnel(
    image_bgr: ImageArray,
    steps: Sequence[tuple[str, FloatArray]],  # title and boxes (n, 4) of each step
    objects: Objects,
    title: str,
    notes: Sequence[str],
) -> Canvas:
    """Draw what each step of the selection of proposals leaves, side by side."""
    height, width = image_bgr.shape[:2]
    margin = 0.2 * max(height, width)
    view = (-margin, -margin, width + margin, height + margin)
    panels = [Panel(text, view, 0.4, True) for text, _ in steps]
    legend: Legend = [("box", Style(RIGHT.colour, 1.2)), *objects.legend()]
    canvas = Canvas(image_bgr, title, notes, legend, panels, ticks=False, sides=(300.0, 420.0))
    for panel, (_, boxes) in enumerate(steps):
        for box in boxes:
            canvas.box(box, Style(RIGHT.colour, 1.2), panel, alpha=0.6)
        objects.draw(canvas, panel, texts=[str(n + 1) for n in range(len(objects.names))])
    return canvas


def draw_losses(
    image_bgr: ImageArray,
    groups: Sequence[tuple[str, FloatArray, FloatArray]],  # title, boxes (n, 4), losses (n,)
    objects: Objects,
    title: str,
    notes: Sequence[str],
) -> Canvas:
    """Draw mini-batches side by side, each box in the colour of its loss, the highest on top."""
    highest = max((float(losses.max(initial=0)) for *_, losses in groups), default=0.0)
    levels = [0.0, highest / 2, highest]
    legend = [(f"loss {level:.3g}", _of_loss(level, highest)) for level in levels]
    panels = [Panel(text, None, 0.5, True) for text, *_ in groups]
    canvas = Canvas(image_bgr, title, notes, [*legend, *objects.legend()], panels)
    for panel, (_, boxes, losses) in enumerate(groups):
        order = np.argsort(-losses, kind="stable")
        for index in order[::-1]:
            share = float(losses[index]) / max(highest, 1e-9)
            canvas.box(
                boxes[index], _of_loss(losses[index], highest), panel, alpha=0.15 + 0.8 * share
            )
        objects.draw(canvas, panel, texts=[str(n + 1) for n in range(len(objects.names))])
        for index in order[:_MOST_LABELS]:
            style = _of_loss(losses[index], highest)
            canvas.label(boxes[index], f"{losses[index]:.2f}", style, panel, optional=True)
    return canvas


def _of_loss(loss: float, highest: float) -> Style:
    return Style(to_hex(_MAP(0.72 * float(loss) / max(highest, 1e-9))), 1.8)


def draw_pooled(pooled: Sequence[tuple[str, FloatArray]], title: str) -> Canvas:
    """Draw pooled bins, (P, P) each, side by side in one scale of colours."""
    highest = max(float(values.max()) for _, values in pooled) or 1.0
    side, tiles = 240, []
    for _, values in pooled:
        rgb = colormaps["viridis"](np.clip(values / highest, 0, 1))[..., :3] * 255
        tiles.append(np.kron(rgb[..., ::-1], np.ones((40, 40, 1))).astype(np.uint8))
    row = np.hstack([resize(tile, (side, side)) for tile in tiles])
    views = [(side * k, 0.0, side * (k + 1.0), float(side)) for k in range(len(tiles))]
    panels = [Panel(text, view) for (text, _), view in zip(pooled, views, strict=True)]
    canvas = Canvas(row, title, panels=panels, ticks=False, sides=(240.0, 240.0))
    return canvas

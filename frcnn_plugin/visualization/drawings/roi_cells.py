"""What RoI max pooling makes of a box: rounded to cells, divided into bins, cells read."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from .canvas import Canvas, Panel
from .comparison import ImageArray
from .palette import BLUE, ORANGE, SKY, VERMILION, YELLOW, Style
from .pooled_cells import IntArray, PooledCells

_GIVEN = Style(YELLOW, 3.0)
_ROUNDED = Style(VERMILION, 3.0, "--")
_READ = Style(SKY, filled=True)
_BIN = Style(ORANGE, filled=True)
_BARS = (BLUE, SKY)  # of neighbouring bins, in turn


def draw_roi_cells(
    image_bgr: ImageArray,
    box: npt.NDArray[np.float64],
    cells: PooledCells,
    feature_size: tuple[int, int],
    stride: tuple[float, float],
    name: str,
    notes: Sequence[str] = (),
) -> Canvas:
    """Draw the box on the grid of cells, and its bins in close-up.

    Bins overlap where the box is no multiple of cells: a bin reads every cell that it touches. In
    the close-up, bars along two sides say which columns and rows each of the bins reads.

    Args:
        image_bgr: (H, W, 3) uint8 BGR.
        box: (4,) as given, continuous XYXY, pixels of the original image.
        cells: what is read for it.
        feature_size: height and width of the feature map, cells.
        stride: width and height of a cell, pixels of the original image.
        name: what the title calls image and box.
        notes: lines below the title.

    Returns:
        the picture.
    """
    height, width = image_bgr.shape[:2]
    pixels = np.array([*stride, *stride])
    rounded = cells.rounded * pixels
    read = np.array(cells.read)
    bins = (len(cells.rows), len(cells.columns))
    title = (
        f"roi-cells: {name}, {read[2] - read[0]} x {read[3] - read[1]} feature cells "
        f"pooled into {bins[1]} x {bins[0]} bins"
    )
    reach = np.array([np.minimum(box, rounded)[:2], np.maximum(box, rounded)[2:]])
    bars = 0.22 * max(*(reach[1] - reach[0]), 4 * max(stride))
    close = (
        reach[0, 0] - bars, reach[0, 1] - bars, reach[1, 0] + bars / 4, reach[1, 1] + bars / 4
    )  # fmt: skip
    whole = (
        min(0.0, reach[0, 0]), min(0.0, reach[0, 1]),
        max(width, reach[1, 0], feature_size[1] * stride[0]),
        max(height, reach[1, 1], feature_size[0] * stride[1]),
    )  # fmt: skip
    middle = (bins[0] // 2, bins[1] // 2)
    legend = [
        ("box as given", _GIVEN),
        ("rounded to cells", _ROUNDED),
        ("cells read", _READ),
        (f"cells of bin {middle[0] + 1}, {middle[1] + 1}", _BIN),
    ]
    panels = [
        Panel(f"feature map of {feature_size[1]} x {feature_size[0]} cells", whole, 0.15),
        Panel("close-up, bars: cells of each bin", close, 0.35),
    ]
    beyond = cells.rounded[2] > feature_size[1] or cells.rounded[3] > feature_size[0]
    if beyond:
        notes = [*notes, "its corners round to cells beyond the feature map: nothing to read there"]
    canvas = Canvas(image_bgr, title, notes, legend, panels)
    for panel in range(2):
        _fill(canvas, panel, read * pixels, _READ.colour, 0.45)
        if panel:
            first = np.array([cells.columns[middle[1]], cells.rows[middle[0]]])
            _fill(canvas, panel, first.T.flatten() * pixels, _BIN.colour, 0.85)
        _grid(canvas, panel, feature_size, stride)
        canvas.box(rounded, _ROUNDED, panel)
        canvas.box(box, _GIVEN, panel)
    _bars(canvas, cells.columns, stride[0], reach[0, 1], bars, horizontal=True)
    _bars(canvas, cells.rows, stride[1], reach[0, 0], bars, horizontal=False)
    return canvas


def _fill(
    canvas: Canvas, panel: int, box: npt.NDArray[np.float64], colour: str, alpha: float
) -> None:
    x1, y1, x2, y2 = (float(value) for value in box)
    canvas.axes[panel].add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, facecolor=colour, alpha=alpha, linewidth=0)
    )


def _grid(
    canvas: Canvas, panel: int, feature_size: tuple[int, int], stride: tuple[float, float]
) -> None:
    rows, columns = feature_size
    right, bottom = columns * stride[0], rows * stride[1]
    lines = [[(x * stride[0], 0.0), (x * stride[0], bottom)] for x in range(columns + 1)]
    lines += [[(0.0, y * stride[1]), (right, y * stride[1])] for y in range(rows + 1)]
    width = 0.7 if panel else 0.4
    # Light beside dark, so that lines are seen on any image.
    for colour, factor, alpha in (("#FFFFFF", 2.5, 0.3), ("#222222", 1.0, 0.55)):
        canvas.axes[panel].add_collection(
            LineCollection(lines, colors=colour, linewidths=width * factor, alpha=alpha)
        )


def _bars(
    canvas: Canvas, bounds: IntArray, stride: float, start: float, room: float, *, horizontal: bool
) -> None:
    """A bar for each bin beside the box, in as many lanes as keep overlapping ones apart."""
    axes = canvas.axes[1]
    lanes = lanes_of(bounds)
    thick = room * 0.85 / max(*lanes, 2)
    for number, ((first, end), lane) in enumerate(zip(bounds, lanes, strict=True)):
        if first == end:  # beyond the map
            continue
        across = start - room * 0.08 - thick * lane
        along, length = first * stride, (end - first) * stride
        corner = (along, across) if horizontal else (across, along)
        size = (length, thick * 0.85) if horizontal else (thick * 0.85, length)
        colour = ORANGE if number == len(bounds) // 2 else _BARS[number % 2]
        axes.add_patch(
            Rectangle(corner, *size, facecolor=colour, edgecolor="white", linewidth=0.8, zorder=3)
        )
        axes.text(
            corner[0] + size[0] / 2, corner[1] + size[1] / 2, str(number + 1), ha="center",
            va="center", fontsize=8, zorder=4, color="white" if colour == BLUE else "black",
        )  # fmt: skip


def lanes_of(bounds: IntArray) -> list[int]:
    """Lanes, from 1 on, in which intervals do not overlap.

    Args:
        bounds: (n, 2) starts and ends, starts ascending; empty ones get a lane as well.
    """
    ends: list[int] = []
    lanes = []
    for first, end in bounds:
        lane = next((i for i, taken in enumerate(ends) if taken <= first), len(ends))
        ends[lane : lane + 1] = [int(end)]
        lanes.append(lane + 1)
    return lanes

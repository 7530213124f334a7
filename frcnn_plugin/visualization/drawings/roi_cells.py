"""What RoI max pooling makes of a box: rounded to cells, divided into bins, cells read.

The pooler itself is asked which cells it reads; nothing is rounded here. It is given feature maps
whose values are the positions of their cells; the maxima it returns then name the first and last
row and column of every bin. A bin is empty where positions, which begin at 1, come back as 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from detectron2.structures import Boxes

from .canvas import Canvas, Panel, view_around
from .palette import BLUE, ORANGE, SKY, VERMILION, YELLOW, ImageArray, Style

Pooler = Callable[[list[torch.Tensor], list[Boxes]], torch.Tensor]
IntArray = npt.NDArray[np.int64]

_MARGIN = 4  # cells added to see where corners round to that leave the feature map
_GIVEN = Style(YELLOW, 3.0)
_ROUNDED = Style(VERMILION, 3.0, "--")
_READ = Style(SKY, filled=True)
_BIN = Style(ORANGE, filled=True)
_BARS = (BLUE, SKY)  # of neighbouring bins, in turn


@dataclass(frozen=True)
class PooledCells:
    """What one RoI reads."""

    # (4,) first column, first row, last column + 1, last row + 1 of the cells its corners are
    # rounded to; they may lie beyond the feature map.
    rounded: IntArray
    columns: IntArray  # (n, 2) first and last + 1 of each bin, on the map; equal where it is empty
    rows: IntArray  # (n, 2) likewise, from top to bottom

    @property
    def read(self) -> IntArray:
        """(4,) first column, first row, last column + 1, last row + 1 of the cells read."""
        full = [bins[bins[:, 0] < bins[:, 1]] for bins in (self.columns, self.rows)]
        spans = [(bins[:, 0].min(), bins[:, 1].max()) if len(bins) else (0, 0) for bins in full]
        return np.array(spans, dtype=np.int64).T.flatten()


def pooled_cells(pooler: Pooler, box: torch.Tensor, feature_size: tuple[int, int]) -> PooledCells:
    """Ask an RoI *max* pooler what it reads for a box, (4,) XYXY in network-input pixels."""
    columns, rows = _bins(pooler, box, feature_size)
    beyond = _bins(pooler, box, (feature_size[0] + _MARGIN, feature_size[1] + _MARGIN))
    rounded = [bins[:, 0].min() for bins in beyond] + [bins[:, 1].max() for bins in beyond]
    return PooledCells(np.array(rounded, dtype=np.int64), columns, rows)


def _bins(pooler: Pooler, box: torch.Tensor, size: tuple[int, int]) -> tuple[IntArray, IntArray]:
    """Return bounds of the bins' columns and rows on a map of this size."""
    height, width = size
    x = torch.arange(1.0, width + 1).expand(height, width)
    y = torch.arange(1.0, height + 1)[:, None].expand(height, width)
    # The last position is the largest one; the first is the largest when counted from the end.
    probe = torch.stack([x, width + 1 - x, y, height + 1 - y])[None]
    pooled = pooler([probe], [Boxes(box[None].float())])[0].double().numpy()  # (4, n, n)
    last_x, first_x, last_y, first_y = pooled
    full = last_x > 0  # an empty bin is 0
    # Bins in one column share their columns of cells, in every row that is not empty; so do rows.
    columns = np.stack([width - first_x.max(axis=0), last_x.max(axis=0)], axis=1)
    rows = np.stack([height - first_y.max(axis=1), last_y.max(axis=1)], axis=1)
    columns[~full.any(axis=0)] = 0
    rows[~full.any(axis=1)] = 0
    return columns.astype(np.int64), rows.astype(np.int64)


def draw_roi_cells(
    image_bgr: ImageArray,
    box: npt.NDArray[np.float64],  # (4,) as given, pixels of the original image
    cells: PooledCells,
    feature_size: tuple[int, int],  # height and width, cells
    stride: tuple[float, float],  # width and height of a cell, pixels of the original image
    name: str,  # of the box and the image
    notes: Sequence[str] = (),
) -> Canvas:
    """Draw the box on the grid of cells, and its bins in close-up.

    Bins overlap where the box is no multiple of cells: a bin reads every cell that it touches. In
    the close-up, bars along two sides say which columns and rows each of the bins reads.
    """
    pixels = np.array([*stride, *stride])
    rounded, read = cells.rounded * pixels, cells.read
    height, width = feature_size
    bins = (len(cells.rows), len(cells.columns))
    title = (
        f"roi-cells: {name}, {read[2] - read[0]} x {read[3] - read[1]} feature cells "
        f"pooled into {bins[1]} x {bins[0]} bins"
    )
    x1, y1, x2, y2 = reach = (*np.minimum(box, rounded)[:2], *np.maximum(box, rounded)[2:])
    bars = 0.22 * max(x2 - x1, y2 - y1, 4 * max(stride))
    close = (x1 - bars, y1 - bars, x2 + bars / 4, y2 + bars / 4)
    whole = view_around(image_bgr, [(0, 0, width * stride[0], height * stride[1]), reach])
    middle = (bins[0] // 2, bins[1] // 2)
    legend = [
        ("box as given", _GIVEN),
        ("rounded to cells", _ROUNDED),
        ("cells read", _READ),
        (f"cells of bin {middle[0] + 1}, {middle[1] + 1}", _BIN),
    ]
    panels = [
        Panel(f"feature map of {width} x {height} cells", whole, 0.15),
        Panel("close-up, bars: cells of each bin", close, 0.35),
    ]
    if cells.rounded[2] > width or cells.rounded[3] > height:
        notes = [*notes, "its corners round to cells beyond the feature map: nothing to read there"]
    canvas = Canvas(image_bgr, title, notes, legend, panels)
    for panel in range(2):
        canvas.fill(read * pixels, _READ.colour, 0.45, panel)
        if panel:
            example = np.array([cells.columns[middle[1]], cells.rows[middle[0]]])
            canvas.fill(example.T.flatten() * pixels, _BIN.colour, 0.85, panel)
        canvas.grid(feature_size, stride, panel, 0.7 if panel else 0.4)
        canvas.box(rounded, _ROUNDED, panel)
        canvas.box(box, _GIVEN, panel)
    _bars(canvas, cells.columns, stride[0], y1, bars, horizontal=True)
    _bars(canvas, cells.rows, stride[1], x1, bars, horizontal=False)
    return canvas


def _bars(
    canvas: Canvas, bounds: IntArray, stride: float, start: float, room: float, *, horizontal: bool
) -> None:
    """Draw a bar for each bin beside the box, in as many lanes as keep overlapping ones apart."""
    lanes = lanes_of(bounds)
    thick = room * 0.85 / max(*lanes, 2)
    for number, ((first, end), lane) in enumerate(zip(bounds, lanes, strict=True)):
        if first == end:  # beyond the map
            continue
        across = start - room * 0.08 - thick * lane
        bar = (first * stride, across, end * stride, across + thick * 0.85)
        if not horizontal:
            bar = (bar[1], bar[0], bar[3], bar[2])
        colour = ORANGE if number == len(bounds) // 2 else _BARS[number % 2]
        canvas.fill(bar, colour, 1.0, 1, str(number + 1))


def lanes_of(bounds: IntArray) -> list[int]:
    """Assign intervals, (n, 2) with ascending starts, to lanes from 1 on without overlaps."""
    ends: list[int] = []
    lanes = []
    for first, end in bounds:
        lane = next((i for i, taken in enumerate(ends) if taken <= first), len(ends))
        ends[lane : lane + 1] = [int(end)]
        lanes.append(lane + 1)
    return lanes

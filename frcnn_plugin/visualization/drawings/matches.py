"""Which anchors are positive, negative and ignored before sampling, and why."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba

from .canvas import Canvas, Panel
from .comparison import ImageArray
from .match_reasons import MatchReasons, Reason
from .objects import Objects
from .palette import BLUE, PURPLE, SKY, VERMILION, Style

Grid = tuple[int, int, int, int]

_MOST_BOXES = 60  # positive anchors drawn as boxes
_LOOKS = {
    Reason.ABOVE: Style(BLUE, 2.0, filled=True),
    Reason.BEST: Style(SKY, 1.5, filled=True),
    Reason.BELOW: Style(VERMILION, filled=True),
    Reason.BETWEEN: Style(PURPLE, filled=True),
    Reason.OUTSIDE: Style("#FFFFFF", filled=True),
}


def draw_matches(
    image_bgr: ImageArray,
    anchors: npt.NDArray[np.float64],
    reasons: MatchReasons,
    grid: Grid,
    stride: tuple[float, float],
    objects: Objects,
    name: str,
    notes: Sequence[str] = (),
) -> Canvas:
    """Draw the positive anchors as boxes, and every anchor as a spot of its cell.

    Args:
        image_bgr: (H, W, 3) uint8 BGR.
        anchors: (R, 4) continuous XYXY, pixels of the original image.
        reasons: their labels, explained.
        grid: rows and columns of cells, rows and columns of the table that a cell's anchors are
            laid out in (for the paper's: ratios and sizes); R is their product.
        stride: width and height of a cell, pixels of the original image.
        objects: those that were matched, numbered as in ``reasons``, then others.
        name: what the title calls the image.
        notes: lines below the title.

    Returns:
        the picture.
    """
    lower, upper = reasons.thresholds
    counts = {reason: reasons.count(reason) for reason in Reason}
    texts = {
        Reason.ABOVE: f"positive: IoU >= {upper:g}",
        Reason.BEST: "positive: the best of an object",
        Reason.BELOW: f"negative: IoU < {lower:g}",
        Reason.BETWEEN: "ignored: in between",
        Reason.OUTSIDE: "ignored: crosses the border",
    }
    legend = [(f"{texts[reason]} ({counts[reason]})", _LOOKS[reason]) for reason in Reason]
    positive = np.flatnonzero(np.isin(reasons.reason.numpy(), (Reason.ABOVE, Reason.BEST)))
    title = (
        f"matches: {name}, {len(positive)} positive, {counts[Reason.BELOW]} negative, "
        f"{counts[Reason.BETWEEN] + counts[Reason.OUTSIDE]} ignored anchors"
    )
    drawn = _choose(positive, reasons)
    shown = "positive anchors"
    if len(drawn) < len(positive):
        shown = f"{len(drawn)} of {len(positive)} positive anchors, highest IoU first"
    _, _, high, wide = grid
    panels = [
        Panel(shown, _reach(image_bgr, anchors[drawn]), 0.2),
        Panel(f"all anchors: {high * wide} spots per cell, one for each shape", None, 0.6, True),
    ]
    canvas = Canvas(image_bgr, title, notes, [*legend, *objects.legend()], panels)
    for index in reversed(drawn):
        canvas.box(anchors[index], _LOOKS[Reason(int(reasons.reason[index]))])
    objects.draw(canvas, 0)
    _label(canvas, anchors, reasons, drawn)
    _draw_map(canvas, reasons, grid, stride)
    objects.draw(canvas, 1, texts=[str(number + 1) for number in range(len(objects.boxes))])
    return canvas


def _choose(positive: npt.NDArray[np.intp], reasons: MatchReasons) -> npt.NDArray[np.intp]:
    """Those that are drawn: one of every object at least, then by IoU; in descending order."""
    by_iou = positive[np.argsort(-reasons.iou.numpy()[positive], kind="stable")]
    _, first = np.unique(reasons.best_object.numpy()[by_iou], return_index=True)
    rest = np.setdiff1d(np.arange(len(by_iou)), first)
    chosen = np.concatenate([first, rest])[: max(_MOST_BOXES, len(first))]
    return by_iou[np.sort(chosen)]


def _label(
    canvas: Canvas,
    anchors: npt.NDArray[np.float64],
    reasons: MatchReasons,
    drawn: npt.NDArray[np.intp],
) -> None:
    """IoUs; anchors that are the best of the same object share a label, as they are often many."""
    best = reasons.reason == Reason.BEST
    labelled = set()
    for index in drawn:
        reason, owner = Reason(int(reasons.reason[index])), int(reasons.best_object[index])
        text = f"{reasons.iou[index]:.2f}"
        if reason is Reason.BEST:
            if owner in labelled:
                continue
            labelled.add(owner)
            ties = int((best & (reasons.best_object == owner)).sum())
            text = f"best of {owner + 1}: {text}" + (f", {ties} anchors" if ties > 1 else "")
        canvas.label(anchors[index], text, _LOOKS[reason], optional=reason is Reason.ABOVE)


def spots(reason: npt.NDArray[np.int64], grid: Grid) -> npt.NDArray[np.int64]:
    """Lay out the anchors of each cell as a small table inside the cell.

    Args:
        reason: (R,) by row, column, anchor.
        grid: see `draw_matches`.

    Returns:
        (rows * high, columns * wide).
    """
    rows, columns, high, wide = grid
    table = reason.reshape(rows, columns, high, wide)
    return table.transpose(0, 2, 1, 3).reshape(rows * high, columns * wide)


def _draw_map(
    canvas: Canvas,
    reasons: MatchReasons,
    grid: Grid,
    stride: tuple[float, float],
) -> None:
    rows, columns = grid[:2]
    alphas = {Reason.BELOW: 0.6, Reason.OUTSIDE: 0.3}
    colours = np.array([to_rgba(_LOOKS[r].colour, alphas.get(r, 1.0)) for r in Reason])
    axes = canvas.axes[1]
    limits = axes.get_xlim(), axes.get_ylim()
    width, height = columns * stride[0], rows * stride[1]
    axes.imshow(
        colours[spots(reasons.reason.numpy(), grid)], extent=(0, width, height, 0), aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    vertical = [[(x * stride[0], 0), (x * stride[0], height)] for x in range(columns + 1)]
    horizontal = [[(0, y * stride[1]), (width, y * stride[1])] for y in range(rows + 1)]
    lines = LineCollection([*vertical, *horizontal], colors="#333333", linewidths=0.4, alpha=0.6)
    axes.add_collection(lines)
    axes.set(xlim=limits[0], ylim=limits[1])


def _reach(
    image: ImageArray, boxes: npt.NDArray[np.float64]
) -> tuple[float, float, float, float]:  # fmt: skip
    """A view of the image and, where anchors over the border are trained on, of those."""
    height, width = image.shape[:2]
    all_boxes = np.vstack([boxes, [[0, 0, width, height]]])
    x1, y1 = all_boxes[:, :2].min(axis=0)
    x2, y2 = all_boxes[:, 2:].max(axis=0)
    return float(x1), float(y1), float(x2), float(y2)

"""Which anchors are positive, negative and ignored before sampling, and why.

The labels come from the model; `explain_matches` only finds the rule that gave them, and complains
when none did, so that a picture cannot show another rule than the one that is trained with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from detectron2.structures import Boxes, pairwise_iou
from matplotlib.colors import to_rgba

from .canvas import Canvas, Panel, view_around
from .objects import Objects
from .palette import BLUE, PURPLE, SKY, VERMILION, ImageArray, Style


class Reason(IntEnum):
    """In the order of the legend."""

    ABOVE = 0  # IoU >= the upper threshold with an object: positive
    BEST = 1  # the highest IoU with some object: positive
    BELOW = 2  # IoU below the lower threshold with all objects: negative
    BETWEEN = 3  # ignored
    OUTSIDE = 4  # crosses the border of the image: ignored


@dataclass(frozen=True)
class MatchReasons:
    """Labels of all anchors of an image, explained.

    Attributes:
        reason: (R,) int64 `Reason`.
        iou: (R,) highest IoU with an object, 0 without objects.
        best_object: (R,) the object it is the best anchor of; where it is of none, or outside, the
            one it overlaps most; -1 without objects.
        thresholds: the lower and the upper one.
    """

    reason: torch.Tensor
    iou: torch.Tensor
    best_object: torch.Tensor
    thresholds: tuple[float, float]

    def count(self, reason: Reason) -> int:
        """Count the anchors with this reason."""
        return int((self.reason == reason).sum())


def explain_matches(
    anchors: Boxes,
    labels: torch.Tensor,
    inside: torch.Tensor,
    gt_boxes: Boxes,
    thresholds: tuple[float, float],
) -> MatchReasons:
    """Find the reason of every label.

    Args:
        anchors: (R, 4), network-input pixels.
        labels: (R,) before sampling: 1 positive, 0 negative, -1 ignored.
        inside: (R,) bool, anchors that take part in matching.
        gt_boxes: (G, 4), same frame.
        thresholds: IoU below which an anchor is negative, and from which it is positive.

    Returns:
        the reasons.

    Raises:
        ValueError: a label that none of the rules gives.
    """
    low, high = thresholds
    iou = pairwise_iou(gt_boxes, anchors)  # (G, R)
    iou[:, ~inside] = iou[:, ~inside].clamp(max=0)  # they were gone before matching
    if iou.numel():
        best_iou, best_object = iou.max(dim=0)
        is_best = (iou == iou.amax(dim=1, keepdim=True)) & inside
        # Of several objects it is the best anchor of, the one it overlaps most.
        chosen = torch.where(is_best, iou, -1.0).argmax(dim=0)
        best_object = torch.where(is_best.any(dim=0), chosen, best_object)
        best = is_best.any(dim=0)
    else:
        best_iou = torch.zeros(len(anchors))
        best_object = torch.full((len(anchors),), -1)
        best = torch.zeros(len(anchors), dtype=torch.bool)

    reason = torch.full((len(anchors),), -1)
    positive, negative = labels == 1, labels == 0
    reason[positive & best] = Reason.BEST
    reason[positive & (best_iou >= high)] = Reason.ABOVE
    reason[negative & (best_iou < low)] = Reason.BELOW
    reason[(labels == -1) & (best_iou >= low) & (best_iou < high)] = Reason.BETWEEN
    reason[(labels == -1) & ~inside] = Reason.OUTSIDE
    if (reason < 0).any():
        first = int((reason < 0).nonzero()[0])
        raise ValueError(
            f"anchor {first} has label {int(labels[first])} with IoU {float(best_iou[first]):.4f}, "
            f"which no rule with the thresholds {low:g} and {high:g} gives"
        )
    return MatchReasons(reason, best_iou, best_object, thresholds)


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
        Panel(shown, view_around(image_bgr, anchors[drawn]), 0.2),
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
    """Choose those that are drawn, best first: one of every object at least, then by IoU."""
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
    """Write IoUs; anchors that are best of the same object share a label, as they may be many."""
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
    table = colours[spots(reasons.reason.numpy(), grid)]
    canvas.table(table, (columns * stride[0], rows * stride[1]), 1)
    canvas.grid((rows, columns), stride, 1)

"""The anchors of one cell, the labels of all and why, and the mini-batch drawn from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from detectron2.structures import Boxes, pairwise_iou
from matplotlib.colors import to_rgba

from .canvas import Canvas, Panel, view_around
from .layout import points
from .objects import Objects
from .palette import BLUE, GREEN, GREY, PURPLE, RIGHT, SKY, VERMILION, ImageArray, Style

BoxArray = npt.NDArray[np.float64]  # (N, 4) continuous XYXY, pixels of the original image
# Rows and columns of cells, rows and columns of the table in which a cell's anchors are laid out
# (for the paper's anchors: ratios and sizes). Their product is the number of anchors, R.
Grid = tuple[int, int, int, int]

# One colour per shape (ratio), in turn; sizes within it can be told apart anyway.
_SHAPES = (BLUE, GREEN, PURPLE, SKY)
_CELL = Style("#000000", 2)


def draw_anchors(
    image_bgr: ImageArray,
    anchors: BoxArray,  # (A, 4)
    network_sizes: npt.NDArray[np.float64],  # (A, 2) width and height, network pixels
    inside: npt.NDArray[np.bool_],  # (A,) those that are trained on
    ratios: Sequence[float],  # (A,) height / width of each
    cell_box: BoxArray,  # (4,)
    name: str,  # of the image and the cell
    notes: Sequence[str] = (),
) -> Canvas:
    """Draw the anchors of one cell; the picture reaches as far as they do."""
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


class Reason(IntEnum):
    """Why an anchor has its label, in the order of the legend."""

    ABOVE = 0  # IoU >= the upper threshold with an object: positive
    BEST = 1  # the highest IoU with some object: positive
    BELOW = 2  # IoU below the lower threshold with all objects: negative
    BETWEEN = 3  # ignored
    OUTSIDE = 4  # crosses the border of the image: ignored


@dataclass(frozen=True)
class MatchReasons:
    """Labels of all anchors of an image, explained."""

    reason: torch.Tensor  # (R,) int64 `Reason`
    iou: torch.Tensor  # (R,) highest IoU with an object, 0 without objects
    # (R,) the object it is the best anchor of; where it is of none, or outside, the one it overlaps
    # most; -1 without objects.
    best_object: torch.Tensor
    thresholds: tuple[float, float]  # IoU below which it is negative, and from which positive


def explain_matches(
    anchors: Boxes,  # (R, 4), network-input pixels
    labels: torch.Tensor,  # (R,) before sampling: 1 positive, 0 negative, -1 ignored
    inside: torch.Tensor,  # (R,) bool, anchors that take part in matching
    gt_boxes: Boxes,  # (G, 4), same frame
    thresholds: tuple[float, float],
) -> MatchReasons:
    """Find the reason of every label; the RPN gave the labels by the same rules."""
    best_iou = torch.zeros(len(anchors))
    best_object = torch.full((len(anchors),), -1)
    if len(gt_boxes):
        iou = pairwise_iou(gt_boxes, anchors)  # (G, R)
        iou[:, ~inside] = 0  # they were gone before matching
        best_iou, best_object = iou.max(dim=0)
        is_best = (iou == iou.amax(dim=1, keepdim=True)) & inside
        # Of several objects it is the best anchor of, the one it overlaps most.
        chosen = torch.where(is_best, iou, -1.0).argmax(dim=0)
        best_object = torch.where(is_best.any(dim=0), chosen, best_object)
    reason = torch.full((len(anchors),), int(Reason.BELOW))
    reason[labels == -1] = Reason.BETWEEN
    reason[~inside] = Reason.OUTSIDE
    reason[labels == 1] = Reason.BEST
    reason[(labels == 1) & (best_iou >= thresholds[1])] = Reason.ABOVE
    return MatchReasons(reason, best_iou, best_object, thresholds)


_MOST_BOXES = 60  # positive anchors drawn as boxes
_LOOKS = {
    Reason.ABOVE: Style(BLUE, 2.0, filled=True),
    Reason.BEST: Style(SKY, 1.5, filled=True),
    Reason.BELOW: Style(VERMILION, filled=True),
    Reason.BETWEEN: Style(PURPLE, filled=True),
    Reason.OUTSIDE: Style("#FFFFFF", filled=True),
}
_ALPHAS = {Reason.BELOW: 0.6, Reason.OUTSIDE: 0.3}  # of spots; 1 for the other reasons


def draw_matches(
    image_bgr: ImageArray,
    anchors: BoxArray,  # (R, 4)
    reasons: MatchReasons,
    grid: Grid,
    stride: tuple[float, float],  # width and height of a cell, pixels of the original image
    objects: Objects,  # those that were matched, numbered as in `reasons`, then others
    name: str,
    notes: Sequence[str] = (),
) -> Canvas:
    """Draw the positive anchors as boxes, and every anchor as a spot of its cell."""
    lower, upper = reasons.thresholds
    counts = torch.bincount(reasons.reason, minlength=len(Reason)).tolist()
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
    rows, columns, high, wide = grid
    panels = [
        Panel(shown, view_around(image_bgr, anchors[drawn]), 0.2),
        Panel(f"all anchors: {high * wide} spots per cell, one for each shape", None, 0.6, True),
    ]
    canvas = Canvas(image_bgr, title, notes, [*legend, *objects.legend()], panels)
    canvas.boxes(anchors[drawn], [_LOOKS[Reason(int(reasons.reason[i]))] for i in drawn])
    objects.draw(canvas)
    _label(canvas, anchors, reasons, drawn)

    colours = np.array([to_rgba(_LOOKS[r].colour, _ALPHAS.get(r, 1.0)) for r in Reason])
    table = colours[spots(reasons.reason.numpy(), grid)]
    canvas.overlay(table, (rows, columns), stride, 1)
    canvas.grid((rows, columns), stride, 1, 0.4)
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
    canvas: Canvas, anchors: BoxArray, reasons: MatchReasons, drawn: npt.NDArray[np.intp]
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
    """Lay out (R,) anchors, ordered by row, column and shape, as a small table in each cell."""
    rows, columns, high, wide = grid
    table = reason.reshape(rows, columns, high, wide)
    return table.transpose(0, 2, 1, 3).reshape(rows * high, columns * wide)


_BACKGROUND = Style(VERMILION, 1.0)
_MANY, _THIN = 12, Style(BLUE, 1.8)  # more boxes than this get thinner lines


@dataclass(frozen=True)
class Sample:
    """A mini-batch of one image."""

    what: str  # "RPN anchors" or "head RoIs"
    positive: BoxArray  # (P, 4)
    negative: BoxArray  # (N, 4)
    words: tuple[str, str] = ("positive", "negative")  # what they are called

    def summary(self) -> str:
        """Say the numbers in one phrase."""
        positive, negative = len(self.positive), len(self.negative)
        return (
            f"{self.what}: {positive + negative} = {positive} {self.words[0]} + "
            f"{negative} {self.words[1]}"
        )


def draw_samples(
    image_bgr: ImageArray,
    samples: Sequence[Sample],
    objects: Objects,
    name: str,
    notes: Sequence[str] = (),
) -> Canvas:
    """Draw what an iteration learns from, mini-batches of anchors and of RoIs side by side."""
    panels = []
    for sample in samples:
        view = view_around(image_bgr, np.vstack([sample.positive, sample.negative]))
        panels.append(Panel(sample.summary(), view, 0.5, True))
    legend = [
        ("positive, foreground (dot: centre)", RIGHT),
        ("negative, background", _BACKGROUND),
        *objects.legend(),
    ]
    title = f"sampled: {name}; " + "; ".join(sample.summary() for sample in samples)
    canvas = Canvas(image_bgr, title, notes, legend, panels)
    for panel, sample in enumerate(samples):
        for box in sample.negative:
            canvas.box(box, _BACKGROUND, panel, alpha=0.4)
        style = _THIN if len(sample.positive) > _MANY else RIGHT
        for box in sample.positive:
            canvas.box(box, style, panel)
        for boxes, colour, diameter in (
            (sample.negative, VERMILION, 5),
            (sample.positive, BLUE, 7),
        ):
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            canvas.axes[panel].plot(
                *centres.T, "o", color=colour, markersize=points(diameter),
                markeredgecolor="white", markeredgewidth=0.5,
            )  # fmt: skip
        objects.draw(canvas, panel)
    return canvas

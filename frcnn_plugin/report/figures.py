"""The pictures of the report: plots as SVG in data addresses, photographs as SVG elements."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..data.loading.image_reader import read_bgr
from ..errors import UserError
from ..evaluation.proposals.recall import RecallCurves, draw_recall
from ..evaluation.record import BoxRecord, ClassRecord, ImageRecord
from ..four_step.stages import ScheduledStage
from ..visualization.drawings.bare_canvas import BareCanvas
from ..visualization.drawings.palette import (
    DIFFICULT,
    FOUND,
    MISSED,
    RIGHT,
    UNCOUNTED,
    WRONG,
    Style,
)
from .folder import Metrics, name_of

MOST_PANELS = 30  # precision-recall curves
_POINTS = 400  # per training curve; more are averaged
_PANEL_POINTS = 150  # per precision-recall curve, whose panel is about as many pixels wide
_SIDE, _LETTER = 480, 18  # of photographs, pixels
_SHADES = ("#eef3fb", "#fdf4e7")
_COLOURS = ("#222222", "#1f62be", "#d1690a", "#147d3c", "#a03cbd")
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "svg.fonttype": "none",  # the browser's letters: small, sharp, and it knows every script
    "svg.hashsalt": "frcnn_plugin",  # the same file for the same data
}
_BOXES = {"right": RIGHT, "wrong": WRONG, "found": FOUND, "missed": MISSED}


def draw_training(metrics: Metrics, stages: Sequence[ScheduledStage]) -> str:
    """Draw losses above the learning rate, over the iterations, with the stages shaded.

    Args:
        metrics: what was logged, at least once.
        stages: of the run; may be empty.
    """
    merged = math.ceil(len(metrics.training) / _POINTS)
    figure = Figure(figsize=(10.5, 5.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    iterations = _average(metrics.training, "iteration", merged)
    # Few points are dots too: a line of one would not be seen.
    marker = "o" if len(iterations) < 10 else ""
    for index, name in enumerate(metrics.losses()):
        top.plot(
            iterations, _average(metrics.training, name, merged), marker=marker, markersize=4,
            label=name, lw=1.2 if index else 2.0,
            color=_COLOURS[index % len(_COLOURS)],
        )  # fmt: skip
    rates = _average(metrics.training, "lr", merged)
    bottom.plot(iterations, rates, color="#333333", drawstyle="steps-post", marker=marker)
    for index, stage in enumerate(stages if len(stages) > 1 else ()):
        for axes in (top, bottom):
            axes.axvspan(stage.start, stage.end, color=_SHADES[index % 2], lw=0, zorder=0)
        top.text(
            (stage.start + stage.end) / 2, 1.01, name_of(stage), size=9, color="#444444",
            transform=top.get_xaxis_transform(), ha="center", va="bottom",
        )  # fmt: skip
    highest = top.dataLim.y1 if np.isfinite(top.dataLim.y1) else 1.0
    top.set(ylabel="loss", ylim=(0, 1.35 * highest))  # room for the legend
    if metrics.losses():
        top.legend(loc="upper right", framealpha=0.9, edgecolor="none", ncols=2)
    end = stages[-1].end if stages else metrics.done
    bottom.set(ylabel="learning rate", xlabel="iteration", xlim=(0, end))
    bottom.set(ylim=(0, 1.25 * rates.max()), yticks=[0, rates.max()])
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.xaxis.set_major_formatter("{x:,.0f}")
    for axes in (top, bottom):
        axes.grid(axis="y", alpha=0.3)
    return _address(figure)


def draw_recalls(curves: Mapping[str, RecallCurves]) -> str:
    """Draw recall over IoU for several numbers of proposals, a curve per stage."""
    return _address(draw_recall(curves, title=False))


def draw_precision_recall(classes: Sequence[ClassRecord]) -> str:
    """Draw precision over recall at IoU 0.5, a panel per class with objects, as many as fit."""
    shown = [entry for entry in classes if entry.num_objects][:MOST_PANELS]
    columns = min(5, max(len(shown), 1))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(2.15 * columns, 0.35 + 1.85 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, entry in zip(panels.flat, shown, strict=False):
        number = len(entry.recall)
        chosen = np.linspace(0, number - 1, min(number, _PANEL_POINTS)).round().astype(int)
        recall, precision = np.array(entry.recall)[chosen], np.array(entry.precision)[chosen]
        axes.fill_between(recall, precision, color="#1f62be", alpha=0.12, lw=0)
        axes.plot(recall, precision, color="#1f62be", lw=1.5, marker="o" if number == 1 else "")
        name = entry.name if len(entry.name) <= 14 else entry.name[:13] + "…"
        title = f"{name}  {next(iter(entry.ap50.values()), 0.0):.1f}"
        axes.set_title(title, parse_math=False)
        axes.set(xlim=(0, 1.05), ylim=(0, 1.05), xticks=[0.25, 0.5, 0.75], yticks=[0, 0.5, 1])
        axes.grid(alpha=0.3)
    figure.supxlabel("recall", size=10)
    figure.supylabel("precision", size=10)
    return _address(figure)


def draw_image(image: ImageRecord) -> tuple[str, str]:
    """Draw an image with its objects and confident detections.

    Returns:
        The picture, and what is wrong with the image file; "" if nothing is.
    """
    problem = ""
    try:
        pixels = read_bgr(image.file_name)
    except UserError as error:
        problem = str(error)
        # Grey, as large as it was, or as its boxes say.
        far = np.max([[1.0, 1.0], *(box.box[2:] for box in image.boxes)], axis=0)
        size = (image.height or int(far[1]), image.width or int(far[0]), 3)
        pixels = np.full(size, 225, dtype=np.uint8)
    canvas = BareCanvas(pixels, sides=(_SIDE, _SIDE), letter=_LETTER)
    # What matters most comes last, so that it lies on top, and labels of it first.
    order = ("ignored", "found", "right", "missed", "wrong")
    boxes = sorted(image.boxes, key=lambda box: order.index(box.outcome))
    for box in boxes:
        what = "object" if box.score is None else f"detection {box.score:.2f}"
        canvas.box(box.box, _look(box), hint=f"{box.label}, {what}, {box.outcome}")
    for box in reversed(boxes):
        if box.outcome not in ("ignored", "found"):
            end = "missed" if box.score is None else f"{box.score:.2f}"
            canvas.label(box.box, f"{box.label} {end}", _look(box))
    return canvas.svg(f"Image {image.image_id}"), problem


def _look(box: BoxRecord) -> Style:
    ignored = DIFFICULT if box.score is None else UNCOUNTED
    return _BOXES.get(box.outcome, ignored)


def _address(figure: Figure) -> str:
    """Return a figure as an address that needs no file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _average(
    rows: Sequence[Mapping[str, float]], name: str, merged: int
) -> npt.NDArray[np.float64]:
    """Average `merged` values each; nan, a gap in the line, where none is there or finite.

    The gaps are between the stages: each has losses of its own.
    """
    values = np.array([row.get(name, np.nan) for row in rows], dtype=float)
    values[~np.isfinite(values)] = np.nan
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice")
        return np.array([
            np.nanmean(values[i : i + merged]) for i in range(0, len(values), merged)
        ])  # fmt: skip

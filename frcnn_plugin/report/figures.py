"""The pictures of the report: plots as SVG in data addresses, photographs as SVG elements."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..data.loading.image_reader import read_bgr
from ..errors import UserError
from ..evaluation.record import ImageRecord
from ..four_step.stages import ScheduledStage
from ..visualization.drawings.bare_canvas import BareCanvas
from ..visualization.drawings.palette import DIFFICULT, FOUND, MISSED, RIGHT, UNCOUNTED, WRONG
from .folder import Metrics, name_of

_POINTS = 400  # per training curve; more are averaged
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
# What matters most comes last, so that it lies on top.
_BOXES = {"found": FOUND, "right": RIGHT, "missed": MISSED, "wrong": WRONG}
_ORDER = ("ignored", *_BOXES)


def draw_training(metrics: Metrics, stages: Sequence[ScheduledStage]) -> Figure:
    """Draw losses above the learning rate, over the iterations, with the stages, if any, shaded."""
    figure = Figure(figsize=(10.5, 5.0), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    iterations = _averaged(metrics.training, "iteration")
    # Few points are dots too: a line of one would not be seen.
    marker = "o" if len(iterations) < 10 else ""
    for index, name in enumerate(metrics.losses()):
        top.plot(
            iterations, _averaged(metrics.training, name), marker=marker, markersize=4,
            label=name, lw=1.2 if index else 2.0,
            color=_COLOURS[index % len(_COLOURS)],
        )  # fmt: skip
    rates = _averaged(metrics.training, "lr")
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
    _finish(bottom, top)
    return figure


def draw_results(curves: Mapping[str, Sequence[tuple[int, float]]], end: int) -> Figure:
    """Draw what was measured on test sets, percent, over the iterations up to the `end`."""
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    axes = figure.subplots()
    for index, (name, points) in enumerate(curves.items()):
        axes.plot(*zip(*points, strict=True), "o-", color=_COLOURS[index % len(_COLOURS)],
                  markersize=4, label=name, clip_on=False)  # fmt: skip
    axes.set(xlabel="iteration", ylabel="percent", xlim=(0, end), ylim=(0, 100))
    _finish(axes)
    axes.legend(loc="upper left", framealpha=0.9, edgecolor="none", ncols=2)
    return figure


def _finish(lowest: Axes, *others: Axes) -> None:
    """Draw grids, and whole numbers of iterations."""
    lowest.xaxis.set_major_locator(MaxNLocator(integer=True))
    lowest.xaxis.set_major_formatter("{x:,.0f}")
    for axes in (lowest, *others):
        axes.grid(axis="y", alpha=0.3)


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
        # Grey, and large enough for its boxes.
        width, height = np.max([[1.0, 1.0], *(box.box[2:] for box in image.boxes)], axis=0)
        pixels = np.full((math.ceil(height), math.ceil(width), 3), 225, dtype=np.uint8)
    canvas = BareCanvas(pixels, sides=(_SIDE, _SIDE), letter=_LETTER)
    boxes = [
        (box, _BOXES.get(box.outcome, DIFFICULT if box.score is None else UNCOUNTED))
        for box in sorted(image.boxes, key=lambda box: _ORDER.index(box.outcome))
    ]
    for box, style in boxes:
        what = "object" if box.score is None else f"detection {box.score:.2f}"
        canvas.box(box.box, style, hint=f"{box.label}, {what}, {box.outcome}")
    for box, style in reversed(boxes):  # the first label gets the best place
        if box.outcome not in ("ignored", "found"):
            end = "missed" if box.score is None else f"{box.score:.2f}"
            canvas.label(box.box, f"{box.label} {end}", style)
    return canvas.svg(f"Image {image.image_id}"), problem


def summary(image: ImageRecord) -> str:
    """Say how the detector did on an image: "2 right, 0 wrong, 1 missed"."""
    outcomes = [box.outcome for box in image.boxes]
    return ", ".join(f"{outcomes.count(word)} {word}" for word in ("right", "wrong", "missed"))


def address(figure: Figure) -> str:
    """Return a figure as an address that needs no file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _averaged(rows: Sequence[Mapping[str, float]], name: str) -> npt.NDArray[np.float64]:
    """Return at most `_POINTS` means of as many values each; nan, a gap, where there are none.

    The gaps are between the stages, each of which has its own losses.
    """
    merged = math.ceil(len(rows) / _POINTS)
    values = np.array([row.get(name, np.nan) for row in rows], dtype=float)
    values = np.pad(values, (0, -len(values) % merged), constant_values=np.nan)
    means = np.ma.masked_invalid(values.reshape(-1, merged)).mean(axis=1)
    return np.asarray(means.filled(np.nan))

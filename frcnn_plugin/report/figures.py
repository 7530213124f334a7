"""The plots of the report, as SVG in data addresses."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ..evaluation.proposals.recall import RecallCurves
from ..evaluation.proposals.recall_report import draw_recall
from ..evaluation.record import ClassRecord
from .metrics import Metrics
from .steps import Step

_POINTS = 400  # per curve; more are averaged
_PANEL_POINTS = 150  # per precision-recall curve, whose panel is about as many pixels wide
_SHADES = ("#eef3fb", "#fdf4e7")
_STYLE = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888",
    "axes.titlesize": 10,
    "svg.fonttype": "none",  # the browser's letters: small, sharp, and it knows every script
    "svg.hashsalt": "frcnn_plugin",  # the same file for the same data
}
_NAMES = {
    "total_loss": "total",
    "loss_rpn_cls": "RPN, class",
    "loss_rpn_loc": "RPN, box",
    "loss_cls": "detector, class",
    "loss_box_reg": "detector, box",
}
MOST_PANELS = 30  # precision-recall curves


def draw_training(metrics: Metrics, steps: Sequence[Step]) -> tuple[str, int]:
    """Losses above the learning rate, over the iterations, steps shaded.

    Args:
        metrics: what was logged.
        steps: parts of the run; may be empty.

    Returns:
        the picture, and how many logged values make one point.
    """
    merged = max(1, math.ceil(len(metrics.training) / _POINTS))
    spans = list(steps) or [Step(0, "", 0, metrics.done)]
    with _svg(figsize=(10.5, 5.0)) as (figure, result):
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        for index, name in enumerate(metrics.losses()):
            label: str | None = plain(_NAMES.get(name, name))
            # A gap between the steps: each has losses of its own.
            for span in spans:
                points = _merge(metrics.series(name, span.first, span.end), merged)
                if points:
                    width = 2.0 if name == "total_loss" else 1.2
                    top.plot(*zip(*points, strict=True), color=_colour(index), lw=width,
                             label=label, **_dot(points))  # fmt: skip
                    label = None
        rates = []
        for span in spans:
            logged = metrics.series("lr", span.first, span.end)
            rates += [rate for _, rate in logged if rate > 0]
            # Where it changes, and the end: it is constant in between.
            logged = [
                p for i, p in enumerate(logged)
                if i in (0, len(logged) - 1) or p[1] != logged[i - 1][1]
            ]  # fmt: skip
            if logged:
                bottom.step(*zip(*logged, strict=True), where="post", color="#333", **_dot(logged))
        if rates and max(rates) > 5 * min(rates):
            bottom.set_yscale("log")
        elif rates:
            bottom.set(ylim=(0, 1.25 * max(rates)), yticks=[0, max(rates)])
        _shade((top, bottom), steps)
        highest = top.dataLim.y1 if metrics.losses() else 1.0
        top.set(ylabel="loss", ylim=(0, 1.35 * highest))  # room for the legend
        top.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none", ncols=2)
        bottom.set(ylabel="learning rate", xlabel="iteration", xlim=(0, spans[-1].end))
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        bottom.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        for axes in (top, bottom):
            axes.grid(axis="y", alpha=0.3)
    return result[0], merged


def without_repeats(curves: Mapping[str, RecallCurves]) -> dict[str, RecallCurves]:
    """Curves without numbers of proposals that the RPN does not give: they repeat the last one."""
    counts = sorted({count for item in curves.values() for count in item.recall})
    kept: list[int] = []
    for count in counts:
        if kept and all(c.recall.get(count) == c.recall.get(kept[-1]) for c in curves.values()):
            continue
        kept.append(count)
    return {
        label: RecallCurves(**{**vars(item), "recall": {
            count: row for count, row in item.recall.items() if count in kept
        }})
        for label, item in curves.items()
    }  # fmt: skip


def draw_recalls(curves: Mapping[str, RecallCurves]) -> str:
    """Recall over IoU for several numbers of proposals, a curve per step."""
    with _svg(draw=lambda: draw_recall(curves, title=False)) as (_, result):
        pass
    return result[0]


def draw_precision_recall(classes: Sequence[ClassRecord]) -> str:
    """Precision over recall at IoU 0.5, a panel per class with objects, as many as fit."""
    shown = [entry for entry in classes if entry.num_objects][:MOST_PANELS]
    columns = min(5, max(len(shown), 1))
    rows = max(1, math.ceil(len(shown) / columns))
    with _svg(figsize=(2.15 * columns, 0.35 + 1.85 * rows)) as (figure, result):
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in panels.flat[len(shown) :]:
            axes.set_axis_off()
        for axes, entry in zip(panels.flat, shown, strict=False):
            ap = next(iter(entry.ap50.values()), 0.0)
            chosen = _spread(len(entry.recall))
            recall = [entry.recall[i] for i in chosen]
            precision = [entry.precision[i] for i in chosen]
            if recall:
                axes.fill_between(recall, precision, color="#1f62be", alpha=0.12, lw=0)
                axes.plot(recall, precision, color="#1f62be", lw=1.5, **_dot(recall))
            axes.set_title(plain(f"{_short(entry.name)}  {ap:.1f}"))
            axes.set(xlim=(0, 1.02), ylim=(0, 1.05), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            # Short ones: those of two panels meet.
            axes.set(xticklabels=["0", ".5", "1"], yticklabels=["0", ".5", "1"])
            axes.grid(alpha=0.3)
        figure.supxlabel("recall", size=10)
        figure.supylabel("precision", size=10)
    return result[0]


def plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def data_address(content: bytes, mime: str) -> str:
    """The content as an address that needs no file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


@contextmanager
def _svg(draw: Any = None, **options: Any) -> Iterator[tuple[Figure, list[str]]]:
    """A figure to draw in; behind the block the list holds its address."""
    result: list[str] = []
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Letters that matplotlib's own font lacks; the browser draws them.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure = draw() if draw else Figure(**options, layout="constrained")
        FigureCanvasSVG(figure)
        yield figure, result
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    result.append(data_address(buffer.getvalue(), "image/svg+xml"))


def _shade(panels: Sequence[Any], steps: Sequence[Step]) -> None:
    if not any(step.number for step in steps):
        return
    for index, step in enumerate(steps):
        for axes in panels:
            axes.axvspan(step.first, step.end, color=_SHADES[index % 2], lw=0, zorder=0)
        middle = (step.first + step.end) / 2
        panels[0].text(
            middle, 1.01, f"step {step.name}", transform=panels[0].get_xaxis_transform(),
            ha="center", va="bottom", fontsize=9, color="#444",
        )  # fmt: skip


def _merge(points: list[tuple[int, float]], merged: int) -> list[tuple[float, float]]:
    """Means of `merged` points each; what is not finite is left out."""
    finite = [point for point in points if math.isfinite(point[1])]
    groups = [finite[i : i + merged] for i in range(0, len(finite), merged)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _spread(number: int) -> list[int]:
    """Indices of at most `_PANEL_POINTS` of so many points, first and last among them."""
    if number <= _PANEL_POINTS:
        return list(range(number))
    return [round(i * (number - 1) / (_PANEL_POINTS - 1)) for i in range(_PANEL_POINTS)]


def _dot(points: Sequence[Any]) -> dict[str, Any]:
    # A line of one point would not be seen.
    return {"marker": "o", "markersize": 4} if len(points) == 1 else {}


def _colour(index: int) -> str:
    return ("#222222", "#1f62be", "#d1690a", "#147d3c", "#a03cbd")[index % 5]


def _short(name: str) -> str:
    return name if len(name) <= 14 else name[:13] + "…"

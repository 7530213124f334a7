"""Charts of the measurements."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# Sections in the order they run; colours that stay apart in print and for the colour-blind.
_COLOURS = {
    "conv": "#4477aa",
    "proposal": "#ee6677",
    "region-wise": "#228833",
    "backward": "#ccbb44",
    "optimizer": "#aa3377",
    "other": "#bbbbbb",
}
_LINES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    temporary = path.with_name(f".{path.name}.partial")
    figure.savefig(temporary, format="png", dpi=120)
    os.replace(temporary, path)


def bar_chart(rows: Sequence[tuple[str, Mapping[str, float]]], title: str, path: Path) -> None:
    """One stacked bar per model, a colour per section.

    Args:
        rows: name, and median seconds by section.
        title: headline.
        path: PNG to write.
    """
    figure = Figure(figsize=(9, 1.6 + 0.55 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    longest = max(sum(sections.values()) for _, sections in rows)
    used = [name for name in _COLOURS if any(s.get(name, 0) for _, s in rows)]
    left = [0.0] * len(rows)
    for name in used:
        widths = [max(0.0, 1000 * s.get(name, 0.0)) for _, s in rows]
        axes.barh(range(len(rows)), widths, left=left, color=_COLOURS[name], label=name, height=0.7)
        for i, width in enumerate(widths):
            if width > 60 * longest:  # room for a number
                axes.text(
                    left[i] + width / 2, i, f"{width:.0f}", ha="center", va="center", color="white"
                )
            left[i] += width
    for i, total in enumerate(left):
        axes.text(total + 10 * longest, i, f"{total:.0f} ms", va="center", weight="bold")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1140 * longest)
    axes.set_xlabel("median of each section, ms")
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(used), frameon=False)
    save_figure(figure, path)


def line_chart(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    labels: tuple[str, str],
    path: Path,
    ticks: Sequence[Any] = (),
) -> None:
    """One line per model.

    Args:
        curves: name -> points.
        title: headline.
        labels: of the axes.
        path: PNG to write.
        ticks: words for the points of the horizontal axis, if not their numbers.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), colour in zip(curves.items(), _LINES * len(curves), strict=False):
        x, y = zip(*points, strict=True)
        axes.plot(x, y, marker="o", color=colour, label=name)
    positions = [x for x, _ in next(iter(curves.values()))]
    if min(positions) > 0 and max(positions) >= 16 * min(positions):
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xticks(positions, [str(t) for t in (ticks or [f"{x:g}" for x in positions])])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, loc="left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, path)

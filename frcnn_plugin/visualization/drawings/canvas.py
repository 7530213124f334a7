"""A figure that shows an image in its own pixel coordinates, with title, legend and boxes.

Whatever the size of the image, a panel is between 720 and 1200 pixels long (560 to 900 beside
another one): small images are enlarged so that text stays readable, large ones are reduced.
Matplotlib's objects are used directly: no pyplot, so no global state and no screen.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from ...atomic_files import replacing
from .comparison import ImageArray
from .labels import Place, overlap, place_label
from .lettering import DPI, SMALL, legend_shape, points, text_width, wrap
from .palette import Style

View = tuple[float, float, float, float]  # x1, y1, x2, y2 in image pixels

_ONE, _TWO = (720, 1200), (560, 900)  # shortest and longest long side of a panel, by panels
_LEAST_WIDTH = 700  # of the figure, so that the title has room
_LEFT, _RIGHT, _GAP, _BOTTOM = 46, 14, 46, 26
_TITLE, _NOTE = 19, 15  # font sizes, pixels
_LABEL, _LABEL_HEIGHT = 13, 19


@dataclass(frozen=True)
class Panel:
    """One view of the image.

    Attributes:
        title: said above it.
        view: part that is shown, which may reach beyond the image; None: the image.
        fade: 0 shows the image as it is, 1 white.
        grey: show it without colours, so that those drawn on it stand out.
    """

    title: str = ""
    view: View | None = None
    fade: float = 0.0
    grey: bool = False


class Canvas:
    """Panels side by side; coordinates given to its methods are those of the original image.

    Attributes:
        figure: matplotlib's.
        axes: one per panel, in image pixels.
    """

    def __init__(
        self,
        image_bgr: ImageArray,
        title: str,
        notes: Sequence[str] = (),
        legend: Sequence[tuple[str, Style]] = (),
        panels: Sequence[Panel] = (Panel(),),
    ) -> None:
        """Lay out the figure and show the image.

        Args:
            image_bgr: (H, W, 3) uint8 BGR.
            title: what the picture shows.
            notes: lines below the title.
            legend: text and look of each kind, below the panels.
            panels: at least one.
        """
        height, width = image_bgr.shape[:2]
        limits = _ONE if len(panels) == 1 else _TWO
        views = [panel.view or (0.0, 0.0, float(width), float(height)) for panel in panels]
        self._scales = [_scale(view, limits) for view in views]
        sizes = [
            (max(1, round((v[2] - v[0]) * s)), max(1, round((v[3] - v[1]) * s)))
            for v, s in zip(views, self._scales, strict=True)
        ]
        slots = [  # a narrow panel still needs room for its title
            max(w, round(text_width(panel.title, _NOTE)))
            for panel, (w, _) in zip(panels, sizes, strict=True)
        ]
        content = sum(slots) + _GAP * (len(slots) - 1)
        total_width = max(content + _LEFT + _RIGHT, _LEAST_WIDTH)
        lines = wrap(title, total_width, _TITLE, "bold")
        note_lines = [line for note in notes for line in wrap(note, total_width, _NOTE)]
        heading = any(panel.title for panel in panels)
        top = 14 + len(lines) * (_TITLE + 8) + len(note_lines) * (_NOTE + 6) + 24 * heading
        rows, columns = legend_shape([text for text, _ in legend], total_width)
        body = max(h for _, h in sizes)
        total_height = top + body + _BOTTOM + 8 + 24 * rows + (8 if rows else 0)

        self.figure = Figure(
            figsize=(total_width / DPI, total_height / DPI), dpi=DPI, facecolor="white"
        )
        FigureCanvasAgg(self.figure)
        self._heading(lines, note_lines, total_width, total_height)
        self.axes: list[Axes] = []
        self._views, self._sizes = views, sizes
        self._taken: list[list[Place]] = [[] for _ in panels]
        x = _LEFT + (total_width - content - _LEFT - _RIGHT) / 2
        shown = zip(panels, views, sizes, slots, self._scales, strict=True)
        for panel, view, (w, h), slot, scale in shown:
            y = total_height - top - h
            rectangle = (x / total_width, y / total_height, w / total_width, h / total_height)
            self.axes.append(self._show(image_bgr, panel, view, rectangle, scale))
            x += slot + _GAP
        if legend:
            handles = [_handle(text, style) for text, style in legend]
            self.figure.legend(
                handles=handles, loc="lower center", ncols=columns, fontsize=points(SMALL),
                frameon=False, handlelength=2.6, columnspacing=1.6, borderaxespad=0.3,
            )  # fmt: skip

    def _heading(self, lines: list[str], notes: list[str], width: int, height: int) -> None:
        y = 10.0
        for text, size, weight in [
            *((line, _TITLE, "bold") for line in lines),
            *((line, _NOTE, "normal") for line in notes),
        ]:
            self.figure.text(
                14 / width, 1 - y / height, text, va="top", fontsize=points(size), weight=weight,
                parse_math=False,
            )  # fmt: skip
            y += size + (8 if size == _TITLE else 6)

    def _show(
        self, image: ImageArray, panel: Panel, view: View, rectangle: View, scale: float
    ) -> Axes:
        height, width = image.shape[:2]
        axes = self.figure.add_axes(rectangle)
        shown = image
        if scale < 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            shown = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        rgb = shown[:, :, ::-1] / 255.0
        if panel.grey:
            rgb = rgb.mean(axis=2, keepdims=True).repeat(3, axis=2)
        axes.imshow(
            rgb + (1 - rgb) * panel.fade, extent=(0, width, height, 0), aspect="auto",
            interpolation="bilinear" if scale > 1 else "antialiased",
        )  # fmt: skip
        axes.set(xlim=(view[0], view[2]), ylim=(view[3], view[1]))
        axes.set_facecolor("#EDEDED")  # beyond the image
        axes.tick_params(labelsize=points(11), length=3)
        if panel.title:
            axes.set_title(panel.title, fontsize=points(_NOTE), loc="left", pad=5)
        return axes

    def box(self, box: npt.ArrayLike, style: Style, panel: int = 0, *, alpha: float = 1.0) -> None:
        """Draw a box, (4,) continuous XYXY in image pixels; a rim keeps it visible on its colour.

        Args:
            box: the box.
            style: its look.
            panel: where.
            alpha: opacity; the rim is left out below 1.
        """
        x1, y1, x2, y2 = (float(value) for value in np.asarray(box))
        rim = withStroke(linewidth=points(style.width + 2), foreground=_ink(style.colour))
        self.axes[panel].add_patch(
            Rectangle(
                (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=style.colour, alpha=alpha,
                linewidth=points(style.width), linestyle=style.dash,
                path_effects=[rim] if alpha == 1 and style.width >= 2 else None,
            )
        )  # fmt: skip

    def label(
        self, box: npt.ArrayLike, text: str, style: Style, panel: int = 0, *, optional: bool = False
    ) -> None:
        """Write a label near a box, where no other label is.

        Args:
            box: (4,) XYXY in image pixels.
            text: one line.
            style: gives the background.
            panel: where.
            optional: leave it out rather than cover another label.
        """
        axes, view, scale = self.axes[panel], self._views[panel], self._scales[panel]
        size = self._sizes[panel]
        artist = axes.text(
            0, 0, text, color=_ink(style.colour), fontsize=points(_LABEL), va="center_baseline",
            ha="left", backgroundcolor=style.colour, parse_math=False, clip_on=True,
        )  # fmt: skip
        artist.set_bbox({"facecolor": style.colour, "edgecolor": "none", "pad": 1.6})
        width = int(text_width(text, _LABEL)) + 8
        corner = np.array([view[0], view[1], view[0], view[1]])
        inside = (np.asarray(box, dtype=float) - corner) * scale
        place = place_label(size, np.round(inside), (width, _LABEL_HEIGHT), self._taken[panel])
        if optional and any(overlap(place, other) for other in self._taken[panel]):
            artist.remove()
            return
        self._taken[panel].append(place)
        artist.set_position(
            (view[0] + (place[0] + 4) / scale, view[1] + (place[1] + place[3]) / 2 / scale)
        )

    def pixels(self, length: float, panel: int = 0) -> float:
        """Image pixels that are ``length`` pixels of the picture."""
        return length / self._scales[panel]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a PNG, whole or not at all; returns its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            self.figure.savefig(temporary, format="png", dpi=DPI)
        return path


def _scale(view: View, limits: tuple[int, int]) -> float:
    """Pixels of the picture per image pixel."""
    side = max(view[2] - view[0], view[3] - view[1], 1.0)
    return min(max(side, limits[0]), limits[1]) / side


def _ink(colour: str) -> str:
    """Black or white, whichever is read more easily on ``colour``."""
    red, green, blue = to_rgb(colour)
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"


def _handle(text: str, style: Style) -> Patch | Line2D:
    if style.filled:
        return Patch(facecolor=style.colour, edgecolor="#444444", linewidth=0.5, label=text)
    rim = withStroke(linewidth=points(style.width + 2), foreground=_ink(style.colour))
    return Line2D(
        [], [], color=style.colour, linewidth=points(style.width), linestyle=style.dash,
        label=text, path_effects=[rim] if style.width >= 2 else None,
    )  # fmt: skip

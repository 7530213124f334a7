"""A figure that shows an image in its own pixel coordinates, with title, legend and boxes.

Whatever the size of the image, a panel is between 720 and 1200 pixels long (560 to 900 beside
another one): small images are enlarged so that text stays readable, and large ones are reduced.
Matplotlib's objects are used directly: without pyplot there is no global state and no screen.

`bare_canvas` is the image without a frame.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nextafter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from ...atomic_files import replacing
from .layout import (
    DPI,
    LABEL,
    LEGEND,
    NOTE,
    TICKS,
    TITLE,
    Place,
    legend_shape,
    overlap,
    place_label,
    points,
    text_width,
    wrap,
)
from .palette import ImageArray, Style

View = tuple[float, float, float, float]  # x1, y1, x2, y2 in image pixels
Legend = list[tuple[str, Style]]  # text and look of each kind

# Shortest and longest long side of a panel, pixels of the picture.
_ONE, _TWO = (720.0, 1200.0), (560.0, 900.0)
_LEAST_WIDTH = 700  # of a framed figure, so that the title has room
_GAP = 46  # between panels
RIM = 1.8  # width of a box's rim, relative to the line on it


@dataclass(frozen=True)
class Panel:
    """One view of the image.

    Attributes:
        title: what is written above it.
        view: the part that is shown, which may reach beyond the image; None: the image.
        fade: 0 shows the image as it is, 1 shows white.
        grey: whether the image loses its colours, so that those drawn on it stand out.
    """

    title: str = ""
    view: View | None = None
    fade: float = 0.0
    grey: bool = False


class Canvas:
    """Panels side by side; its methods take coordinates of the original image.

    Attributes:
        figure: Matplotlib's.
        axes: one per panel, in image pixels, also for what only one picture needs.
    """

    def __init__(
        self,
        image_bgr: ImageArray,
        title: str = "",
        notes: Sequence[str] = (),
        legend: Sequence[tuple[str, Style]] = (),
        panels: Sequence[Panel] = (Panel(),),
        *,
        ticks: bool = True,
        sides: tuple[float, float] | None = None,
    ) -> None:
        """Lay out the figure and show the image.

        Args:
            image_bgr: (H, W, 3) uint8 BGR.
            title: what the picture shows.
            notes: lines below the title.
            legend: text and look of each kind, below the panels.
            panels: at least one.
            ticks: whether the pixels are numbered along the panels.
            sides: shortest and longest long side of a panel, pixels of the picture; None: as the
                module says.
        """
        height, width = image_bgr.shape[:2]
        self._set_views(
            [panel.view or (0.0, 0.0, float(width), float(height)) for panel in panels],
            sides or (_ONE if len(panels) == 1 else _TWO),
            LABEL,
        )
        left, right, bottom = (46, 14, 34) if ticks else (14, 14, 14)
        slots = [  # a narrow panel still needs room for its title
            max(size[0], round(text_width(panel.title, NOTE)))
            for panel, size in zip(panels, self._sizes, strict=True)
        ]
        content = sum(slots) + _GAP * (len(slots) - 1)
        total_width = max(content + left + right, _LEAST_WIDTH)
        heading = [  # text, size, height of each line
            (line, size, size + gap)
            for text, size, gap in [(title, TITLE, 8), *((note, NOTE, 6) for note in notes)]
            for line in wrap(text, total_width, size)
        ]
        top = 14 + sum(line_height for *_, line_height in heading)
        top += 24 if any(panel.title for panel in panels) else 0
        rows, columns = legend_shape([text for text, _ in legend], total_width)
        bottom += 24 * rows + 8 if rows else 0
        total_height = top + max(h for _, h in self._sizes) + bottom

        self._make_figure(total_width, total_height, "white")
        y = 10
        for text, size, line_height in heading:
            self.figure.text(
                14 / total_width, 1 - y / total_height, text, va="top", fontsize=points(size),
                weight="bold" if size == TITLE else "normal", parse_math=False,
            )  # fmt: skip
            y += line_height
        x = left + (total_width - content - left - right) / 2
        for number, (w, h) in enumerate(self._sizes):
            y = total_height - top - h
            place = (x / total_width, y / total_height, w / total_width, h / total_height)
            self._show(image_bgr, panels[number], number, place, ticks=ticks)
            x += slots[number] + _GAP
        if legend:
            self.figure.legend(
                handles=[_handle(text, style) for text, style in legend], loc="lower center",
                ncols=columns, fontsize=points(LEGEND), frameon=False, handlelength=2.6,
                columnspacing=1.6, borderaxespad=0.3,
            )  # fmt: skip

    def _set_views(self, views: list[View], sides: tuple[float, float], letter: float) -> None:
        """Choose the size of each panel in the picture: its long side is between `sides`."""
        longest = [max(x2 - x1, y2 - y1, 1.0) for x1, y1, x2, y2 in views]
        self._views, self._letter = views, letter
        self._scales = [min(max(side, sides[0]), sides[1]) / side for side in longest]
        self._sizes = [
            (max(1, round((x2 - x1) * scale)), max(1, round((y2 - y1) * scale)))
            for (x1, y1, x2, y2), scale in zip(views, self._scales, strict=True)
        ]
        self._taken: list[list[Place]] = [[] for _ in views]

    def _make_figure(self, width: int, height: int, colour: str) -> None:
        # Matplotlib cuts off fractions of a pixel: 29 / 100 * 100 would be 28 pixels.
        inches = (nextafter(width / DPI, inf), nextafter(height / DPI, inf))
        self.figure = Figure(figsize=inches, dpi=DPI, facecolor=colour)
        self._agg = FigureCanvasAgg(self.figure)
        self.axes: list[Axes] = []

    def _show(
        self, image: ImageArray, panel: Panel, number: int, place: View, *, ticks: bool
    ) -> None:
        """Show the image in new axes, at a place in fractions of the figure."""
        (height, width), scale, view = image.shape[:2], self._scales[number], self._views[number]
        shown = image
        if scale < 1:
            shown = resize(image, (round(width * scale), round(height * scale)))
        if panel.grey:
            shown = shown.mean(axis=2, keepdims=True).astype(np.uint8).repeat(3, axis=2)
        if panel.fade:
            shown = (shown + (255.0 - shown) * panel.fade).astype(np.uint8)
        axes = self.figure.add_axes(place)
        self.axes.append(axes)
        axes.imshow(
            shown[:, :, ::-1], extent=(0, width, height, 0), aspect="auto",
            interpolation="bilinear" if scale > 1 else "antialiased",
        )  # fmt: skip
        axes.set(xlim=(view[0], view[2]), ylim=(view[3], view[1]), facecolor="#EDEDED")
        if ticks:
            axes.tick_params(labelsize=points(TICKS), length=3)
        else:
            axes.set(xticks=[], yticks=[])
        if panel.title:
            axes.set_title(panel.title, fontsize=points(NOTE), loc="left", pad=5)

    def box(self, box: npt.ArrayLike, style: Style, panel: int = 0, *, alpha: float = 1.0) -> None:
        """Draw a box, (4,) continuous XYXY; a rim keeps it visible on its own colour.

        An opacity `alpha` below 1 leaves the rim out.
        """
        self._rectangle(
            box, panel, fill=False, edgecolor=style.colour, alpha=alpha,
            linewidth=points(style.width), linestyle=style.dash, joinstyle="miter",
            path_effects=_rim(style) if alpha == 1 else None,
        )  # fmt: skip

    def label(
        self, box: npt.ArrayLike, text: str, style: Style, panel: int = 0, *, optional: bool = False
    ) -> Place | None:
        """Write a label near a box, where no other label is.

        What is labelled first gets the best place, and lies on top where there is no room; an
        `optional` label is left out rather than cover another one. Return the place in pixels of
        the panel; None where the label was left out.
        """
        taken = self._taken[panel]
        size = (int(text_width(text, self._letter) + 0.62 * self._letter), 1.46 * self._letter)
        near = self._to_picture(np.asarray(box, dtype=float), panel)
        place = place_label(self._sizes[panel], np.round(near), size, taken)
        if optional and any(overlap(place, other) for other in taken):
            return None
        x1, y1, x2, y2 = shown = self._to_image(place, panel)
        order = 10 - len(taken) / 1000
        taken.append(place)
        self._rectangle(shown, panel, facecolor=style.colour, lw=0, zorder=order)
        self.axes[panel].text(
            (x1 + x2) / 2, (y1 + y2) / 2, text, color=style.ink, fontsize=points(self._letter),
            va="center_baseline", ha="center", parse_math=False, clip_on=True, zorder=order,
        )  # fmt: skip
        return place

    def boxes(
        self,
        boxes: npt.ArrayLike,
        styles: Sequence[Style],
        texts: Sequence[str] = (),
        panel: int = 0,
        *,
        optional: bool = False,
    ) -> None:
        """Draw boxes, (N, 4), and labels if there are any, the first one on top.

        See :meth:`box` and :meth:`label`.
        """
        pairs = list(zip(np.asarray(boxes, dtype=float).reshape(-1, 4), styles, strict=True))
        for box, style in reversed(pairs):
            self.box(box, style, panel)
        for (box, style), text in zip(pairs if texts else (), texts, strict=True):
            self.label(box, text, style, panel, optional=optional)

    def fill(
        self, box: npt.ArrayLike, colour: str, alpha: float, panel: int = 0, text: str = ""
    ) -> None:
        """Fill a box, (4,) XYXY in image pixels; one with a text is a bar with that inside it."""
        edge = {"edgecolor": "white", "linewidth": 0.8, "zorder": 3} if text else {"linewidth": 0}
        self._rectangle(box, panel, facecolor=colour, alpha=alpha, **edge)
        x1, y1, x2, y2 = np.asarray(box, dtype=float)
        if text:
            self.axes[panel].text(
                (x1 + x2) / 2, (y1 + y2) / 2, text, ha="center", va="center", fontsize=8,
                zorder=4, color=Style(colour).ink,
            )  # fmt: skip

    def grid(
        self, cells: tuple[int, int], stride: tuple[float, float], panel: int, width: float
    ) -> None:
        """Draw the lines between rows and columns of cells.

        The `stride` is the width and height of a cell in image pixels, `width` that of a line in
        points.
        """
        x, y = (np.arange(n + 1) * side for n, side in zip(cells[::-1], stride, strict=True))
        lines = [[(at, 0.0), (at, y[-1])] for at in x] + [[(0.0, at), (x[-1], at)] for at in y]
        # Light beside dark, so that lines are seen on any image.
        for colour, factor, alpha in (("#FFFFFF", 2.5, 0.3), ("#222222", 1.0, 0.55)):
            self.axes[panel].add_collection(
                LineCollection(lines, colors=colour, linewidths=width * factor, alpha=alpha)
            )

    def overlay(
        self,
        values: npt.NDArray[np.floating],
        cells: tuple[int, ...],
        stride: tuple[float, float],
        panel: int,
        **look: Any,
    ) -> None:
        """Lay an array of values or colours over the rows and columns of :meth:`grid`."""
        axes, (rows, columns) = self.axes[panel], cells
        limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
        extent = (0, columns * stride[0], rows * stride[1], 0)
        axes.imshow(values, extent=extent, aspect="auto", interpolation="nearest", **look)
        axes.set(**limits)

    def pixels(self) -> ImageArray:
        """Return the picture, (H, W, 3) uint8 BGR."""
        return np.ascontiguousarray(self._drawn()[:, :, 2::-1])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture with :func:`save_picture`; return the path."""
        return save_picture(path, self.pixels())

    def _drawn(self) -> ImageArray:
        """Return the figure, (H, W, 4) RGBA."""
        self._agg.draw()
        return np.asarray(self._agg.buffer_rgba())

    def _rectangle(self, box: npt.ArrayLike, panel: int, **look: Any) -> None:
        x1, y1, x2, y2 = (float(value) for value in np.asarray(box))
        self.axes[panel].add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **look))

    def _to_picture(self, box: npt.NDArray[np.float64], panel: int) -> npt.NDArray[np.float64]:
        """Convert XYXY from image pixels to pixels of the panel."""
        return (box - np.tile(self._views[panel][:2], 2)) * self._scales[panel]

    def _to_image(self, place: Place, panel: int) -> npt.NDArray[np.float64]:
        return np.array(place) / self._scales[panel] + np.tile(self._views[panel][:2], 2)


def view_around(image: ImageArray, boxes: npt.ArrayLike, margin: float = 0.0) -> View:
    """Return a view of the image and of boxes, (N, 4), that may reach beyond it."""
    height, width = image.shape[:2]
    everything = np.vstack([boxes, [[0, 0, width, height]]])
    x1, y1 = (everything[:, :2].min(axis=0) - margin).tolist()
    x2, y2 = (everything[:, 2:].max(axis=0) + margin).tolist()
    return x1, y1, x2, y2


def save_picture(path: str | os.PathLike[str], picture_bgr: ImageArray) -> Path:
    """Write an (H, W, 3) uint8 picture to a ``.png`` or ``.jpg``, and return the path.

    Its folder is made if need be. The file appears, or replaces another, only when it is complete.
    """
    path = Path(path)
    content = encode(picture_bgr, path.suffix, 92)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def encode(picture_bgr: ImageArray, suffix: str, quality: int) -> bytes:
    """Return the content of a .png or .jpg file; the quality is that of the JPEG."""
    options = [] if suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, quality]
    done, content = cv2.imencode(suffix, np.ascontiguousarray(picture_bgr), options)
    assert done, suffix
    return content.tobytes()


def resize(image: ImageArray, size: tuple[int, int]) -> ImageArray:
    """Return the image at another width and height, without aliasing."""
    size = (max(1, size[0]), max(1, size[1]))
    method = cv2.INTER_AREA if size[0] < image.shape[1] else cv2.INTER_LINEAR
    pixels = np.ascontiguousarray(image)  # OpenCV takes no flipped views
    resized: ImageArray = cv2.resize(pixels, size, interpolation=method)
    return resized


def _rim(style: Style) -> list[withStroke] | None:
    if style.width < 2:  # a thin line has none
        return None
    return [withStroke(linewidth=points(style.width * RIM), foreground=style.ink)]


def _handle(text: str, style: Style) -> Patch | Line2D:
    if style.filled:
        return Patch(facecolor=style.colour, edgecolor="#444444", linewidth=0.5, label=text)
    return Line2D(
        [], [], color=style.colour, linewidth=points(style.width), linestyle=style.dash,
        label=text, path_effects=_rim(style),
    )  # fmt: skip

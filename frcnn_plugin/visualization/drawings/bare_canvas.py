"""An image with boxes and labels and nothing else: pixels of its own size, or SVG for a page."""

from __future__ import annotations

import base64
from html import escape
from math import ceil

import numpy as np
import numpy.typing as npt

from .canvas import RIM, Canvas, encode, resize
from .layout import LABEL, Place
from .palette import ImageArray, Style

_SIDES = (480.0, float("inf"))  # shortest and longest long side, pixels of the picture
_DASHES = {"--": (3.7, 1.6), ":": (1.0, 1.65)}  # Matplotlib's, in line widths


class BareCanvas(Canvas):
    """The image alone, at its own size: no title, no ticks, no margin.

    Drawing goes onto a transparent figure, which is then laid over the image: where nothing is
    drawn its pixels stay to the bit, and Matplotlib never resamples the image, which takes it
    seconds for a photo of twelve megapixels.
    """

    def __init__(
        self, image_bgr: ImageArray, *, sides: tuple[float, float] = _SIDES, letter: float = LABEL
    ) -> None:
        """Take an image.

        Args:
            image_bgr: (H, W, 3) uint8 BGR.
            sides: shortest and longest long side of the picture, pixels. By default smaller
                images are enlarged, as labels would not fit, and large ones keep their size.
            letter: size of the labels' font, pixels of the picture.
        """
        height, width = image_bgr.shape[:2]
        self._set_views([(0.0, 0.0, float(width), float(height))], sides, letter)
        (size,) = self._sizes
        self._image = image_bgr if size == (width, height) else resize(image_bgr, size)
        self._make_figure(*size, "none")
        axes = self.figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.append(axes)
        self._svg_boxes: list[str] = []
        self._svg_labels: list[str] = []

    def box(
        self,
        box: npt.ArrayLike,
        style: Style,
        panel: int = 0,
        *,
        alpha: float = 1.0,
        hint: str = "",
    ) -> None:
        """Draw a box as a `Canvas` does, but inside the picture where it reaches the border.

        The SVG shows the `hint` while the pointer rests on the box.
        """
        (width, height), rim = self._sizes[0], ceil(style.width * RIM / 2)  # lines snap to pixels
        corners = self._to_picture(np.asarray(box, dtype=float), 0)
        most = np.array([width - rim, height - rim] * 2)
        x1, y1, x2, y2 = (float(v) for v in np.clip(corners, np.minimum(rim, most), most))
        place = (x1, y1, x2, y2)
        super().box(self._to_image(place, 0), style, alpha=alpha)
        dash = " ".join(f"{part * style.width:.1f}" for part in _DASHES.get(style.dash, ()))
        self._svg_boxes.append(
            f'<g fill="none" opacity="{alpha:g}" pointer-events="all"><title>{escape(hint)}</title>'
            f'{_rect(place)} stroke="{style.ink}" stroke-width="{style.width * RIM:.1f}"/>'
            f'{_rect(place)} stroke="{style.colour}" stroke-width="{style.width:.1f}"'
            + (f' stroke-dasharray="{dash}"/></g>' if dash else "/></g>")
        )

    def label(
        self, box: npt.ArrayLike, text: str, style: Style, panel: int = 0, *, optional: bool = False
    ) -> Place | None:
        """Write a label as a `Canvas` does."""
        place = super().label(box, text, style, optional=optional)
        if place is not None:
            x1, y1, x2, y2 = place
            x, y = (x1 + x2) / 2, (y1 + y2) / 2 + 0.35 * self._letter
            # The room was measured in Matplotlib's font, which the reader may not have.
            self._svg_labels.append(
                f'{_rect(place)} fill="{style.colour}"/>'
                f'<text x="{x:.1f}" y="{y:.1f}" fill="{style.ink}" '
                f'textLength="{x2 - x1 - 0.6 * self._letter:.1f}" '
                f'lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
            )
        return place

    def pixels(self) -> ImageArray:
        """Return the picture, (H, W, 3) uint8 BGR."""
        drawn, picture = self._drawn(), self._image.copy()
        rows, columns = np.nonzero(drawn[:, :, 3])
        rgba = drawn[rows, columns].astype(np.float32)
        opacity = rgba[:, 3:] / 255
        below = picture[rows, columns]
        picture[rows, columns] = below + (rgba[:, 2::-1] - below) * opacity + 0.5
        return picture

    def svg(self, description: str = "") -> str:
        """Return the picture as one ``<svg>`` element, the image inside it as a JPEG.

        Boxes and labels stay sharp at any size, and text remains text. The element is as wide as
        its place on the page, and needs no file beside it. The `description` is for those who
        cannot see it.
        """
        width, height = self._sizes[0]
        address = base64.b64encode(encode(self._image, ".jpg", 82)).decode()
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
                f' role="img" aria-label="{escape(description)}" font-family="sans-serif"'
                f' font-size="{self._letter:g}" text-anchor="middle">',
                f'<image width="{width}" height="{height}"'
                f' href="data:image/jpeg;base64,{address}"/>',
                *self._svg_boxes,
                *reversed(self._svg_labels),  # the first one on top
                "</svg>",
            ]
        )


def _rect(place: Place) -> str:
    """Return the beginning of an SVG rectangle."""
    x1, y1, x2, y2 = place
    return f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"'

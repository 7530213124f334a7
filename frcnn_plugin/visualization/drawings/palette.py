"""What the colours mean, which is the same in every picture, and what an image is.

Yellow is the truth, blue is right, vermilion is wrong or background, purple takes no part, and grey
does not count. The colours are Okabe and Ito's, which people with any kind of colour vision can
tell apart; where two kinds of line may meet, dashes tell them apart as well.

Where nothing is judged, boxes are coloured by class instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ImageArray = npt.NDArray[np.uint8]  # (H, W, 3), BGR

YELLOW, BLUE, SKY, VERMILION = "#F0E442", "#0072B2", "#56B4E9", "#D55E00"
GREEN, PURPLE, GREY, ORANGE = "#009E73", "#CC79A7", "#B4B4B4", "#E69F00"

# One colour per class, in turn: dark enough for white letters.
CLASS_COLOURS = (
    "#D62728", "#1F62BE", "#147D3C", "#943CBD", "#BE5A00", "#007882", "#C81E82", "#5F5528",
    "#5A3C32", "#3C3C3C", "#78143C", "#003C6E", "#4B7800", "#5A1482", "#966E00", "#005A46",
    "#E63C5A", "#3C46AA", "#823C14", "#1E1E1E",
)  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How a box, or a cell, of one kind looks.

    Attributes:
        colour: "#RRGGBB".
        width: of the line, pixels of the picture.
        dash: Matplotlib's line style: "-", "--" or ":".
        filled: whether the legend shows a filled square, for cells of a map, instead of a line.
    """

    colour: str
    width: float = 2.0
    dash: str = "-"
    filled: bool = False

    @property
    def ink(self) -> str:
        """Black or white, whichever is easier to read on the colour."""
        red, green, blue = bytes.fromhex(self.colour[1:])
        return "#000000" if 0.3 * red + 0.59 * green + 0.11 * blue > 127.5 else "#FFFFFF"


OBJECT = Style(YELLOW, 2.5)
FOUND = Style(YELLOW, 1.2)
DIFFICULT = Style(GREY, 2.5, "--")
RIGHT = Style(BLUE, 2.5)
WRONG = Style(VERMILION, 2.5)
UNCOUNTED = Style(GREY, 2.5)  # a detection of a difficult object
MISSED = Style(YELLOW, 4.0, ":")


def class_style(index: int, width: float = 2.5) -> Style:
    """Return the look of boxes of a class."""
    return Style(CLASS_COLOURS[index % len(CLASS_COLOURS)], width)


def paint_masks(
    image_bgr: ImageArray, masks: npt.NDArray[np.bool_], classes: Sequence[int]
) -> ImageArray:
    """Tint the pixels of masks in the colours of their classes; the first one on top.

    Args:
        image_bgr: (H, W, 3) uint8 BGR; stays as it is.
        masks: (n, H, W).
        classes: (n,) class indices.

    Returns:
        A picture of the same size.
    """
    painted = image_bgr.copy()
    for mask, index in reversed(list(zip(masks, classes, strict=True))):
        rgb = np.frombuffer(bytes.fromhex(class_style(index).colour[1:]), np.uint8)
        painted[mask] = image_bgr[mask] * 0.5 + rgb[::-1] * 0.5
    return painted

"""What an iteration learns from: sampled anchors of the RPN, sampled RoIs of the head."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .canvas import Canvas, Panel, view_around
from .objects import Objects
from .palette import BLUE, RIGHT, VERMILION, ImageArray, Style

_BACKGROUND = Style(VERMILION, 1.0)
_MANY, _THIN = 12, Style(BLUE, 1.8)  # more boxes than this get thinner lines


@dataclass(frozen=True)
class Sample:
    """A mini-batch of one image.

    Attributes:
        what: "RPN, anchors" or "head, RoIs".
        positive: (P, 4) continuous XYXY, pixels of the original image.
        negative: (N, 4) likewise.
        words: what positive and negative are called.
    """

    what: str
    positive: npt.NDArray[np.float64]
    negative: npt.NDArray[np.float64]
    words: tuple[str, str] = ("positive", "negative")

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
    """Draw mini-batches side by side.

    Args:
        image_bgr: (H, W, 3) uint8 BGR.
        samples: one or two.
        objects: of the image.
        name: what the title calls the image.
        notes: lines below the title.

    Returns:
        the picture.
    """
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
        many = len(sample.positive) > _MANY
        for box in sample.positive:
            canvas.box(box, _THIN if many else RIGHT, panel)
        for boxes, style, diameter in (
            (sample.negative, _BACKGROUND, 5),
            (sample.positive, RIGHT, 7),
        ):
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            canvas.dots(centres, style, diameter, panel)
        objects.draw(canvas, panel)
    return canvas

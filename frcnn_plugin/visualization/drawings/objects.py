"""The objects of an image, and the picture of a data set's entry."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .canvas import Canvas, Legend
from .palette import DIFFICULT, OBJECT, ImageArray


@dataclass(frozen=True)
class Objects:
    """Ground truth of one image.

    Attributes:
        boxes: (G, 4) float64, continuous XYXY, pixels of the original image.
        names: (G,) class names.
        ignored: (G,) difficult or crowd objects.
    """

    boxes: npt.NDArray[np.float64]
    names: Sequence[str]
    ignored: npt.NDArray[np.bool_]

    def legend(self) -> Legend:
        """Return entries for the kinds of objects that occur."""
        entries = [("object", OBJECT)] if (~self.ignored).any() else []
        return entries + ([("difficult or crowd", DIFFICULT)] if self.ignored.any() else [])

    def draw(self, canvas: Canvas, panel: int = 0, texts: Sequence[str] | None = None) -> None:
        """Draw all, ignored ones in dashed grey; by default labelled "1 dog", "2 cat", ..."""
        if texts is None:
            texts = [f"{number} {name}" for number, name in enumerate(self.names, start=1)]
        styles = [DIFFICULT if ignored else OBJECT for ignored in self.ignored]
        canvas.boxes(self.boxes, styles, texts, panel)


NO_OBJECTS = Objects(np.zeros((0, 4)), [], np.zeros(0, dtype=bool))


def count_of(number: int, noun: str) -> str:
    """Say "1 object", "2 objects"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def draw_data(image_bgr: ImageArray, objects: Objects, name: str) -> Canvas:
    """Draw the objects of an image, as its data set has them."""
    height, width = image_bgr.shape[:2]
    counted, ignored = int((~objects.ignored).sum()), int(objects.ignored.sum())
    title = f"data: {name}, {count_of(counted, 'object')}, {ignored} difficult or crowd"
    notes = [f"{width} x {height} pixels"]
    notes += ["labels: number, class, width x height in pixels"] if objects.names else []
    canvas = Canvas(image_bgr, title, notes, objects.legend())
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    rows = zip(objects.names, sides, objects.ignored, strict=True)
    texts = [
        f"{number} {name} {w:.0f} x {h:.0f}" + (", difficult" if ignored else "")
        for number, (name, (w, h), ignored) in enumerate(rows, start=1)
    ]
    objects.draw(canvas, texts=texts)
    return canvas

"""Sizes of network inputs that remember the image they come from."""

from __future__ import annotations

from collections.abc import Collection


class ScaledImageSize(tuple):
    """Network-input size ``(height, width)`` that also carries the original image's size.

    It is a plain tuple wherever Detectron2 looks; the originals need the scale because their
    minimum proposal size and their final box decoding are in original-image pixels.
    """

    scale: float
    original: tuple[float, float]

    def __new__(
        cls, size: tuple[int, int], scale: float, original: tuple[float, float] | None = None
    ) -> ScaledImageSize:
        """Attach ``scale``, network pixels per original pixel, and the image's (height, width)."""
        self = super().__new__(cls, size)
        self.scale = scale
        self.original = original or (size[0] / scale, size[1] / scale)
        return self

    def __getnewargs__(self) -> tuple[tuple[int, ...], float, tuple[float, float]]:
        """Return the arguments for copying and pickling."""
        return tuple(self), self.scale, self.original


def image_scale(image_size: tuple[int, int]) -> float:
    """Return network pixels per original-image pixel; 1.0 for a size that does not know it."""
    return getattr(image_size, "scale", 1.0)


def resize_scale(
    size: tuple[int, int], original: tuple[int, int], short_sides: Collection[int]
) -> float:
    """Find the factor an image was resized by, before its sides were rounded to whole pixels.

    The originals divide boxes by this factor, not by the ratio of the sides, which can be 0.1% off:
    333x500 becomes 600x901 by the factor 600/333 = 1.8018, not 901/500 = 1.802, a difference of
    0.05 px at the right border. One side is exact: the shorter one if it was resized to the length
    asked for, the longer one if it was limited.

    Args:
        size: (height, width) of the network input.
        original: (height, width) of the image.
        short_sides: lengths that the shorter side is resized to (``INPUT.MIN_SIZE_*``).

    Returns:
        network pixels per original pixel.
    """
    scale = min(size) / min(original)
    # The shorter side may have that length by rounding only; then the longer one does not fit.
    if min(size) in short_sides and abs(scale * max(original) - max(size)) <= 0.5:
        return scale
    return max(size) / max(original)

"""An image as it is and as the network sees it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data.detection_utils import SizeMismatchError

from ..data.loading.image_reader import read_bgr
from ..errors import UserError
from .drawings.comparison import ImageArray

FloatArray = npt.NDArray[np.float64]


class InspectedImage:
    """The pixels of a file, what a mapper makes of them, and the way back.

    Attributes:
        bgr: (H, W, 3) uint8.
        item: what the mapper made of it.
        size: (height, width) of the network input.
        name: its id.
    """

    def __init__(self, record: dict[str, Any], mapper: Any) -> None:
        """Read it.

        Raises:
            UserError: the file is missing, no image, or of another size than the data set says.
        """
        path = record["file_name"]
        self.bgr: ImageArray = read_bgr(path)
        try:
            self.item: dict[str, Any] = mapper(record)
        except SizeMismatchError as e:
            raise UserError(f"{' '.join(str(e).split())}. Correct its annotation") from e
        height, width = self.item["image"].shape[-2:]
        self.size: tuple[int, int] = (int(height), int(width))
        self.name = str(record["image_id"])
        self.record = record
        self.scale = np.array([self.bgr.shape[1] / width, self.bgr.shape[0] / height] * 2)

    def to_image(self, boxes: torch.Tensor) -> FloatArray:
        """Boxes in network pixels, (N, 4), in pixels of the original image."""
        scaled: FloatArray = boxes.detach().double().numpy() * self.scale
        return scaled

    @property
    def resized(self) -> str:
        """One line on the size of the network input."""
        height, width = self.size
        return (
            f"network input {width} x {height} pixels, {1 / self.scale[0]:.3g} times the "
            f"image's {self.bgr.shape[1]} x {self.bgr.shape[0]}"
        )

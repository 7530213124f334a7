"""Sending detections, image by image, to the files that a user asked for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.structures import Instances

from ..visualization.drawings.canvas import save_picture
from .annotate import annotate_image
from .coco_json import CocoResults
from .feature_npz import FeatureFile


class DetectionWriter(AbstractContextManager["DetectionWriter"]):
    """Pictures, JSON and features of the detections that score enough.

    JSON and features appear when the ``with`` block ends without an error, each picture as soon as
    it is complete.

    Attributes:
        images: number of images so far.
        kept: number of their detections, or boxes.
        below: number of detections that scored too low.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        score: float = 0.0,
        pictures: Path | None = None,
        json: Path | None = None,
        features: Path | None = None,
        info: dict[str, str] | None = None,
    ) -> None:
        """Start.

        Args:
            class_names: by class index.
            score: lowest score that is kept.
            pictures: folder of one .jpg per image.
            json: file in COCO's format.
            features: .npz file.
            info: what the JSON says about itself.
        """
        self._names, self._score = class_names, score
        self._pictures, self._json_path = pictures, json
        self._stack = ExitStack()
        self._json = CocoResults(class_names, **(info or {}))
        self._features = features and self._stack.enter_context(FeatureFile(features, class_names))
        self.images = self.kept = self.below = 0

    def add(
        self, name: str, image: npt.NDArray[np.uint8], found: Instances, *, picture: str = ""
    ) -> None:
        """Write one image's detections.

        Args:
            name: what the files call it.
            image: (H, W, 3) uint8 BGR.
            found: its detections, on the CPU; with features if they are to be written.
            picture: name of its picture, without extension.
        """
        kept = found[found.scores >= self._score]
        self.below += len(found) - len(kept)
        self._json.add(name, kept)
        self._count(name, kept)
        if self._pictures:
            drawn = annotate_image(image, kept, self._names).pixels()
            save_picture(self._pictures / f"{picture}.jpg", drawn)

    def add_boxes(self, name: str, boxes: Instances) -> None:
        """Write the features of boxes that were given for an image; no picture, no JSON."""
        self._count(name, boxes)

    def _count(self, name: str, instances: Instances) -> None:
        self.images, self.kept = self.images + 1, self.kept + len(instances)
        if self._features:
            self._features.add(name, instances)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        """Put the files in place, or leave those that were there."""
        self._stack.__exit__(kind, *rest)
        if kind is None and self._json_path:
            self._json.write(self._json_path)

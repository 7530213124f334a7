"""Detections, image by image, into the files that a user asked for: pictures, JSON, features."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.structures import Boxes, Instances

from ..atomic_files import replacing, write_text
from ..data.datasets.coco_files import run_lengths
from ..visualization.drawings.bare_canvas import BareCanvas
from ..visualization.drawings.canvas import save_picture
from ..visualization.drawings.palette import ImageArray, class_style, paint_masks

# Name in the file of features of a field of Instances, and its type there.
_FIELDS = {
    "pred_boxes": ("boxes", np.float32),
    "scores": ("scores", np.float32),
    "pred_classes": ("classes", np.int64),
    "fc7": ("fc7", np.float32),
    "scores_all": ("scores_all", np.float32),
    "objectness": ("objectness", np.float32),
    "proposal_index": ("proposal_index", np.int64),
    "proposal_boxes": ("proposal_boxes", np.float32),
}


class DetectionWriter(AbstractContextManager["DetectionWriter"]):
    """Write pictures, JSON and features of the detections that score enough.

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
        """Choose what is written.

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
        """Write the detections, on the CPU, in one image, (H, W, 3) uint8 BGR.

        The files call it by its `name`; `picture` is that of its picture, without extension.
        """
        kept = found[found.scores >= self._score]
        self.below += len(found) - len(kept)
        self._json.add(name, kept)
        self.add_boxes(name, kept)
        if self._pictures:
            drawn = annotate_image(image, kept, self._names).pixels()
            save_picture(self._pictures / f"{picture}.jpg", drawn)

    def add_boxes(self, name: str, boxes: Instances) -> None:
        """Write the features of boxes that were given for an image; no picture, no JSON."""
        self.images, self.kept = self.images + 1, self.kept + len(boxes)
        if self._features:
            self._features.add(name, boxes)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        """Put the files in place, or leave those that were there."""
        self._stack.__exit__(kind, *rest)
        if kind is None and self._json_path:
            self._json.write(self._json_path)


def annotate_image(
    image_bgr: ImageArray, instances: Instances, class_names: Sequence[str]
) -> BareCanvas:
    """Draw boxes, with class names and scores, and masks, coloured by class.

    Letters and lines grow with the picture, and small pictures are enlarged. Labels keep off each
    other where there is room; the best detection is drawn last, on top. Instances have
    ``pred_boxes``, ``scores``, ``pred_classes`` and perhaps ``pred_masks`` (n, H, W), in pixels of
    the image, on the CPU, best first.
    """
    height, width = image_bgr.shape[:2]
    scale = max(1.0, 480 / max(height, width))
    letter = max(13.0, 0.026 * scale * math.sqrt(height * width))
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    if instances.has("pred_masks"):
        image_bgr = paint_masks(image_bgr, instances.pred_masks.numpy(), classes)
    canvas = BareCanvas(image_bgr, letter=letter)
    styles = [class_style(index, 0.18 * letter) for index in classes]
    texts = [f"{class_names[i]} {score:.2f}" for i, score in zip(classes, scores, strict=True)]
    canvas.boxes(instances.pred_boxes.tensor.numpy(), styles, texts)
    return canvas


class CocoResults:
    """Detections as a JSON file in COCO's format, which pycocotools and viewers open.

    Category ids count from 1, in the order of the classes, as COCO's do.
    """

    def __init__(self, class_names: Sequence[str], **info: str) -> None:
        """Take the names by class index, and what else to say of the file."""
        self._names = list(class_names)
        self._info = info
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, file_name: str, instances: Instances) -> None:
        """Add an image and its detections, which are on the CPU and in pixels of the image."""
        height, width = instances.image_size
        image_id = len(self._images) + 1
        self._images.append(
            {"id": image_id, "file_name": file_name, "width": width, "height": height}
        )
        boxes = instances.pred_boxes.tensor.tolist()
        classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
        masks: list[dict[str, Any]] = [{}] * len(boxes)
        if instances.has("pred_masks"):
            masks = [{"segmentation": run_lengths(m)} for m in instances.pred_masks.numpy()]
        for (x1, y1, x2, y2), index, score, mask in zip(boxes, classes, scores, masks, strict=True):
            self._annotations.append(
                {
                    "id": len(self._annotations) + 1,
                    "image_id": image_id,
                    "file_name": file_name,
                    "category_id": index + 1,
                    "category_name": self._names[index],
                    "bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
                    "area": round((x2 - x1) * (y2 - y1), 3),
                    "iscrowd": 0,
                    "score": round(score, 6),
                    **mask,
                }
            )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write all; the file appears, or replaces another, only when it is complete."""
        content = {
            "info": self._info,
            "images": self._images,
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(self._names)],
            "annotations": self._annotations,
        }
        write_text(path, json.dumps(content, indent=1) + "\n")


class FeatureFile(AbstractContextManager["FeatureFile"]):
    """Features of many boxes in one .npz file of plain arrays, which ``numpy.load`` opens.

    Rows are collected on disk, not in memory: 100 boxes of one image take 1.6 MB. Leaving the
    ``with`` block without an error puts the file in place; otherwise nothing is left.
    """

    def __init__(self, path: str | os.PathLike[str], class_names: Sequence[str]) -> None:
        """Take the file to write and the names by class index."""
        self._path = Path(path)
        self._class_names = list(class_names)
        self._files: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._empty: dict[str, npt.NDArray[Any]] = {}  # each column without its rows
        self._folder = Path(tempfile.mkdtemp(prefix=f"{self._path.name}.", dir=self._path.parent))

    def add(self, file_name: str, instances: Instances) -> None:
        """Append the boxes of an image, which have the same fields in every one."""
        self._append("image_index", np.full(len(instances), len(self._files), dtype=np.int64))
        for field, (name, dtype) in _FIELDS.items():
            if instances.has(field):
                value: Any = instances.get(field)
                tensor = value.tensor if isinstance(value, Boxes) else value
                self._append(name, tensor.numpy().astype(dtype))
        self._files.append(file_name)
        self._sizes.append(instances.image_size)

    def _append(self, name: str, rows: npt.NDArray[Any]) -> None:
        self._empty.setdefault(name, rows[:0])
        with open(self._folder / name, "ab") as file:
            file.write(rows.tobytes())

    def _column(self, name: str) -> npt.NDArray[Any]:
        empty = self._empty[name]
        if not (self._folder / name).stat().st_size:
            return empty
        rows = np.memmap(self._folder / name, dtype=empty.dtype, mode="r")
        return rows.reshape(-1, *empty.shape[1:])

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Write the file, or forget all."""
        try:
            if kind is None:
                content: dict[str, Any] = {
                    "file_names": np.array(self._files, dtype=np.str_),
                    "image_sizes": np.array(self._sizes, dtype=np.int64).reshape(-1, 2),
                    "class_names": np.array(self._class_names, dtype=np.str_),
                    **{name: self._column(name) for name in self._empty},
                }
                with replacing(self._path) as temporary, temporary.open("wb") as file:
                    np.savez(file, **content)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

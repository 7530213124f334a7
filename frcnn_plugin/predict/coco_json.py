"""Detections as a JSON file in COCO's format, which pycocotools and viewers open."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from detectron2.structures import Instances

from ..atomic_files import write_text


class CocoResults:
    """Collects detections, then writes them.

    Category ids count from 1, in the order of the classes, as COCO's do.
    """

    def __init__(self, class_names: Sequence[str], **info: str) -> None:
        """Start.

        Args:
            class_names: by class index.
            info: what else to say of the file, under "info".
        """
        self._names = list(class_names)
        self._info = info
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, file_name: str, instances: Instances) -> None:
        """Add an image and its detections.

        Args:
            file_name: as it is to stand in the file.
            instances: on the CPU, in pixels of the image; may be empty.
        """
        height, width = instances.image_size
        image_id = len(self._images) + 1
        self._images.append(
            {"id": image_id, "file_name": file_name, "width": width, "height": height}
        )
        boxes = instances.pred_boxes.tensor.tolist()
        classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
        for (x1, y1, x2, y2), index, score in zip(boxes, classes, scores, strict=True):
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
                }
            )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write all; the file appears, or replaces another, only when it is complete."""
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(self._names)]
        content = {
            "info": self._info,
            "images": self._images,
            "categories": categories,
            "annotations": self._annotations,
        }
        write_text(path, json.dumps(content, indent=1) + "\n")

"""The ground truth of any registered data set, as arrays."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..data.datasets.checks import HOST_VOC_EVALUATOR
from ..data.datasets.voc import load_voc_instances


@dataclass(frozen=True)
class GroundTruth:
    """Objects of one data set.

    Attributes:
        image_ids: ids of all images, with or without objects; position = image index.
        boxes: (G, 4) float64, continuous XYXY.
        classes: (G,) class index.
        images: (G,) image index.
        ignored: (G,) difficult or crowd objects: a detection on one counts neither way.
        files: per image its path, width and height; "" and 0 where they are not known. May be
            empty: only the report looks at them.
    """

    image_ids: list[str]
    boxes: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    ignored: npt.NDArray[np.bool_]
    files: list[tuple[str, int, int]] = field(default_factory=list)


def load_ground_truth(dataset_name: str) -> GroundTruth:
    """Load the ground truth of a registered data set.

    Args:
        dataset_name: any name in the DatasetCatalog.

    Returns:
        All objects, ignored ones marked.
    """
    return from_dicts(load_dicts(dataset_name))


def load_dicts(dataset_name: str) -> list[dict[str, Any]]:
    """Load a data set with all that evaluation needs.

    Detectron2's own ``voc_2007_*`` and ``voc_2012_*`` dicts do not say which objects are difficult;
    for those names the annotation files are read with this plugin's loader.

    Args:
        dataset_name: any name in the DatasetCatalog.

    Returns:
        Its images, in Detectron2's format.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("evaluator_type") == HOST_VOC_EVALUATOR:
        return load_voc_instances(
            metadata.dirname, metadata.split, metadata.thing_classes, name=dataset_name
        )
    dicts: list[dict[str, Any]] = DatasetCatalog.get(dataset_name)
    return dicts


def from_dicts(dicts: list[dict[str, Any]]) -> GroundTruth:
    """Collect the objects of Detectron2 dataset dicts.

    Args:
        dicts: one per image; `image_id` may be a number or a string, boxes in any box mode;
            objects may carry `difficult` or `iscrowd`.

    Returns:
        The objects, in the order of the dicts.
    """
    boxes, classes, images, ignored = [], [], [], []
    for index, item in enumerate(dicts):
        for obj in item.get("annotations", ()):
            boxes.append(BoxMode.convert(list(obj["bbox"]), obj["bbox_mode"], BoxMode.XYXY_ABS))
            classes.append(obj["category_id"])
            images.append(index)
            ignored.append(bool(obj.get("difficult", 0) or obj.get("iscrowd", 0)))
    return GroundTruth(
        image_ids=[str(item["image_id"]) for item in dicts],
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        classes=np.array(classes, dtype=np.int64),
        images=np.array(images, dtype=np.int64),
        ignored=np.array(ignored, dtype=bool),
        files=[
            (str(d.get("file_name", "")), int(d.get("width", 0)), int(d.get("height", 0)))
            for d in dicts
        ],
    )

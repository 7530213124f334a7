"""The ground truth of any registered data set, as arrays, and which of its images were seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils import comm

from ..data.datasets.checks import is_host_voc
from ..data.datasets.voc import load_voc_instances
from ..errors import UserError

_T = TypeVar("_T")


@dataclass(frozen=True)
class GroundTruth:
    """Objects of one data set.

    Attributes:
        image_ids: ids of all images, with or without objects; position = image index.
        boxes: (G, 4) float64, continuous XYXY.
        classes: (G,) class index.
        images: (G,) image index.
        ignored: (G,) difficult or crowd objects: a detection on one counts neither way.
        file_names: path of each image; "" where it is not known. May be empty unless an evaluation
            is recorded for the report.
        original_ids: ids of all images as the data set has them, numbers or texts. May be empty
            unless results are written in COCO's format.
    """

    image_ids: list[str]
    boxes: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    ignored: npt.NDArray[np.bool_]
    file_names: list[str] = field(default_factory=list)
    original_ids: list[Any] = field(default_factory=list)


def load_ground_truth(dataset_name: str) -> GroundTruth:
    """Return all objects of a registered data set, ignored ones marked."""
    return from_dicts(load_dicts(dataset_name))


def load_dicts(dataset_name: str) -> list[dict[str, Any]]:
    """Load a data set with all that evaluation needs.

    Detectron2's own ``voc_2007_*`` and ``voc_2012_*`` dicts do not say which objects are difficult;
    for those names the annotation files are read with this plugin's loader.
    """
    if is_host_voc(dataset_name):
        metadata = MetadataCatalog.get(dataset_name)
        return load_voc_instances(
            metadata.dirname, metadata.split, metadata.thing_classes, name=dataset_name
        )
    dicts: list[dict[str, Any]] = DatasetCatalog.get(dataset_name)
    return dicts


def from_dicts(dicts: list[dict[str, Any]]) -> GroundTruth:
    """Collect the objects of Detectron2 dataset dicts, in their order.

    Args:
        dicts: one per image; `image_id` may be a number or a string, boxes in any box mode;
            objects may carry `difficult` or `iscrowd`.
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
        file_names=[str(item.get("file_name", "")) for item in dicts],
        original_ids=[item["image_id"] for item in dicts],
    )


def gather_by_image(entries: Mapping[str, _T]) -> dict[str, _T]:
    """Return, on the main process, the entries of all processes by image id; elsewhere nothing.

    Samplers repeat images to fill a batch; of such an image the first entry stays.
    """
    comm.synchronize()
    gathered: dict[str, _T] = {}
    for part in comm.gather(dict(entries), dst=0):
        gathered = {**part, **gathered}
    return gathered


def absent_images(
    entries: Mapping[str, object], image_ids: Sequence[str], dataset_name: str
) -> list[str]:
    """Return the images of a data set that have no entry.

    Raises:
        UserError: there is an entry for an image that is not in the data set.
    """
    known = set(image_ids)
    unknown = [image_id for image_id in entries if image_id not in known]
    if unknown:
        raise UserError(
            f"{len(unknown)} images that the model saw (first: '{unknown[0]}') are not in data set "
            f"'{dataset_name}': the loader reads another set"
        )
    return [image_id for image_id in image_ids if image_id not in entries]

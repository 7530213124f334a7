"""Registering data sets in COCO's format; :mod:`.coco_files` reads and checks them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ...host import replace_metadata
from .arguments import register_source, resolve_root
from .class_names import AS_WRITTEN, ClassMap, check_classes
from .coco_files import read_coco


@dataclass(frozen=True, kw_only=True)
class COCOSource:
    """Where a registered data set in COCO's format comes from; calling it loads the set.

    The attributes are as for :func:`register_coco`; no ``classes``: those of the file.
    """

    evaluators: ClassVar[tuple[str, ...]] = ("voc", "coco")

    name: str
    json_file: str
    image_root: str
    evaluator: str = "coco"
    classes: tuple[str, ...] = ()
    class_map: ClassMap = AS_WRITTEN

    def metadata(self) -> dict[str, Any]:
        """Return what the catalog is to know of the set."""
        return {
            "json_file": self.json_file,
            "image_root": self.image_root,
            "evaluator_type": self.evaluator,
        }

    def read(self) -> dict[str, Any]:
        """Return the file's content as :func:`read_coco` does; note the classes in the metadata."""
        content = read_coco(
            self.name, self.json_file, self.image_root, self.classes, self.class_map
        )
        categories = content["categories"]
        index_of = {entry["id"]: index for index, entry in enumerate(categories)}
        # The file may change while a notebook is open.
        replace_metadata(
            self.name,
            thing_classes=[entry["name"] for entry in categories],
            thing_dataset_id_to_contiguous_id=index_of,
        )
        return content

    def __call__(self) -> list[dict[str, Any]]:
        """Load the set in Detectron2's format, images in the order of their ids."""
        content = self.read()
        index_of = MetadataCatalog.get(self.name).thing_dataset_id_to_contiguous_id
        dicts: dict[int | str, dict[str, Any]] = {}
        for entry in sorted(content["images"], key=lambda image: image["id"]):
            dicts[entry["id"]] = {
                "file_name": os.path.join(self.image_root, entry["file_name"]),
                "height": entry["height"],
                "width": entry["width"],
                "image_id": entry["id"],
                "annotations": [],
            }
            if "unreadable" in entry:
                dicts[entry["id"]]["unreadable"] = entry["unreadable"]
        for entry in content.get("annotations", ()):
            obj = {key: entry[key] for key in ("iscrowd", "bbox", "segmentation") if key in entry}
            obj |= {
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": index_of[entry["category_id"]],
            }
            dicts[entry["image_id"]]["annotations"].append(obj)
        return list(dicts.values())


def register_coco(
    name: str,
    json_file: str,
    images: str,
    classes: Sequence[str] | None = None,
    evaluator: str = "coco",
    ignore: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
) -> None:
    """Register a data set in COCO's format under ``name``; registering the same again does nothing.

    Nothing is read here. When the set is loaded, the class names are taken from the file, in the
    order of the category ids, which are mapped to 0, 1, ...

    Args:
        name: the name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        json_file: the annotation file; a relative path is treated as by ``register_voc``.
        images: folder that the ``file_name`` entries start from.
        classes: the names that the file is expected to have, in this order; it may have others,
            such as the name of a group, if no object is of them. None: whatever it has.
        evaluator: "coco" (COCO's metric) or "voc" (AP50 by the rules of VOC).
        ignore: names of categories whose objects are left out, as if they were not annotated.
        rename: names of categories -> names to use; two to one name merges them.

    Raises:
        UserError: if ``name`` is taken, or an argument is not of this kind.
    """
    listed, class_map = check_classes(name, classes, ignore, rename)
    register_source(
        COCOSource(
            name=name,
            json_file=str(resolve_root(json_file)),
            image_root=str(resolve_root(images)),
            evaluator=evaluator,
            classes=listed,
            class_map=class_map,
        )
    )


def coco_source(name: str) -> COCOSource | None:
    """Return what registered a data set; None if it was not :func:`register_coco`."""
    source: Any = DatasetCatalog.data.get(name)
    return source if isinstance(source, COCOSource) else None

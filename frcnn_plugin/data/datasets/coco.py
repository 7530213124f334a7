"""Registering data sets in COCO's format, through Detectron2's own loader."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ...errors import UserError
from .class_names import check_classes
from .roots import resolve_root


def register_coco(
    name: str,
    json_file: str,
    images: str,
    classes: Sequence[str] | None = None,
    evaluator: str = "coco",
) -> None:
    """Registers a data set in COCO's format under `name`; registering the same again does nothing.

    Nothing is read here: Detectron2 takes the class names from the file when the set is loaded, in
    the order of the category ids, which it maps to 0, 1, ... `check_datasets` looks at the file.

    Args:
        name: the name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        json_file: the annotation file; a relative path is treated as by `register_voc`.
        images: folder that the ``file_name`` entries start from.
        classes: the names that the file is expected to have, in this order; None: whatever it has.
        evaluator: "coco" (COCO's metric) or "voc" (AP50 by the rules of VOC).

    Raises:
        UserError: if `name` is taken, or `classes` is no list of distinct names.
    """
    paths = {"json_file": str(resolve_root(json_file)), "image_root": str(resolve_root(images))}
    more = {} if classes is None else {"thing_classes": list(check_classes(name, classes))}
    # from_config: check_datasets looks into the file although its class names are known.
    wanted = {**paths, **more, "from_config": True, "evaluator_type": evaluator}
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog:
        if all(metadata.get(key) == value for key, value in wanted.items()):
            return
        what = "with other arguments" if metadata.get("from_config") else "by other code"
        raise UserError(f"data set '{name}' is already registered {what}; choose another name")
    register_coco_instances(name, {**more, "from_config": True}, **paths)
    vars(metadata)["evaluator_type"] = evaluator  # metadata refuses to change the host's "coco"

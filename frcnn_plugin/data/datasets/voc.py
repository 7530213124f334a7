"""Registering VOC-format data sets: ``register_voc`` is the one line a user's own set needs.

    register_voc("my_train", root="/data/my", split="train", classes=["cat", "dog"])

Nothing is read or looked for at import or registration: the folder is found when the set is loaded,
so ``$DETECTRON2_DATASETS`` and the files may come later. Only class names that are to be taken from
the files are looked up at once if the files exist.

Detectron2 itself registers ``voc_2007_*`` and ``voc_2012_*``; those keep difficult objects in
training. Ours are ``voc07_*`` and ``voc12_*``; 07+12 is the two listed together in
``DATASETS.TRAIN``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import UserError
from .class_names import ClassMap, check_classes
from .voc_files import load_voc_files
from .voc_sources import Source, VOCSource, XMLFolderSource, files_in_layout

# fmt: off
VOC_CLASSES: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)
# fmt: on

# Registered name -> number of images in PASCAL's image set, as the VOC site gives it.
OFFICIAL_IMAGE_COUNTS: dict[str, int] = {
    "voc07_train": 2501,
    "voc07_val": 2510,
    "voc07_trainval": 5011,
    "voc07_test": 4952,
    "voc12_train": 5717,
    "voc12_val": 5823,
    "voc12_trainval": 11540,
}

EVALUATOR_TYPE = "voc"  # metadata.evaluator_type of every set registered here


def load_voc_instances(
    dirname: str | os.PathLike[str],
    split: str,
    classes: Sequence[str] = VOC_CLASSES,
    *,
    use_difficult: bool = False,
    strict: bool = False,
    name: str | None = None,
    numbered: bool = False,
) -> list[dict[str, Any]]:
    """Load one image set of a VOC-format folder.

    Args:
        dirname: folder that holds ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        split: name of the file in ``ImageSets/Main``, without ``.txt``.
        classes: class names, background not counted; position = ``category_id``.
        use_difficult: let difficult objects take part in training (``iscrowd`` 0).
        strict: raise on the first bad box. Otherwise boxes that leave the image are clipped, boxes
            with nearly nothing inside are dropped, and a warning counts both.
        name: data-set name for messages; the folder and split if None.
        numbered: ``image_id`` is the position in the split file, from 1, as COCO's metric needs.

    Returns:
        One dict per image, in the order of the split file, in Detectron2's format: ``file_name``,
        ``image_id`` (str), ``height``, ``width``, ``annotations`` with ``bbox`` (continuous
        XYXY_ABS), ``bbox_mode``, ``category_id``, ``difficult`` and ``iscrowd``. A split of which
        no image has an annotation file (a test set whose answers are not public) gives empty
        ``annotations`` and a warning.

    Raises:
        UserError: for missing files, unreadable files, unknown class names, and, if ``strict``, bad
            boxes. An image set in which only some images lack the XML file is an error too: write
            an XML without ``<object>`` for an image without objects.
    """
    root = Path(dirname)
    return load_voc_files(
        *files_in_layout(root, split),
        classes,
        use_difficult=use_difficult,
        strict=strict,
        title=name or f"{root.name}/{split}",
        numbered=numbered,
    )


def register_voc(
    name: str,
    root: str | os.PathLike[str],
    split: str,
    classes: Sequence[str] | None = VOC_CLASSES,
    year: int | None = None,
    use_difficult: bool = False,
    strict: bool = False,
    evaluator: str = EVALUATOR_TYPE,
    ignore: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    counts_from: int = 1,
) -> None:
    """Register a VOC-format data set under ``name``; registering the same again does nothing.

    Sets the metadata ``thing_classes``, ``dirname``, ``split``, ``year`` and ``evaluator_type``.

    Args:
        name: the name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        root: folder that holds ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``. "~" is
            expanded; a path that starts with ./ or ../ is taken from the current folder, any other
            relative path from ``$DETECTRON2_DATASETS``.
        split: name of the file in ``ImageSets/Main``, without ``.txt``.
        classes: class names; background is not counted. None: those that occur in any file of
            ``Annotations``, sorted.
        year: of VOC: before 2010 the evaluator's headline is the 11-point mean, else, and for sets
            of your own (None), the area under the curve.
        use_difficult: let difficult objects take part in training. Evaluation ignores them anyway.
        strict: raise on a bad box instead of clipping or dropping it with a warning.
        evaluator: "voc", or "coco" for COCO's metric.
        ignore: class names in the files whose objects are left out, as if not annotated.
        rename: what classes of the files are called instead; two of one name are merged.
        counts_from: the number of the first pixel in the files, 1 as in VOC, or 0.

    Raises:
        UserError: if ``name`` is taken, or ``classes`` is not a list of distinct names.
    """
    _register(
        VOCSource(
            name=name,
            roots=(os.fspath(root),),
            split=split,
            year=year,
            use_difficult=use_difficult,
            strict=strict,
            evaluator=evaluator,
            **_checked(name, classes, ignore, rename, counts_from),
        )
    )


def _checked(
    name: str, classes: object, ignore: object, rename: object, counts_from: object
) -> dict[str, Any]:
    """Check what both kinds of sets have in common; return it as arguments of a source."""
    class_map = ClassMap.of(name, ignore, rename)
    wanted = check_classes(name, classes)
    if useless := [text for text in class_map.ignore if text in wanted]:
        raise UserError(f"data set '{name}': '{useless[0]}' is in both classes and ignore")
    if counts_from not in (0, 1):
        raise UserError(f"data set '{name}': counts_from must be 0 or 1; got {counts_from!r}")
    return {"classes": wanted, "class_map": class_map, "counts_from": counts_from}


def register_xml_folder(
    name: str,
    xml: str | os.PathLike[str],
    classes: Sequence[str] | None,
    images: str | os.PathLike[str] | None = None,
    image_list: str = "",
    split: str = "",
    train_fraction: float | None = None,
    val_fraction: float = 0.0,
    ignore: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    counts_from: int = 1,
    **options: Any,
) -> None:
    """Register a folder of VOC XML files under ``name``; registering the same again does nothing.

    Args:
        name: the name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        xml: folder of the XML files; sub-folders are searched, too. A relative path is treated as
            by :func:`register_voc`.
        classes: class names without background; None: those that occur in any XML file of the
            folder, sorted.
        images: folder of the images, named as the XML files or as their ``<filename>`` says, with
            any suffix of ``IMAGE_SUFFIXES``; None: the same folder.
        image_list: text file that lists the images of the set, one per line, with or without
            suffix; "": all XML files.
        split: with ``train_fraction``, "train", "val" or "test": which part this set is.
        train_fraction: share of the XML files, in (0, 1), that is for training. Chosen by a hash
            of the names, so that it does not depend on order, machine or run.
        val_fraction: share that is for validation; test has the rest.
        ignore: see :func:`register_voc`.
        rename: see there.
        counts_from: see there.
        **options: ``year``, ``use_difficult``, ``strict``, ``evaluator``, as for
            :func:`register_voc`.

    Raises:
        UserError: if ``name`` is taken, ``classes`` is not a list of distinct names, or the set is
            not clearly described.
    """
    where = f"data set '{name}'"
    if (train_fraction is None) != (split == ""):
        raise UserError(
            f"{where}: split and train_fraction come together, as in train_fraction: 0.8, split: "
            f"train (and the same with split: test for the other set)"
        )
    if split not in ("", "train", "val", "test"):
        raise UserError(f"{where}: split must be train, val or test; got {split!r}")
    if train_fraction is not None and not 0 < train_fraction < 1:
        raise UserError(f"{where}: train_fraction must be between 0 and 1; got {train_fraction}")
    if not 0 <= val_fraction < 1 - (train_fraction or 0):
        raise UserError(
            f"{where}: val_fraction must leave something beside train_fraction; got {val_fraction} "
            f"and {train_fraction}"
        )
    if (split == "val" or train_fraction is None) and (split == "val") != (val_fraction > 0):
        raise UserError(
            f"{where}: split: val needs a val_fraction, and that a train_fraction, as in "
            f"train_fraction: 0.7, val_fraction: 0.1 (the same in the entries of all three sets)"
        )
    if train_fraction is not None and image_list:
        raise UserError(f"{where}: give either a list or a train_fraction, not both")
    _register(
        XMLFolderSource(
            name=name,
            xml=os.fspath(xml),
            images=os.fspath(xml if images is None else images),
            image_list=image_list,
            split=split,
            train_fraction=train_fraction,
            val_fraction=val_fraction,
            **_checked(name, classes, ignore, rename, counts_from),
            **options,
        )
    )


def register_builtin() -> None:
    """Register PASCAL VOC 2007 and 2012; a second call changes nothing."""
    for name in OFFICIAL_IMAGE_COUNTS:
        short_year, split = name.removeprefix("voc").split("_")
        year = 2000 + int(short_year)
        _register(
            VOCSource(
                name=name,
                roots=(f"VOCdevkit/VOC{year}", f"VOC{year}"),
                split=split,
                classes=VOC_CLASSES,
                year=year,
                official=True,
            )
        )


def _register(source: Source) -> None:
    """Register ``source`` under its own name, unless it is; raise if that is taken."""
    if source.name in DatasetCatalog:
        existing: Any = DatasetCatalog[source.name]
        # Compared by value: the class object changes when the module is imported a second time.
        if is_dataclass(existing) and asdict(existing) == asdict(source):  # type: ignore[arg-type]
            return
        what = "with other arguments" if is_dataclass(existing) else "by other code"
        raise UserError(
            f"data set '{source.name}' is already registered {what}; choose another name"
        )
    DatasetCatalog.register(source.name, source)
    metadata = MetadataCatalog.get(source.name)
    metadata.set(**source.metadata())
    if source.classes:
        metadata.set(thing_classes=list(source.classes))
    elif source.annotation_folder().is_dir():  # else when the set is loaded
        source.look_up_classes(source.annotation_folder())

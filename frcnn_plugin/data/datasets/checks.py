"""Check the data sets before anything else starts, so that mistakes cost seconds."""

import difflib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from ...errors import UserError
from .arguments import datasets_root, examples, objects_that_count, progress
from .class_names import is_background
from .coco import coco_source
from .coco_files import read_coco
from .geometry import SizeFindings, refuse_unreadable, unreadable
from .voc import HOST_VOC_EVALUATOR, OFFICIAL_IMAGE_COUNTS, Source

logger = logging.getLogger(__name__)

_MANY = 10  # class names that a message lists


def check_datasets(
    names: Sequence[str],
    num_classes: int | None,
    train: Collection[str] = (),
    load: Callable[[str], Any] = DatasetCatalog.get,
    skip_bad_images: bool = False,
) -> None:
    """Check every data set of a run; return if all is well.

    Sets of this plugin and of the user's own code are loaded (seconds), so that their files, class
    names and boxes are looked at too. Detectron2's own COCO-like sets are not: only their files and
    class lists.

    Args:
        names: registered names, training and test sets together.
        num_classes: ``MODEL.ROI_HEADS.NUM_CLASSES``; None leaves the count unchecked.
        train: those of ``names`` that are trained on: they must hold objects.
        load: gives the data set of a name.
        skip_bad_images: a warning is enough for images that are missing or damaged.

    Raises:
        UserError: for the first thing found wrong: an unknown name, missing files, a class list
            that does not fit, an empty set.
    """
    classes: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        _check_known(name)
        metadata = MetadataCatalog.get(name)
        _check_files(name, metadata)
        if _is_checked_by_loading(name, metadata):
            if metadata.get("json_file") and coco_source(name) is None:
                json_file, images = metadata.json_file, metadata.get("image_root", "")
                content = read_coco(name, json_file, images, for_detectron2=True)
                read = content["images"]
                dicts = load(name)
            else:
                read = dicts = load(name)
            _check_contents(name, dicts, name in train)
            # Of XML and COCO files this is done, and sizes corrected, when they are read.
            is_read = metadata.get("json_file") or isinstance(DatasetCatalog[name], Source)
            if isinstance(dicts, list):
                reasons = unreadable(read) if is_read else _check_sizes(name, dicts)
                if not skip_bad_images:
                    refuse_unreadable(name, reasons, len(dicts))
            if metadata.get("thing_classes") is None and name not in train:
                raise UserError(
                    f"{name}: evaluation needs the names of its classes: "
                    f"MetadataCatalog.get('{name}').thing_classes = [...]"
                )
        # A COCO-format set without a class list gets it when loaded: after that, if at all.
        if metadata.get("thing_classes") is not None:
            classes[name] = list(metadata.thing_classes)
    for name, names_of_classes in classes.items():
        _check_class_count(name, names_of_classes, num_classes)
    check_same_classes(classes)


def class_names(name: str) -> list[str]:
    """Return the class names of a data set; it is loaded if only its files have them.

    Raises:
        UserError: it is not registered, has none, or its files are wrong.
    """
    _check_known(name)
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None:
        _check_files(name, metadata)
        DatasetCatalog.get(name)
    if metadata.get("thing_classes") is None:
        raise UserError(
            f"{name} has no class names: MetadataCatalog.get('{name}').thing_classes = [...]"
        )
    return list(metadata.thing_classes)


def _check_known(name: str) -> None:
    if name in DatasetCatalog:
        return
    near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3, cutoff=0.7)
    hint = f"did you mean {', '.join(near)}?" if near else "voc07_trainval is, for example."
    raise UserError(
        f"data set '{name}' is not registered; {hint} Your own VOC-format set: DATASETS.REGISTER "
        f"in the config, or frcnn_plugin.data.register_voc in Python"
    )


def _check_files(name: str, metadata: Metadata) -> None:
    """Look for the files of Detectron2's own sets; ours are looked at by loading them."""
    root = f"DETECTRON2_DATASETS was {datasets_root()} when Detectron2 was imported"
    if is_host_voc(name) and metadata.get("dirname"):
        split_file = Path(metadata.dirname) / "ImageSets" / "Main" / f"{metadata.split}.txt"
        if not split_file.is_file():
            ours = name.replace("voc_20", "voc")
            raise UserError(
                f"{name}: missing {split_file}. This is Detectron2's own name, which knows only "
                f"the layout $DETECTRON2_DATASETS/{Path(metadata.dirname).name} ({root}); "
                f"'{ours}' accepts VOCdevkit/{Path(metadata.dirname).name} too"
            )
    json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
    for path in (json_file, image_root):
        if path and "://" not in path and not Path(path).exists():
            raise UserError(
                f"{name}: missing {path} ({root}). Expected layout: the JSON file at {json_file}, "
                f"the images in {image_root}; for COCO that is $DETECTRON2_DATASETS/coco with "
                f"annotations/instances_*.json and train2017/, val2017/ etc. beside it. "
                f"No data yet? `make demo` writes a small set"
            )


def _is_checked_by_loading(name: str, metadata: Metadata) -> bool:
    """Say whether to load a set; COCO takes long, and Detectron2 checks what it registers."""
    if metadata.get("thing_classes") is None or coco_source(name) is not None:
        return True
    kinds = (None, "voc", "coco", HOST_VOC_EVALUATOR)
    is_known = metadata.get("evaluator_type") in kinds and not is_host_voc(name)
    return is_known and metadata.get("json_file") is None


def is_host_voc(name: str) -> bool:
    """Say whether a set is registered as Detectron2's ``voc_2007_*`` are, and not by this plugin.

    Its dicts then do not say which objects are difficult.
    """
    if MetadataCatalog.get(name).get("evaluator_type") != HOST_VOC_EVALUATOR:
        return False
    return name not in DatasetCatalog or not isinstance(DatasetCatalog[name], Source)


def _check_contents(name: str, dicts: Any, is_trained_on: bool) -> None:
    if not isinstance(dicts, list):  # a torch Dataset: nothing to count
        return
    if not dicts:
        raise UserError(
            f"{name}: no images; its image set (ImageSets/Main/<split>.txt, or the COCO file) "
            f"lists none. Add some to it, or name another set in DATASETS"
        )
    expected = OFFICIAL_IMAGE_COUNTS.get(name)
    if expected is not None and expected != len(dicts):
        logger.warning(
            "%s: %d images, but PASCAL's image set has %d: scores will not compare",
            name, len(dicts), expected,
        )  # fmt: skip
    _check_identity(name, dicts)
    if any(map(objects_that_count, dicts)):
        return
    text = f"{name}: no objects in its {len(dicts)} images (difficult and crowd ones not counted)"
    if is_trained_on:
        raise UserError(f"{text}: nothing to train on. Look at its annotation files")
    logger.warning("%s: average precision is not defined on it", text)


def _check_identity(name: str, dicts: Sequence[Any]) -> None:
    """Make sure that an image id means one image, and say if an image has several."""
    unnamed = sum(item.get("image_id") is None for item in dicts)
    if unnamed:
        raise UserError(
            f"{name}: {unnamed:,} of its {len(dicts):,} dicts have no image_id, by which results "
            f"and proposals are kept: number the images"
        )
    counts = Counter(str(item["image_id"]) for item in dicts)
    repeated = [image_id for image_id, count in counts.items() if count > 1]
    if repeated:
        raise UserError(
            f"{name}: {len(repeated):,} image ids occur more than once ({examples(repeated)}): "
            f"results and proposals of such images would be mixed; give each its own"
        )
    ids = defaultdict(list)
    for item in dicts:
        if item.get("file_name"):
            ids[os.path.normpath(item["file_name"])].append(str(item["image_id"]))
    shared = [f"{file} of {' and '.join(found)}" for file, found in ids.items() if found[1:]]
    if shared:
        logger.warning(
            "%s: %d images have several ids, so that the objects of one are background in the "
            "other and count as missed: put them together. %s",
            name, len(shared), examples(shared),
        )  # fmt: skip


def _check_sizes(name: str, dicts: Sequence[Any]) -> list[str]:
    """Compare sizes, which stop a run when the image is read, with the images that are here.

    Return what is wrong with those that are here and cannot be read.
    """
    findings = SizeFindings()
    for item in progress(dicts, f"sizes of {name}", "image"):
        file = item.get("file_name") or ""
        if os.path.isfile(file):
            findings.size_of(file, (item.get("width", 0), item.get("height", 0)), None)
    if text := findings.report(name):
        logger.warning("%s: %s", name, text)
    return list(findings.unreadable.values())


def _check_class_count(name: str, classes: Sequence[str], num_classes: int | None) -> None:
    listed = ", ".join(classes[:_MANY]) + (", ..." if len(classes) > _MANY else "")
    background = next(filter(is_background, classes), None)
    if background:
        raise UserError(
            f"dataset '{name}' lists '{background}' as a class ({listed}): background is not "
            f"counted, remove it from thing_classes"
        )
    if num_classes is not None and num_classes != len(classes):
        raise UserError(
            f"NUM_CLASSES is {num_classes} but dataset '{name}' has {len(classes)} classes "
            f"({listed}). Type: MODEL.ROI_HEADS.NUM_CLASSES {len(classes)} "
            f"(background is not counted), or -1 for as many as the data sets have"
        )


def check_same_classes(classes: dict[str, list[str]]) -> None:
    """Make sure that class numbers mean the same in every set; ``classes`` has names by data set.

    Raises:
        UserError: they do not; names the first class that differs.
    """
    for name, found in classes.items():
        first, expected = next(iter(classes.items()))
        if found == expected:
            continue
        difference = f"{len(expected)} and {len(found)} of them"
        if len(found) == len(expected):
            index = next(i for i in range(len(found)) if found[i] != expected[i])
            difference = (
                f"class {index} is '{expected[index]}' in the one and '{found[index]}' in the "
                f"other; the order counts"
            )
        raise UserError(f"datasets '{first}' and '{name}' differ in their classes: {difference}")

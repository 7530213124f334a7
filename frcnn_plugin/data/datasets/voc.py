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

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import UserError
from ...host import replace_metadata
from .arguments import resolve_root, root_in_words, warn_once
from .class_names import check_classes
from .voc_files import classes_in_folder, index_images, load_voc_files, read_image_ids, xml_files

logger = logging.getLogger(__name__)

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

# The image ids of a set, the folder of its XML files and that of its images.
Files = tuple[list[str], Path, Path]

_ARCHIVES = "VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar and VOCtrainval_11-May-2012.tar"
_LAYOUT = "a folder holding Annotations/, ImageSets/Main/ and JPEGImages/"


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
        strict: raise on the first bad box. Otherwise bad boxes are dropped, boxes that leave the
            image by at most one pixel are clipped, and one warning counts both.
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
        *_files_in_layout(root, split),
        classes,
        use_difficult=use_difficult,
        strict=strict,
        title=name or f"{root.name}/{split}",
        numbered=numbered,
    )


def _split_file(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Main" / f"{split}.txt"


def _files_in_layout(root: Path, split: str) -> Files:
    return read_image_ids(_split_file(root, split)), root / "Annotations", root / "JPEGImages"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a registered set of VOC annotation files comes from; calling it loads the set.

    The attributes are as for :func:`register_voc`; no ``classes``: those that occur in the files.
    """

    name: str
    classes: tuple[str, ...]
    year: int | None = None
    use_difficult: bool = False
    strict: bool = False
    evaluator: str = EVALUATOR_TYPE

    def annotation_folder(self) -> Path:
        """Return the folder of the XML files, which need not exist."""
        raise NotImplementedError

    def files(self) -> Files:
        """Find the files of the set."""
        raise NotImplementedError

    def metadata(self) -> dict[str, Any]:
        """Return what the catalog is to know of the set."""
        return {"year": self.year, "evaluator_type": self.evaluator}

    def __call__(self) -> list[dict[str, Any]]:
        """Load the set; see :func:`load_voc_instances`."""
        ids, annotations, images = self.files()
        return load_voc_files(
            ids,
            annotations,
            images,
            self.classes or self.look_up_classes(annotations),
            use_difficult=self.use_difficult,
            strict=self.strict,
            title=self.name,
            numbered=self.evaluator == "coco",
        )

    def look_up_classes(self, annotations: Path) -> tuple[str, ...]:
        """Collect the class names that occur; note them in the metadata and the log."""
        classes = classes_in_folder(annotations)
        # The files may change while a notebook is open.
        replace_metadata(self.name, thing_classes=list(classes))
        logger.info("%s: %d classes: %s", self.name, len(classes), ", ".join(classes))
        return classes


@dataclass(frozen=True, kw_only=True)
class VOCSource(Source):
    """A set in VOC's three folders.

    Attributes:
        roots: folders to try in this order, relative ones under ``$DETECTRON2_DATASETS``.
        split: name of the file in ``ImageSets/Main``, without ``.txt``.
        official: the set is PASCAL's own; messages then name its archives.
    """

    roots: tuple[str, ...]
    split: str
    official: bool = False

    def candidates(self) -> list[Path]:
        """List the folders that are tried, in order."""
        return [resolve_root(root) for root in self.roots]

    def annotation_folder(self) -> Path:
        """Return the folder of the XML files, which need not exist."""
        folders = [candidate / "Annotations" for candidate in self.candidates()]
        return next(filter(Path.is_dir, folders), folders[0])

    def metadata(self) -> dict[str, Any]:
        """Return what the catalog is to know of the set."""
        return {"dirname": str(self.candidates()[0]), "split": self.split, **super().metadata()}

    def files(self) -> Files:
        """Find the first candidate with the split file; note it in the metadata as ``dirname``.

        Raises:
            UserError: a folder or file is missing; names it, the accepted layouts, and where the
                data come from.
        """
        candidates = self.candidates()
        for root in candidates:
            if _split_file(root, self.split).is_file():
                # Annotations may be missing: a test set whose answers are not public.
                if not (root / "JPEGImages").is_dir():
                    raise self._missing(root / "JPEGImages")
                # The folder may change with the environment.
                replace_metadata(self.name, dirname=str(root))
                return _files_in_layout(root, self.split)
        root = next(filter(Path.is_dir, candidates), candidates[-1])
        for folder in (root, root / "ImageSets", root / "ImageSets" / "Main"):
            if not folder.is_dir():
                raise self._missing(folder)
        raise self._missing(_split_file(root, self.split))

    def _missing(self, path: Path) -> UserError:
        """Describe a missing ``path``: layouts that are accepted, and where the data come from."""
        lines = [f"{self.name}: missing {path}", f"DETECTRON2_DATASETS is {root_in_words()}"]
        if path.parent.name == "Main":
            found = sorted(file.stem for file in path.parent.glob("*.txt") if "_" not in file.stem)
            lines.append(f"Image sets found: {', '.join(found[:10]) or 'none'}")
        if self.official:
            year = f"VOC{self.year}"
            lines += [
                f"Accepted layouts: $DETECTRON2_DATASETS/VOCdevkit/{year} and "
                f"$DETECTRON2_DATASETS/{year}, {_LAYOUT}",
                f"Extract the official archives {_ARCHIVES} all into one folder: they merge",
                "Without them: `make demo` writes a small data set and trains on it",
            ]
        else:
            lines.append(
                f"root must be {_LAYOUT}; a relative root is looked for under "
                f"$DETECTRON2_DATASETS, one that starts with ./ or ../ under the current folder"
            )
        return UserError("\n  ".join(lines))


@dataclass(frozen=True, kw_only=True)
class XMLFolderSource(Source):
    """A folder of XML files that is not laid out as VOC's; see :func:`register_xml_folder`.

    XML files and images may lie in one folder or in two, in sub-folders or not. Which of them
    belong to the set is said by a list, by a share of all, or not at all.
    """

    xml: str
    images: str
    image_list: str = ""
    split: str = ""
    train_fraction: float | None = None

    def annotation_folder(self) -> Path:
        """Return the folder of the XML files, which need not exist."""
        return resolve_root(self.xml)

    def files(self) -> Files:
        """Find the files of the set; warn of images without XML file."""
        annotations, images = resolve_root(self.xml), resolve_root(self.images)
        for key, folder in (("xml", annotations), ("images", images)):
            if not folder.is_dir():
                raise UserError(
                    f"{self.name}: `{key}` names {folder}, which is not a folder. A relative path "
                    f"is looked for under $DETECTRON2_DATASETS ({root_in_words()}), one that "
                    f"starts with ./ or ../ under the current folder"
                )
        if self.image_list:
            return read_image_ids(resolve_root(self.image_list)), annotations, images
        ids = [
            file.relative_to(annotations).with_suffix("").as_posix()
            for file in xml_files(annotations)
        ]
        if not ids:
            raise UserError(f"{self.name}: there are no .xml files in {annotations}")
        lacking = index_images(images).keys() - set(ids)
        if lacking:
            warn_once(
                f"{self.name}: {len(lacking)} images in {images} have no XML file in "
                f"{annotations} and are left out; for an image without objects write an XML "
                f"without <object>"
            )
        if self.train_fraction is None:
            return ids, annotations, images
        train = choose(ids, self.train_fraction)
        chosen = [i for i in ids if (i in train) == (self.split == "train")]
        if not chosen or len(chosen) == len(ids):
            raise UserError(
                f"{self.name}: train_fraction {self.train_fraction} of {len(ids)} XML files leaves "
                f"one side empty; choose another, or give lists"
            )
        return chosen, annotations, images


def choose(ids: Sequence[str], fraction: float) -> set[str]:
    """Choose a fixed share of ``ids``: those whose SHA-256 comes first, rounded to whole ones."""
    ordered = sorted(ids, key=lambda image_id: hashlib.sha256(image_id.encode()).hexdigest())
    return set(ordered[: round(fraction * len(ids))])


def register_voc(
    name: str,
    root: str | os.PathLike[str],
    split: str,
    classes: Sequence[str] | None = VOC_CLASSES,
    year: int | None = None,
    use_difficult: bool = False,
    strict: bool = False,
    evaluator: str = EVALUATOR_TYPE,
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
        strict: raise on a bad box instead of dropping it with a warning.
        evaluator: "voc", or "coco" for COCO's metric.

    Raises:
        UserError: if ``name`` is taken, or ``classes`` is not a list of distinct names.
    """
    _register(
        VOCSource(
            name=name,
            roots=(os.fspath(root),),
            split=split,
            classes=check_classes(name, classes),
            year=year,
            use_difficult=use_difficult,
            strict=strict,
            evaluator=evaluator,
        )
    )


def register_xml_folder(
    name: str,
    xml: str | os.PathLike[str],
    classes: Sequence[str] | None,
    images: str | os.PathLike[str] | None = None,
    image_list: str = "",
    split: str = "",
    train_fraction: float | None = None,
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
        split: with ``train_fraction``, "train" or "test": which side this set is.
        train_fraction: share of the XML files, in (0, 1), that is for training. Chosen by a hash
            of the names, so that it does not depend on order, machine or run.
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
    if split not in ("", "train", "test"):
        raise UserError(f"{where}: split must be train or test; got {split!r}")
    if train_fraction is not None and not 0 < train_fraction < 1:
        raise UserError(f"{where}: train_fraction must be between 0 and 1; got {train_fraction}")
    if train_fraction is not None and image_list:
        raise UserError(f"{where}: give either a list or a train_fraction, not both")
    _register(
        XMLFolderSource(
            name=name,
            xml=os.fspath(xml),
            images=os.fspath(xml if images is None else images),
            classes=check_classes(name, classes),
            image_list=image_list,
            split=split,
            train_fraction=train_fraction,
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

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

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from detectron2.data.datasets.pascal_voc import CLASS_NAMES

from ...errors import UserError
from ...host import replace_metadata
from .arguments import register_source, resolve_root, root_in_words, warn_once
from .class_names import AS_WRITTEN, ClassMap, check_classes, is_background
from .voc_files import (
    VOCFolders,
    classes_in_folder,
    files_in_layout,
    inside,
    load_voc_files,
    split_file,
)

logger = logging.getLogger(__name__)

VOC_CLASSES: tuple[str, ...] = tuple(CLASS_NAMES)
HOST_VOC_EVALUATOR = "pascal_voc"  # metadata.evaluator_type of Detectron2's own voc_2007_* names

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

_ARCHIVES = "VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar and VOCtrainval_11-May-2012.tar"
_TEST_ARCHIVE = "VOCtrainval_11-May-2012.tar and, from the evaluation server, VOC2012test.tar"
_LAYOUT = "a folder holding Annotations/, ImageSets/Main/ and JPEGImages/"


def load_voc_instances(
    dirname: str | os.PathLike[str],
    split: str,
    classes: Sequence[str] = VOC_CLASSES,
    *,
    use_difficult: bool = False,
    strict: bool = False,
    name: str | None = None,
) -> list[dict[str, Any]]:
    """Load one image set of a VOC-format folder.

    Args:
        dirname: folder that holds ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``.
        split: name of the file in ``ImageSets/Main``, without ``.txt``.
        classes: class names, background not counted; position = ``category_id``.
        use_difficult: let difficult objects take part in training (``iscrowd`` 0).
        strict: raise for a bad box. Otherwise boxes that leave the image are clipped, boxes with
            nearly nothing inside are dropped, and a warning counts both.
        name: data-set name for messages; the folder and split if None.

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
    )


def register_voc(
    name: str,
    root: str | os.PathLike[str],
    split: str,
    classes: Sequence[str] | None = VOC_CLASSES,
    year: int | None = None,
    use_difficult: bool = False,
    strict: bool = False,
    evaluator: str = "voc",
    ignore: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    counts_from: int = 1,
    annotated: bool = True,
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
        strict: raise for a bad box instead of clipping or dropping it with a warning.
        evaluator: "voc", or "coco" for COCO's metric. "pascal_voc" is "voc" here, and the name by
            which trainers of other projects choose Detectron2's evaluator, which needs ``year``
            2007 or 2012 and knows neither ``rename`` nor ``counts_from`` 0.
        ignore: class names in the files whose objects are left out, as if not annotated.
        rename: what classes of the files are called instead; two of one name are merged.
        counts_from: the number of the first pixel in the files, 1 as in VOC, or 0.
        annotated: False for a test set whose answers are not public, as VOC 2012's: no XML file is
            looked for, there is no average precision, and detections are written in the folders
            that a server takes, see :class:`~frcnn_plugin.evaluation.voc.VOCEvaluator`.

    Raises:
        UserError: if ``name`` is taken, ``classes`` is not a list of distinct names, or the
            evaluator is unknown or does not fit.
    """
    listed, class_map = check_classes(name, classes, ignore, rename)
    VOCSource(
        name=name,
        classes=listed,
        class_map=class_map,
        roots=(os.fspath(root),),
        split=split,
        year=year,
        use_difficult=use_difficult,
        strict=strict,
        evaluator=evaluator,
        counts_from=counts_from,
        annotated=annotated,
    ).register()


def register_builtin() -> None:
    """Register PASCAL VOC 2007 and 2012; a second call changes nothing."""
    for name in (*OFFICIAL_IMAGE_COUNTS, "voc12_test"):
        short_year, split = name.removeprefix("voc").split("_")
        year = 2000 + int(short_year)
        VOCSource(
            name=name,
            roots=(f"VOCdevkit/VOC{year}", f"VOC{year}"),
            split=split,
            classes=VOC_CLASSES,
            year=year,
            official=True,
            # The evaluation server's archive has XML files of some images, and not their objects.
            annotated=name != "voc12_test",
        ).register()


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a registered set of VOC annotation files comes from; calling it loads the set.

    The attributes are as for :func:`register_voc`; no ``classes``: those that occur in the files.
    """

    evaluators: ClassVar[tuple[str, ...]] = ("voc", "coco")

    name: str
    classes: tuple[str, ...] = ()
    class_map: ClassMap = AS_WRITTEN
    year: int | None = None
    use_difficult: bool = False
    strict: bool = False
    evaluator: str = "voc"
    counts_from: int = 1
    annotated: bool = True

    def annotation_folder(self) -> Path:
        """Return the folder of the XML files, which need not exist."""
        raise NotImplementedError

    def files(self) -> tuple[list[str], VOCFolders]:
        """Find the files of the set: its image ids, and the folders of XML files and images."""
        raise NotImplementedError

    def metadata(self) -> dict[str, Any]:
        """Return what the catalog is to know of the set."""
        return {
            "year": self.year,
            "evaluator_type": self.evaluator,
            "annotated": self.annotated,
        }

    def register(self) -> None:
        """Register the set under its name, unless it is; look up its classes if that can be."""
        if self.counts_from not in (0, 1):
            raise UserError(
                f"data set '{self.name}': counts_from must be 0 or 1; got {self.counts_from!r}"
            )
        if register_source(self) and not self.classes and self.annotation_folder().is_dir():
            self.look_up_classes()

    def __call__(self) -> list[dict[str, Any]]:
        """Load the set; see :func:`load_voc_instances`."""
        return load_voc_files(
            *self.files(),
            self.classes or self.look_up_classes(),
            class_map=self.class_map,
            counts_from=self.counts_from,
            use_difficult=self.use_difficult,
            strict=self.strict,
            title=self.name,
            numbered=self.evaluator == "coco",
            annotated=self.annotated,
        )

    def look_up_classes(self) -> tuple[str, ...]:
        """Collect the class names that occur; note them in the metadata and the log.

        Raises:
            UserError: there are none, background is among them, or a file is not readable.
        """
        folder = self.annotation_folder()
        found = classes_in_folder(folder)
        classes = tuple(sorted(set(self.class_map.used(found).values())))
        if absent := self.class_map.unknown(found):
            warn_once(
                f"{self.name}: ignore and rename name {', '.join(absent)}, but the classes in "
                f"{folder} are {', '.join(found)}"
            )
        if background := next(filter(is_background, classes), None):
            raise UserError(
                f"classes: auto found objects of class '{background}' in {folder}: background is "
                f"not annotated; remove them, list the classes, or give ignore: [{background}]"
            )
        if not classes:
            raise UserError(f"{self.name}: ignore leaves no class of {', '.join(found)}")
        # The files may change while a notebook is open.
        replace_metadata(self.name, thing_classes=list(classes))
        logger.info("%s: %d classes: %s", self.name, len(classes), ", ".join(classes))
        return classes


@dataclass(frozen=True, kw_only=True)
class VOCSource(Source):
    """A set in VOC's three folders."""

    evaluators: ClassVar[tuple[str, ...]] = ("voc", "coco", HOST_VOC_EVALUATOR)

    roots: tuple[str, ...]  # tried in this order, relative ones under ``$DETECTRON2_DATASETS``
    split: str  # name of the file in ``ImageSets/Main``, without ``.txt``
    official: bool = False  # PASCAL's own set, so that messages name its archives

    def register(self) -> None:
        """Register the set, see the base class."""
        fits = self.year in (2007, 2012) and self.counts_from == 1 and not self.class_map.rename
        if self.evaluator == HOST_VOC_EVALUATOR and not fits:
            raise UserError(
                f"data set '{self.name}': Detectron2's evaluator {HOST_VOC_EVALUATOR} reads the "
                "XML files itself, by the rules of year 2007 (11 points) or 2012 (area): give one "
                "of these years, and neither rename nor counts_from 0"
            )
        super().register()

    def candidates(self) -> list[Path]:
        """List the folders that are tried, in order."""
        return [resolve_root(root) for root in self.roots]

    def annotation_folder(self) -> Path:
        """Return the folder of the XML files, which need not exist."""
        return inside(self._root(), "Annotations")

    def _root(self) -> Path:
        """Return the first candidate with the split file, or the one to say that it is missing."""
        candidates = self.candidates()
        complete = (root for root in candidates if split_file(root, self.split).is_file())
        return next(complete, next(filter(Path.is_dir, candidates), candidates[-1]))

    def metadata(self) -> dict[str, Any]:
        """Return what the catalog is to know of the set."""
        return {"dirname": str(self.candidates()[0]), "split": self.split, **super().metadata()}

    def files(self) -> tuple[list[str], VOCFolders]:
        """Find the files of the split; note the folder in the metadata as ``dirname``.

        Raises:
            UserError: a folder or file is missing; names it, the accepted layouts, and where the
                data come from.
        """
        root = self._root()
        lists = inside(root, "ImageSets", "Main")
        images = inside(root, "JPEGImages")
        # Annotations may be missing: a test set whose answers are not public.
        for path in (root, lists.parent, lists, split_file(root, self.split), images):
            if not path.exists():
                raise self._missing(path)
        # The folder may change with the environment.
        replace_metadata(self.name, dirname=str(root))
        return files_in_layout(root, self.split)

    def _missing(self, path: Path) -> UserError:
        """Describe a missing ``path``: layouts that are accepted, and where the data come from."""
        lines = [f"{self.name}: missing {path}"]
        if path.parent.name == "Main":
            found = sorted(file.stem for file in path.parent.glob("*.txt") if "_" not in file.stem)
            lines.append(f"Image sets found: {', '.join(found[:10]) or 'none'}")
        if self.official:
            year = f"VOC{self.year}"
            lines += [
                f"DETECTRON2_DATASETS is {root_in_words()}",
                f"Accepted layouts: $DETECTRON2_DATASETS/VOCdevkit/{year} and "
                f"$DETECTRON2_DATASETS/{year}, {_LAYOUT}",
                f"Extract the official archives {_ARCHIVES if self.annotated else _TEST_ARCHIVE} "
                "all into one folder: they merge",
                "Without them: `make demo` writes a small data set and trains on it",
            ]
        else:
            lines.append(
                f"root must be {_LAYOUT}; a relative root is looked for under "
                f"$DETECTRON2_DATASETS ({root_in_words()}), one that starts with ./ or ../ under "
                f"the current folder. For XML files in another layout: xml, not root and split"
            )
        return UserError("\n  ".join(lines))

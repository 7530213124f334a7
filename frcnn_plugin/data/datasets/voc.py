"""Registering VOC-format data sets: ``register_voc`` is the one line a user's own set needs.

    register_voc("my_train", root="/data/my", split="train", classes=["cat", "dog"])

Nothing is read or looked for at import or registration: the folder is found when the set is loaded,
so ``$DETECTRON2_DATASETS`` and the files may come later.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...errors import UserError
from ...host import replace_metadata
from .class_names import check_classes, classes_in_folder
from .roots import resolve_root, root_in_words
from .voc_image_set import index_images, read_image_ids
from .voc_instances import load_voc_files

logger = logging.getLogger(__name__)

# fmt: off
VOC_CLASSES: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)
# fmt: on

EVALUATOR_TYPE = "voc"  # metadata.evaluator_type of every set registered here

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
        read_image_ids(root / "ImageSets" / "Main" / f"{split}.txt"),
        root / "Annotations",
        root / "JPEGImages",
        index_images(root / "JPEGImages"),
        classes,
        use_difficult=use_difficult,
        strict=strict,
        title=name or f"{root.name}/{split}",
        numbered=numbered,
    )


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a registered set of VOC annotation files comes from; calling it loads the set.

    Attributes:
        name: the registered name.
        classes: class names, background not counted; empty: those that occur in the files.
        year: 2007 or 2012, etc.: decides the headline metric (11-point before 2010).
        use_difficult: difficult objects take part in training.
        strict: a bad box raises instead of being dropped.
        evaluator: "voc" or "coco": whose metric.
    """

    name: str
    classes: tuple[str, ...]
    year: int = 2007
    use_difficult: bool = False
    strict: bool = False
    evaluator: str = EVALUATOR_TYPE

    def __call__(self) -> list[dict[str, Any]]:
        """Load the set, in Detectron2's format.

        Raises:
            UserError: a folder or file is missing or unreadable; see ``load_voc_instances``.
        """
        raise NotImplementedError

    def annotation_folder(self) -> Path:
        """Return the folder of the XML files, which need not exist."""
        raise NotImplementedError

    def metadata(self) -> dict[str, Any]:
        """Return what the catalog is to know of the set."""
        return {"year": self.year, "evaluator_type": self.evaluator}

    def options(self, annotations: Path) -> dict[str, Any]:
        """Return the arguments of ``load_voc_files`` that all sources have in common."""
        return {
            "classes": self.class_names(annotations),
            "use_difficult": self.use_difficult,
            "strict": self.strict,
            "numbered": self.evaluator == "coco",
        }

    def class_names(self, annotations: Path) -> tuple[str, ...]:
        """Return the class names; note those that are looked up in the metadata and the log."""
        if self.classes:
            return self.classes
        classes = classes_in_folder(annotations)
        # The files may change while a notebook is open.
        replace_metadata(self.name, thing_classes=list(classes))
        logger.info("%s: %d classes: %s", self.name, len(classes), ", ".join(classes))
        return classes


@dataclass(frozen=True, kw_only=True)
class VOCSource(Source):
    """A set in VOC's three folders. For the other fields see :class:`Source`.

    Attributes:
        roots: folders to try in this order, relative ones under ``$DETECTRON2_DATASETS``.
        split: name of the file in ``ImageSets/Main``, without ``.txt``.
        official: the set is PASCAL's own; messages then name its archives.
    """

    roots: tuple[str, ...]
    split: str
    official: bool = False

    def __call__(self) -> list[dict[str, Any]]:
        """Load the set; see :class:`Source`."""
        root = self.directory()
        return load_voc_instances(
            root, self.split, name=self.name, **self.options(root / "Annotations")
        )

    def annotation_folder(self) -> Path:
        """Return the folder of the XML files, which need not exist."""
        folders = [candidate / "Annotations" for candidate in self.candidates()]
        return next((folder for folder in folders if folder.is_dir()), folders[0])

    def metadata(self) -> dict[str, Any]:
        """Return what the catalog is to know of the set."""
        return {"dirname": str(self.candidates()[0]), "split": self.split, **super().metadata()}

    def candidates(self) -> list[Path]:
        """List the folders that are tried, in order."""
        return [resolve_root(root) for root in self.roots]

    def directory(self) -> Path:
        """Find the folder of the set and note it in the metadata as ``dirname``.

        Returns:
            The first candidate that has the split file.

        Raises:
            UserError: if a folder or file is missing; names it, the accepted layouts, and where
                the data come from.
        """
        candidates = self.candidates()
        for candidate in candidates:
            if self._split_file(candidate).is_file():
                # Annotations may be missing: a test set whose answers are not public.
                if not (candidate / "JPEGImages").is_dir():
                    raise UserError(self._missing(candidate / "JPEGImages"))
                # The folder may change with the environment.
                replace_metadata(self.name, dirname=str(candidate))
                return candidate
        existing = [candidate for candidate in candidates if candidate.is_dir()]
        if not existing:
            raise UserError(self._missing(candidates[-1]))
        for folder in ("ImageSets", "ImageSets/Main"):
            if not (existing[0] / folder).is_dir():
                raise UserError(self._missing(existing[0] / folder))
        raise UserError(self._missing(self._split_file(existing[0])))

    def _split_file(self, root: Path) -> Path:
        return root / "ImageSets" / "Main" / f"{self.split}.txt"

    def _missing(self, path: Path) -> str:
        """Describe a missing ``path``: layouts that are accepted, and where the data come from."""
        lines = [f"{self.name}: missing {path}", f"DETECTRON2_DATASETS is {root_in_words()}"]
        main = path.parent if path.parent.name == "Main" else None
        if main is not None:
            found = sorted(entry.stem for entry in main.glob("*.txt") if "_" not in entry.stem)
            lines.append(f"Image sets that are there: {', '.join(found[:10]) or 'none'}")
        if self.official:
            year = f"VOC{self.year}"
            lines += [
                f"Accepted layouts: $DETECTRON2_DATASETS/VOCdevkit/{year} and "
                f"$DETECTRON2_DATASETS/{year}, {_LAYOUT}",
                f"Extract the official archives {_ARCHIVES} all into one folder: they merge",
                "Without them: `make demo` writes a small data set by itself and trains on it",
            ]
        else:
            lines.append(
                f"root must be {_LAYOUT}; a relative root is looked for under "
                f"$DETECTRON2_DATASETS, one that starts with ./ or ../ under the current folder"
            )
            lines += [
                f"There is {Path(root).absolute()}: write ./{root} for it"
                for root in self.roots
                if not path.exists() and not root.startswith("~") and Path(root).is_dir()
                and resolve_root(root) != Path(root)
            ]  # fmt: skip
        return "\n  ".join(lines)


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
    """Register a VOC-format data set under ``name``.

    Registering the same again changes nothing. Sets the metadata ``thing_classes``, ``dirname``,
    ``split``, ``year`` and ``evaluator_type`` ("voc").

    Args:
        name: the name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        root: folder that holds ``Annotations``, ``ImageSets/Main`` and ``JPEGImages``. "~" is
            expanded; a path that starts with ./ or ../ is taken from the current folder, any other
            relative path from ``$DETECTRON2_DATASETS``.
        split: name of the file in ``ImageSets/Main``, without ``.txt``.
        classes: class names; background is not counted. None: those that occur in any file of
            ``Annotations``, sorted.
        year: from 2010 on the evaluator's headline is the area under the curve, before it the
            11-point mean; None means 2007.
        use_difficult: let difficult objects take part in training. Evaluation ignores them anyway.
        strict: raise on a bad box instead of dropping it with a warning.
        evaluator: "voc", or "coco" for COCO's metric.

    Raises:
        UserError: if ``name`` is taken, or ``classes`` is not a list of distinct names.
    """
    register_source(
        VOCSource(
            name=name,
            roots=(os.fspath(root),),
            split=split,
            classes=() if classes is None else check_classes(name, classes),
            year=2007 if year is None else year,
            use_difficult=use_difficult,
            strict=strict,
            evaluator=evaluator,
        )
    )


def register_source(source: Source) -> None:
    """Register ``source`` under its own name; a no-op if it already is.

    Raises:
        UserError: if the name belongs to something else.
    """
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
        source.class_names(source.annotation_folder())

"""Where a registered set of VOC annotation files comes from: VOC's three folders, or any.

Nothing is read or looked for before a set is loaded, so ``$DETECTRON2_DATASETS`` and the files may
come later than the registration.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...host import replace_metadata
from .arguments import examples, resolve_root, root_in_words, warn_once
from .class_names import AS_WRITTEN, ClassMap, is_background
from .voc_files import classes_in_folder, load_voc_files
from .voc_folders import VOCFolders, choose

logger = logging.getLogger(__name__)

# The image ids of a set, and the folders of its XML files and images.
Files = tuple[list[str], VOCFolders]

_ARCHIVES = "VOCtrainval_06-Nov-2007.tar, VOCtest_06-Nov-2007.tar and VOCtrainval_11-May-2012.tar"
_LAYOUT = "a folder holding Annotations/, ImageSets/Main/ and JPEGImages/"


def _inside(root: Path, *names: str) -> Path:
    """Return a path inside ``root``, which need not exist; its folders may be in other capitals."""
    for name in names:
        path = root / name
        if not path.exists() and root.is_dir():
            others = sorted(p for p in root.iterdir() if p.name.lower() == name.lower())
            path = others[0] if others else path
        root = path
    return root


def split_file(root: Path, split: str) -> Path:
    """Return the list of a split of the set in ``root``, which need not exist."""
    return _inside(root, "ImageSets", "Main") / f"{split}.txt"


def files_in_layout(root: Path, split: str) -> Files:
    """Find the files of a split of the set in ``root``, which is laid out as VOC's.

    Raises:
        UserError: there is no list of the split, or no folder of images.
    """
    folders = VOCFolders(_inside(root, "Annotations"), _inside(root, "JPEGImages"))
    return folders.read_list(split_file(root, split)), folders


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
    evaluator: str = "voc"
    class_map: ClassMap = AS_WRITTEN
    counts_from: int = 1

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
        ids, folders = self.files()
        return load_voc_files(
            ids,
            folders,
            self.classes or self.look_up_classes(folders.annotations),
            class_map=self.class_map,
            counts_from=self.counts_from,
            use_difficult=self.use_difficult,
            strict=self.strict,
            title=self.name,
            numbered=self.evaluator == "coco",
        )

    def look_up_classes(self, annotations: Path) -> tuple[str, ...]:
        """Collect the class names that occur; note them in the metadata and the log.

        Raises:
            UserError: there are none, background is among them, or a file is not readable.
        """
        found = classes_in_folder(annotations)
        classes = tuple(sorted(set(self.class_map.used(found).values())))
        absent = self.class_map.unknown(found)
        if absent:
            warn_once(
                f"{self.name}: ignore and rename name {', '.join(absent)}, but the classes in "
                f"{annotations} are {', '.join(found)}"
            )
        background = next(filter(is_background, classes), None)
        if background:
            raise UserError(
                f"classes: auto found objects of class '{background}' in {annotations}: background "
                f"is not annotated; remove them, list the classes, or give ignore: [{background}]"
            )
        if not classes:
            raise UserError(f"{self.name}: ignore leaves no class of {', '.join(found)}")
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
        folders = [_inside(candidate, "Annotations") for candidate in self.candidates()]
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
            if split_file(root, self.split).is_file():
                # Annotations may be missing: a test set whose answers are not public.
                if not _inside(root, "JPEGImages").is_dir():
                    raise self._missing(root / "JPEGImages")
                # The folder may change with the environment.
                replace_metadata(self.name, dirname=str(root))
                return files_in_layout(root, self.split)
        root = next(filter(Path.is_dir, candidates), candidates[-1])
        for folder in (root, _inside(root, "ImageSets"), _inside(root, "ImageSets", "Main")):
            if not folder.is_dir():
                raise self._missing(folder)
        raise self._missing(split_file(root, self.split))

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
    val_fraction: float = 0.0

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
        folders = VOCFolders(annotations, images)
        if self.image_list:
            return folders.read_list(resolve_root(self.image_list)), folders
        ids = folders.ids
        if not ids:
            raise UserError(f"{self.name}: there are no .xml files in {annotations}")
        lacking = folders.images_without_xml()
        if lacking:
            warn_once(
                f"{self.name}: {len(lacking)} images in {images} have no XML file in "
                f"{annotations} and are left out ({examples(lacking)}); for an image without "
                f"objects write an XML without <object>"
            )
        if self.train_fraction is None:
            return ids, folders
        sides = self._sides(ids)
        if not all(sides.values()):
            raise UserError(
                f"{self.name}: of {len(ids)} XML files, "
                f"{', '.join(f'{len(side)} are for {split}' for split, side in sides.items())}; "
                f"choose other fractions, or give lists"
            )
        return [image_id for image_id in ids if image_id in sides[self.split]], folders

    def _sides(self, ids: list[str]) -> dict[str, set[str]]:
        """Divide the ids into train, val if that has a share, and test, which has the rest."""
        assert self.train_fraction is not None
        sides = {"train": choose(ids, self.train_fraction)}
        if self.val_fraction:
            sides["val"] = choose(ids, self.val_fraction, after=self.train_fraction)
        sides["test"] = set(ids).difference(*sides.values())
        return sides

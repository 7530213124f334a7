"""Registering a folder of VOC XML files that is not laid out as VOC's.

XML files and images may lie in one folder or in two, in sub-folders or not; there need not be an
``ImageSets``. Which files belong to a set is said by a list, by a share of all, or not at all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..loading.image_reader import IMAGE_SUFFIXES
from .class_names import check_classes, xml_files
from .roots import resolve_root, root_in_words
from .voc import EVALUATOR_TYPE, Source, register_source
from .voc_image_set import index_images, read_image_ids, warn_once
from .voc_instances import load_voc_files

_SIDES = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class XMLFolderSource(Source):
    """Where a set comes from; for the fields see ``register_xml_folder`` and :class:`.Source`."""

    xml: str
    images: str
    image_list: str = ""
    split: str = ""
    train_fraction: float | None = None

    def __call__(self) -> list[dict[str, Any]]:
        """Load the set; see :class:`.Source`."""
        annotations, images = (self._folder(key) for key in ("xml", "images"))
        names = index_images(images, subfolders=True)
        ids = self._ids(annotations, names)
        return load_voc_files(
            ids, annotations, images, names, title=self.name, **self.options(annotations)
        )

    def annotation_folder(self) -> Path:
        """Return the folder of the XML files, which need not exist."""
        return resolve_root(self.xml)

    def metadata(self) -> dict[str, Any]:
        """Return what the catalog is to know of the set."""
        return {
            "dirname": str(self.annotation_folder()),
            "split": " ".join(filter(None, (self.image_list, self.split))) or self.name,
            **super().metadata(),
        }

    def _folder(self, key: str) -> Path:
        folder = resolve_root(getattr(self, key))
        if folder.is_dir():
            return folder
        raise UserError(
            f"{self.name}: `{key}` names {folder}, which is no folder. A relative path is looked "
            f"for under $DETECTRON2_DATASETS ({root_in_words()}), one that starts with ./ or ../ "
            f"under the current folder"
        )

    def _ids(self, annotations: Path, image_names: Collection[str]) -> list[str]:
        if self.image_list:
            ids = read_image_ids(resolve_root(self.image_list))
            return [_without_suffix(image_id) for image_id in ids]
        ids = [
            file.relative_to(annotations).with_suffix("").as_posix()
            for file in xml_files(annotations)
        ]
        if not ids:
            raise UserError(f"{self.name}: there are no .xml files in {annotations}")
        lacking = set(image_names) - set(ids)
        if lacking:
            warn_once(
                f"{self.name}: {len(lacking)} images in {resolve_root(self.images)} have no XML "
                f"file in {annotations} and are left out; for an image without objects write an "
                f"XML without <object>"
            )
        if self.train_fraction is None:
            return ids
        train = choose(ids, self.train_fraction)
        chosen = [i for i in ids if (i in train) == (self.split == "train")]
        if not chosen or len(chosen) == len(ids):
            raise UserError(
                f"{self.name}: train_fraction {self.train_fraction} of {len(ids)} XML files leaves "
                f"one side empty; choose another, or give lists"
            )
        return chosen


def register_xml_folder(
    name: str,
    xml: str | os.PathLike[str],
    classes: Sequence[str] | None,
    images: str | os.PathLike[str] | None = None,
    image_list: str = "",
    split: str = "",
    train_fraction: float | None = None,
    year: int | None = None,
    use_difficult: bool = False,
    strict: bool = False,
    evaluator: str = EVALUATOR_TYPE,
) -> None:
    """Register a folder of VOC XML files under ``name``; registering the same again does nothing.

    Args:
        name: the name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        xml: folder of the XML files; sub-folders are searched, too. A relative path is treated as
            by ``register_voc``.
        classes: class names without background; None: those that occur in any XML file of the
            folder, sorted.
        images: folder of the images, named as the XML files or as their ``<filename>`` says, with
            any suffix of ``IMAGE_SUFFIXES``; None: the same folder.
        image_list: text file that lists the images of the set, one per line, with or without
            suffix; "": all XML files.
        split: with ``train_fraction``, "train" or "test": which side this set is.
        train_fraction: share of the XML files, in (0, 1), that is for training. Chosen by a hash
            of the names, so that it does not depend on order, machine or run.
        year: as for ``register_voc``, and so are ``use_difficult`` and ``strict``.
        use_difficult: see there.
        strict: see there.
        evaluator: "voc" or "coco": whose metric.

    Raises:
        UserError: if ``name`` is taken, ``classes`` is no list of distinct names, or the set is not
            clearly described.
    """
    where = f"data set '{name}'"
    if (train_fraction is None) != (split == ""):
        raise UserError(
            f"{where}: split and train_fraction come together, as in train_fraction: 0.8, split: "
            f"train (and the same with split: test for the other set)"
        )
    if train_fraction is not None:
        if split not in _SIDES:
            raise UserError(f"{where}: split must be train or test; got {split!r}")
        if not 0 < train_fraction < 1:
            raise UserError(
                f"{where}: train_fraction must be between 0 and 1; got {train_fraction}"
            )
        if image_list:
            raise UserError(f"{where}: give either a list or a train_fraction, not both")
    register_source(
        XMLFolderSource(
            name=name,
            xml=os.fspath(xml),
            images=os.fspath(xml if images is None else images),
            classes=() if classes is None else check_classes(name, classes),
            image_list=image_list,
            split=split,
            train_fraction=train_fraction,
            year=2007 if year is None else year,
            use_difficult=use_difficult,
            strict=strict,
            evaluator=evaluator,
        )
    )


def choose(ids: Sequence[str], fraction: float) -> set[str]:
    """Choose a fixed share of ``ids``: those whose SHA-256 comes first, rounded to whole ones."""
    ordered = sorted(ids, key=lambda image_id: hashlib.sha256(image_id.encode()).hexdigest())
    return set(ordered[: round(fraction * len(ids))])


def _without_suffix(image_id: str) -> str:
    stem, suffix = os.path.splitext(image_id)
    return stem if suffix.lower() in (*IMAGE_SUFFIXES, ".xml") else image_id

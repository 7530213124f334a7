"""Registering folders of VOC's XML files that are not laid out as VOC's."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import UserError
from .arguments import examples, resolve_root, root_in_words, warn_once
from .class_names import check_classes
from .voc import Source
from .voc_files import VOCFolders, divide


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
    year: int | None = None,
    use_difficult: bool = False,
    strict: bool = False,
    evaluator: str = "voc",
) -> None:
    """Register a folder of VOC XML files under ``name``; registering the same again does nothing.

    Args:
        name: the name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        xml: folder of the XML files; sub-folders are searched, too. A relative path is treated as
            by :func:`~.voc.register_voc`.
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
        ignore: see :func:`~.voc.register_voc`.
        rename: see there.
        counts_from: see there.
        year: see there.
        use_difficult: see there.
        strict: see there.
        evaluator: see there.

    Raises:
        UserError: if ``name`` is taken, ``classes`` is not a list of distinct names, or the set is
            not clearly described.
    """
    where = f"data set '{name}'"
    if bool(split) != (train_fraction is not None) or (val_fraction and not split):
        raise UserError(
            f"{where}: split and train_fraction come together, as in train_fraction: 0.8, split: "
            f"train (and the same with split: test for the other set)"
        )
    parts = ("train", "val", "test") if val_fraction else ("train", "test")
    if split and split not in parts:
        raise UserError(
            f"{where}: split must be one of {', '.join(parts)}; got {split!r}. val is one with a "
            f"val_fraction, the same in the entries of all parts"
        )
    if train_fraction is not None and not 0 < train_fraction <= train_fraction + val_fraction < 1:
        raise UserError(
            f"{where}: train_fraction and val_fraction must leave something for test; got "
            f"{train_fraction} and {val_fraction}"
        )
    if split and image_list:
        raise UserError(f"{where}: give either a list or a train_fraction, not both")
    listed, class_map = check_classes(name, classes, ignore, rename)
    XMLFolderSource(
        name=name,
        classes=listed,
        class_map=class_map,
        xml=os.fspath(xml),
        images=os.fspath(xml if images is None else images),
        image_list=image_list,
        split=split,
        train_fraction=train_fraction,
        val_fraction=val_fraction,
        counts_from=counts_from,
        year=year,
        use_difficult=use_difficult,
        strict=strict,
        evaluator=evaluator,
    ).register()


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

    def files(self) -> tuple[list[str], VOCFolders]:
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
            raise UserError(
                f"{self.name}: there are no .xml files in {annotations}: name their folder"
            )
        lacking = folders.images_without_xml()
        if lacking:
            warn_once(
                f"{self.name}: {len(lacking)} images in {images} have no XML file in "
                f"{annotations} and are left out ({examples(lacking)}); for an image without "
                f"objects write an XML without <object>"
            )
        if self.train_fraction is None:
            return ids, folders
        shares = {"train": self.train_fraction}
        if self.val_fraction:
            shares["val"] = self.val_fraction
        parts = divide(ids, {**shares, "test": 1 - sum(shares.values())})
        if not all(parts.values()):
            numbers = ", ".join(f"{len(chosen)} are for {part}" for part, chosen in parts.items())
            raise UserError(
                f"{self.name}: of {len(ids)} XML files, {numbers}; choose other fractions, or give "
                f"lists"
            )
        return [image_id for image_id in ids if image_id in parts[self.split]], folders

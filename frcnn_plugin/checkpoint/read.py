"""Read files of weights, whichever program wrote them, and look into checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..atomic_files import replacing, sha256
from ..errors import UserError
from .caffe.caffemodel import read_caffemodel
from .caffe.conversion import convert_caffe
from .conversion import (
    KNOWN,
    LAYOUTS,
    Conversion,
    convert_torchvision,
    describe,
    looks_like_torchvision,
)
from .metadata import KEY, Metadata

# Goes up when a conversion gives other weights than before.
CONVERTER_VERSION = 1


@dataclass(frozen=True)
class Peek:
    """What is in a checkpoint; a model is not needed to read it."""

    content: dict[str, Any]
    """All entries by name. Tensors are mapped: their values are read when they are used."""

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The model's tensors by name, which may be a level deeper in the file."""
        content: Any = self.content
        for key in ("model", "state_dict"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
        return {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}

    @property
    def metadata(self) -> Metadata | None:
        """What the checkpoint says about itself; None if it says nothing."""
        return Metadata.from_dict(self.content.get(KEY))

    @property
    def iteration(self) -> int | None:
        """The last iteration that was trained; None if the file is not from a training run."""
        iteration = self.content.get("iteration")
        return iteration if isinstance(iteration, int) else None

    @property
    def stage(self) -> int:
        """Which of the four stages the checkpoint is from, 1 to 4; 0 also for the final one."""
        try:
            # "step" is what the hook has always called it in its files.
            stage = self.content["trainer"]["hooks"]["FourStepHook"]["step"]
        except (KeyError, TypeError):
            return 0
        return stage if isinstance(stage, int) else 0


def peek(path: str | os.PathLike[str]) -> Peek:
    """Look into a checkpoint without building anything.

    Nothing in the file is executed, and weights are not read before they are used.

    Args:
        path: a file of ``torch.save``, of this plugin or of others.

    Raises:
        UserError: the file is missing or damaged, or is no checkpoint.
    """
    path = _existing(path)
    try:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged file raises whatever its bytes happen to say
        raise UserError(
            f"{path} is damaged, or holds more than weights ({type(e).__name__}): copy or download "
            "it again"
        ) from e
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not weights by name")
    return Peek(dict(content))


def read_weights(path: str | os.PathLike[str], *, layout: str = "") -> Conversion:
    """Read a file and convert it.

    It is a caffemodel, a VGG16 in torchvision's names, or a checkpoint of this plugin, which stays
    as it is.

    Args:
        path: file.
        layout: one of :data:`.conversion.LAYOUTS`, for a file in torchvision's names whose digest
            is unknown.

    Returns:
        weights, some of them views of the mapped file, and metadata with the file's SHA-256.

    Raises:
        UserError: the file is missing, damaged, or of an unknown kind; names it.
    """
    path = _existing(path)
    with path.open("rb") as file:
        # torch.save writes a zip archive, or a pickle.
        if file.read(2) not in (b"PK", b"\x80\x02"):
            return convert_caffemodel(path)
    found = peek(path)
    state, metadata = found.weights, found.metadata
    if looks_like_torchvision(state):
        return convert_torchvision_file(path, state, layout=layout)
    if metadata is None and not any(name.startswith("backbone.") for name in state):
        raise UserError(
            f"{path} is none of the kinds that can be converted; its weights are called "
            f"{', '.join(list(state)[:4])} ..."
        )
    rows = [(name, name, describe(tensor)) for name, tensor in state.items()]
    return Conversion("checkpoint", state, metadata or Metadata("detector"), rows)


def read_metadata(path: str | os.PathLike[str]) -> Metadata | None:
    """Return what a file of weights says about itself, without reading weights where possible.

    Args:
        path: as for :func:`read_weights`; also a ``.pkl`` of Detectron2, which says nothing.
    """
    if _existing(path).suffix == ".pkl":
        return None
    try:
        metadata = peek(path).metadata
    except UserError:  # another kind of file, or a damaged one: read_weights judges
        metadata = None
    return metadata or read_weights(path).metadata


def convert_caffemodel(path: str | os.PathLike[str]) -> Conversion:
    """Read and convert a caffemodel; see :func:`read_weights`."""
    layers = read_caffemodel(path)
    with _naming(path):
        return _with_source(convert_caffe(layers), path, "caffemodel", sha256(path))


def convert_torchvision_file(
    path: str | os.PathLike[str], state: Mapping[str, torch.Tensor], *, layout: str = ""
) -> Conversion:
    """Convert a file in torchvision's names that holds ``state``; see :func:`read_weights`."""
    digest = sha256(path)
    layout = layout or KNOWN.get(digest[:8], "")
    if not layout:
        raise UserError(
            f"{path} has torchvision's names. Both torchvision's own weights (RGB images) and "
            "Caffe's saved in its names, such as vgg16_caffe.pth (BGR), have these, and it is none "
            f"of the known files (SHA-256 {digest}). Say what it is: frcnn weights convert "
            f"{path} OUTPUT.pth --layout {' | '.join(LAYOUTS)}"
        )
    with _naming(path):
        return _with_source(convert_torchvision(state, LAYOUTS[layout]), path, layout, digest)


def save_weights(path: str | os.PathLike[str], conversion: Conversion) -> None:
    """Write a checkpoint that any Detectron2 tool loads; it appears only when complete."""
    content = {"model": conversion.state_dict, KEY: conversion.metadata.to_dict()}
    # Opened here: PyTorch writes the name it is given into the file.
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    return path


@contextmanager
def _naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the name of the file before what a conversion complains about."""
    try:
        yield
    except UserError as e:
        raise UserError(f"{path}: {e}") from e


def _with_source(
    result: Conversion, path: str | os.PathLike[str], layout: str, digest: str
) -> Conversion:
    source: dict[str, str | int] = {
        "file": Path(path).name,
        "sha256": digest,
        "layout": layout,
        "converter": CONVERTER_VERSION,
    }
    result.metadata = replace(result.metadata, source=source)
    return result

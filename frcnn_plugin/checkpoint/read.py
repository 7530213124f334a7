"""Read files of weights, whichever program wrote them, and look into checkpoints."""

from __future__ import annotations

import os
import re
import shlex
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager

from ..atomic_files import replacing, sha256
from ..errors import UserError
from ..plain_pickle import load_plain
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

# Where a file may have its weights, if not by name at once; one may be in the other.
_WRAPPERS = ("model", "state_dict", "model_state")


@dataclass(frozen=True)
class Peek:
    """What is in a checkpoint; a model is not needed to read it."""

    content: dict[str, Any]  # all entries by name, the weights as "model"

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The model's tensors by name."""
        weights: dict[str, torch.Tensor] = self.content["model"]
        return weights

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
    """Look into a checkpoint: its weights are mapped, and read when they are used.

    So they are not checked for bits that have flipped; :func:`read_checkpoint` does that. Errors
    and the rest are the same.
    """
    return Peek(_read(existing(path), mapped=True, checked=False))


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint and check it against the checksums in it.

    Nothing in the file is executed, and memory stays in proportion to it. The check takes 0.3 s for
    500 MB. Files without checksums are those before torch 1.6, and ``.pkl``.

    Args:
        path: a file of ``torch.save``, of this plugin or of others, a ``.pkl`` of Detectron or of
            Detectron2's model zoo, or a ``.pyth`` of pycls.

    Returns:
        Its entries by name. "model" has the weights, whatever they were called; a prefix
        "module.", which parallel training leaves, is gone.

    Raises:
        UserError: the file is missing or damaged, or is no checkpoint.
    """
    return _read(existing(path), mapped=False, checked=True)


def _read(path: Path, *, mapped: bool, checked: bool) -> dict[str, Any]:
    with path.open("rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
    try:
        if path.suffix == ".pkl":
            content = _tensors_of_arrays(load_plain(path))
        elif is_archive:
            _check_archive(path, checksums=checked)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        elif tarfile.is_tarfile(path):  # from before 2017; torch before 2.6 may run code in it
            raise ValueError
        else:  # the format before torch 1.6
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_memory(content, path.stat().st_size)
    except UserError:
        raise
    except Exception as e:  # a damaged file raises whatever its bytes happen to say
        # What torch, or load_plain, says of classes and functions that it does not know.
        other = re.search(r"(?:GLOBAL|it contains) ([\w.]+)", str(e))
        if other:
            raise UserError(
                f"{path} holds more than weights ({other[1]}), which could run code: in the "
                "program that wrote it, save the weights alone, torch.save(model.state_dict(), ...)"
            ) from e
        raise UserError(
            f"{path} is damaged, or no checkpoint ({type(e).__name__}): a .pth, .pkl or "
            ".caffemodel file of weights is needed; copy or download it again"
        ) from e
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not weights by name")
    return _with_model(path, dict(content), required=checked)


def _check_archive(path: Path, *, checksums: bool) -> None:
    """Compare what ``torch.save`` put into a file with the checksums there, which torch ignores."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        # torch.save never compresses; torch cannot map such a file, and a small one could be huge.
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise UserError(f"{path} is compressed: unpack it, or save it with torch.save")
        # With torch.serialization.set_crc32_options(False) there are none.
        if checksums and any(member.CRC for member in members):
            try:
                damaged = archive.testzip()
            except zipfile.BadZipFile as e:
                damaged = str(e)
            if damaged:
                raise UserError(
                    f"{path} is damaged: the checksum of {damaged} in it is not that of its bytes, "
                    "so weights have changed since they were saved. Copy or download it again, or "
                    "take another checkpoint"
                )


def _check_memory(content: object, most: int) -> None:
    """Raise a ValueError if tensors are larger than the file: numbers that are not in it."""
    storages = {}
    for tensor in _tensors(content, set()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.is_meta or tensor.numel() * tensor.element_size() > storage.nbytes():
            raise ValueError
    if sum(storages.values()) > most:
        raise ValueError


def _tensors(value: object, seen: set[int]) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item, seen)


def _tensors_of_arrays(content: Any) -> dict[str, Any]:
    """Turn the content of a ``.pkl`` into that of a checkpoint, as Detectron2 does."""
    if "model" not in content or "__author__" not in content:  # of Caffe2, or Detectron
        blobs = content.get("blobs", content)
        blobs = {name: blob for name, blob in blobs.items() if not name.endswith("_momentum")}
        content = {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of arrays that are read-only
        model = {
            name: torch.from_numpy(blob) if isinstance(blob, np.ndarray) else blob
            for name, blob in content["model"].items()
        }
    return {**content, "model": model}


def _with_model(path: Path, content: dict[str, Any], *, required: bool) -> dict[str, Any]:
    """Put the weights under "model", in their own names, and leave out what is no tensor."""
    state: Any = content
    heuristics: dict[str, Any] = {}
    for key in _WRAPPERS:
        if isinstance(state.get(key), Mapping):
            state = state[key]
            if key == "model_state":  # of pycls
                heuristics = {"__author__": "pycls", "matching_heuristics": True}
    # Changed in place: a state dict of torch has versions of its modules as an attribute.
    state = {**state} if state is content or not isinstance(state, dict) else state
    for name in [n for n, value in state.items() if not isinstance(value, torch.Tensor)]:
        del state[name]
    if not state and required:
        raise UserError(f"{path} holds no weights; its entries: {', '.join(map(str, content))}")
    rest = {k: v for k, v in content.items() if k not in (*_WRAPPERS, *state)}
    parallel = all(str(name).startswith("module.") for name in state)
    for name in list(state):
        new = str(name).removeprefix("module.") if parallel else str(name)
        if new.startswith("features.module."):  # torchvision's VGG16, trained in parallel
            new = new.replace("features.module.", "features.", 1)
        state[new] = state.pop(name)
    return {**rest, **heuristics, "model": state}


def read_weights(path: str | os.PathLike[str], *, layout: str = "") -> Conversion:
    """Read a file and convert it.

    It is a caffemodel, a VGG16 in torchvision's names, which is of ``layout``, one of
    :data:`.conversion.LAYOUTS`, if its digest is unknown, or a checkpoint of this plugin, which
    stays as it is.

    Returns:
        weights, some of them views of the mapped file, and metadata with the file's SHA-256.

    Raises:
        UserError: the file is missing, damaged, or of an unknown kind; names it.
    """
    path = existing(path)
    with path.open("rb") as file:
        # torch.save writes a zip archive, or a pickle.
        if file.read(2) not in (b"PK", b"\x80\x02") and path.suffix != ".pkl":
            return convert_caffemodel(path)
    found = Peek(_read(path, mapped=True, checked=True))
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

    A ``.pkl`` of Detectron2 says nothing; the other kinds are those of :func:`read_weights`.
    """
    if existing(path).suffix == ".pkl":
        return None
    try:
        metadata = peek(path).metadata
    except UserError:  # another kind of file, or a damaged one: read_weights judges
        metadata = None
    return metadata or read_weights(path).metadata


def convert_caffemodel(path: str | os.PathLike[str]) -> Conversion:
    """Read and convert a caffemodel; see :func:`read_weights`."""
    layers = read_caffemodel(path)
    return _converted(path, "caffemodel", sha256(path), lambda: convert_caffe(layers))


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
            f"of the known files (SHA-256 {digest}). Say what it is when you convert it: "
            f"frcnn weights convert {shlex.quote(str(path))} converted.pth --layout torchvision "
            "(or --layout caffe-pth, or torchvision-features), and give converted.pth instead"
        )
    return _converted(path, layout, digest, lambda: convert_torchvision(state, LAYOUTS[layout]))


def save_weights(path: str | os.PathLike[str], conversion: Conversion) -> None:
    """Write a checkpoint that any Detectron2 tool loads; it appears only when complete."""
    content = {"model": conversion.state_dict, KEY: conversion.metadata.to_dict()}
    # Opened here: PyTorch writes the name it is given into the file.
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def last_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """Return the checkpoint that a run's folder names as its last, which may be missing.

    None if it names none. A UserError, if the note is damaged, says how to mend it.
    """
    note = Path(folder, "last_checkpoint")
    if not note.is_file():
        return None
    with note.open("rb") as file:
        content = file.read(4096)
    try:
        name = content.decode().strip()
    except UnicodeDecodeError:
        name = ""
    if not name or not name.isprintable():
        raise UserError(f"there is no checkpoint named in {note}. {name_another(folder)}")
    return note.parent / name


def name_another(folder: str | os.PathLike[str]) -> str:
    """Say how to name another checkpoint that a run is resumed from."""
    others = sorted(f.name for f in Path(folder).glob("*.pth"))
    return (
        f"{Path(folder, 'last_checkpoint')} names the file that a run is resumed from; write the "
        "name of another one into it to continue from there "
        f"({', '.join(others) or 'there is none'})"
    )


def local_file(name: str) -> str:
    """Return the path of a file; of an address, the file that is downloaded, or a UserError."""
    if "://" not in name:
        return name
    try:
        return str(PathManager.get_local_path(name))
    except UserError:
        raise
    except Exception as error:  # whatever a network, or the handler of an address, raises
        raise UserError(
            f"{name} cannot be downloaded ({error}): check the address and the network, or give a "
            "file"
        ) from error


def existing(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file that is there and may be read; else raise a UserError."""
    path = Path(path)
    if path.is_dir():
        # A finished run's first of all; others by name.
        there = sorted(path.glob("*.pth"), key=lambda f: (f.name != "model_final.pth", f.name))
        inside = there[0].name if there else "model_final.pth"
        raise UserError(f"{path} is a folder: name a file in it, such as {path / inside}")
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} cannot be read: you have no permission to read it")
    if path.suffix in (".onnx", ".torchscript"):
        raise UserError(f"{path} is an exported detector: give the checkpoint that it is from")
    return path


def _converted(
    path: str | os.PathLike[str], layout: str, digest: str, convert: Callable[[], Conversion]
) -> Conversion:
    """Convert; the file is named in what is complained about, and in the metadata."""
    try:
        result = convert()
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    source: dict[str, str | int] = {
        "file": Path(path).name,
        "sha256": digest,
        "layout": layout,
        "converter": CONVERTER_VERSION,
    }
    result.metadata = replace(result.metadata, source=source)
    return result

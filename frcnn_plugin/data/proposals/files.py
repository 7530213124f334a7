"""Proposal files: Detectron2's pickle format, written whole, read without executing anything.

A file holds ``{"ids": [str], "boxes": [(N, 4) float32], "objectness_logits": [(N,) float32],
"bbox_mode": 0}``, one entry per image of one data set. Boxes are continuous XYXY in pixels of the
original image. It is what ``DATASETS.PROPOSAL_FILES_TRAIN`` and ``_TEST`` name, one file per data
set.

Detectron2 sorts by the logits when it loads a file and does not keep the order of equal ones.
"""

import codecs
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ...atomic_files import replacing
from ...errors import UserError

MAKE_PROPOSALS = "make one with `frcnn proposals dump` or `frcnn proposals convert`"
_OLD_KEYS = {"indexes": "ids", "scores": "objectness_logits"}  # of Detectron; Detectron2 reads both


@dataclass(frozen=True)
class Proposals:
    """Proposals of one data set; the three lists have one entry per image, in the same order.

    Attributes:
        ids: image ids, each once.
        boxes: (N, 4) float32 each, continuous XYXY, pixels of the original image; N may be 0.
        logits: (N,) float32 each, higher is better.
    """

    ids: list[str]
    boxes: list[npt.NDArray[np.float32]]
    logits: list[npt.NDArray[np.float32]]

    def reordered(self, ids: Sequence[str]) -> "Proposals":
        """Return the entries of ``ids``, which must all be here, in that order."""
        index_of = {image_id: index for index, image_id in enumerate(self.ids)}
        order = [index_of[image_id] for image_id in ids]
        return Proposals(list(ids), [self.boxes[i] for i in order], [self.logits[i] for i in order])


def save_proposals(
    path: str | os.PathLike[str],
    ids: Sequence[object],
    boxes: Sequence[npt.ArrayLike],
    logits: Sequence[npt.ArrayLike],
) -> None:
    """Write a proposal file, whole or not at all.

    Args:
        path: the file; its folder is created if need be. An existing file is replaced in one step.
        ids: image ids; numbers become strings.
        boxes: (N, 4) each, continuous XYXY, pixels of the original image.
        logits: (N,) each.

    Raises:
        UserError: if the file cannot be written (disk full, no permission).
        ValueError: if the lists or their entries do not fit together.
    """
    names = [str(image_id) for image_id in ids]
    arrays = [_as_arrays(*pair) for pair in zip(boxes, logits, strict=True)]
    if len(arrays) != len(names):
        raise ValueError(f"{len(names)} ids but {len(arrays)} boxes")
    content = {
        "ids": names,
        "boxes": [pair[0] for pair in arrays],
        "objectness_logits": [pair[1] for pair in arrays],
        # A number, so that reading the file needs no Detectron2.
        "bbox_mode": int(BoxMode.XYXY_ABS),
    }
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            pickle.dump(content, file, protocol=4)
    except OSError as error:
        raise UserError(f"cannot write proposal file {path}: {error}") from error


def load_proposals(path: str | os.PathLike[str]) -> Proposals:
    """Read a proposal file; nothing in it is executed.

    Args:
        path: a file in Detectron2's format, local or an address that its PathManager knows.
            Detectron's names of the keys and XYWH_ABS boxes are accepted, files of Python 2, of
            either numpy series and of all pickle protocols too.

    Returns:
        Its entries, in its order.

    Raises:
        UserError: for a missing, damaged or foreign file.
    """
    local = Path(PathManager.get_local_path(os.fspath(path)))
    if not local.is_file():
        raise UserError(f"there is no proposal file {path}; {MAKE_PROPOSALS}")
    try:
        with local.open("rb") as file:
            content = _Unpickler(file, encoding="latin1").load()
    except OSError as error:
        raise UserError(f"cannot read proposal file {path}: {error}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise UserError(
            f"{path} is damaged, or no proposal file ({str(error) or type(error).__name__}); "
            f"{MAKE_PROPOSALS}"
        ) from error
    return _parse(content, path)


class _Unpickler(pickle.Unpickler):
    """Give a file the few classes and functions that proposals need, and nothing that runs code."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module.replace("numpy._core.", "numpy.core."), name]  # numpy 2, numpy 1
        except KeyError:
            raise pickle.UnpicklingError(f"it contains {module}.{name}") from None


# Nothing here takes memory or a function from its arguments. numpy restores its types without a
# check; a file made to exploit that does the same to Detectron2, which loads it once more.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,  # only named as an argument of the next
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: np.empty(0),  # filled by its state
    ("numpy", "dtype"): np.dtype,
    # An image id that numpy read from a text file.
    ("numpy.core.multiarray", "scalar"): np.float32(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0],
    ("_codecs", "encode"): codecs.encode,  # bytes, as protocols 0 to 2 write them
    ("__builtin__", "bytes"): lambda: b"",  # without arguments: a number would ask for memory
    ("detectron2.structures.boxes", "BoxMode"): BoxMode,
}


def _parse(content: Any, path: str | os.PathLike[str]) -> Proposals:
    """Turn what the file holds into entries of the right types."""
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, no proposals; {MAKE_PROPOSALS}")
    content = {_OLD_KEYS.get(key, key): value for key, value in content.items()}
    keys = ("ids", "boxes", "objectness_logits")
    missing = [key for key in keys if key not in content]
    if missing:
        found = ", ".join(str(key) for key in list(content)[:5]) or "nothing"
        raise UserError(
            f"{path} is no proposal file: it has no {', '.join(missing)} (but {found}); "
            f"{MAKE_PROPOSALS}"
        )
    try:
        counts = [len(content[key]) for key in keys]
        mode = BoxMode(content.get("bbox_mode", BoxMode.XYXY_ABS))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is no proposal file: {error}; {MAKE_PROPOSALS}") from error
    if len(set(counts)) > 1:
        raise UserError(
            f"{path} is inconsistent: {counts[0]} ids, {counts[1]} arrays of boxes and "
            f"{counts[2]} of logits; {MAKE_PROPOSALS}"
        )
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        raise UserError(
            f"{path}: boxes are in mode {mode.name}; XYXY_ABS is needed; {MAKE_PROPOSALS}"
        )
    result = Proposals([str(image_id) for image_id in content["ids"]], [], [])
    for image_id, boxes, logits in zip(*(content[key] for key in keys), strict=True):
        try:
            pair = _as_arrays(boxes, logits)
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}, image {image_id}: {error}; {MAKE_PROPOSALS}") from error
        if mode == BoxMode.XYWH_ABS:
            pair[0][:, 2:] += pair[0][:, :2]
        result.boxes.append(pair[0])
        result.logits.append(pair[1])
    return result


def _as_arrays(
    boxes: npt.ArrayLike, logits: npt.ArrayLike
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Copy one image's boxes and logits to float32; ValueError if the shapes do not fit."""
    box_array, logit_array = _copy(boxes), _copy(logits)
    if box_array.size == 0:
        box_array = box_array.reshape(0, 4)
    if box_array.ndim != 2 or box_array.shape[1] != 4 or logit_array.shape != box_array.shape[:1]:
        raise ValueError(
            f"boxes of shape {box_array.shape} and logits of shape {logit_array.shape}, but they "
            f"must be (N, 4) and (N,)"
        )
    return box_array, logit_array


def _copy(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    # Not np.array(values, ...): that keeps the dtype object of an array that came from another
    # process, and the same boxes would not always give the same file.
    source = np.asarray(values)
    target = np.empty(source.shape, dtype=np.float32)
    target[...] = source
    return target

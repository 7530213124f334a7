"""Proposal files: Detectron2's format, written whole, read without executing anything, checked.

A file holds ``{"ids": [str], "boxes": [(N, 4) float32], "objectness_logits": [(N,) float32],
"bbox_mode": 0}``, one entry per image of one data set. Boxes are continuous XYXY in pixels of the
original image. It is what ``DATASETS.PROPOSAL_FILES_TRAIN`` and ``_TEST`` name, one file per data
set.

Detectron2 sorts by the logits when it loads a file and does not keep the order of equal ones.
"""

import logging
import os
import pickle
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ...atomic_files import replacing
from ...errors import UserError
from ...plain_pickle import load_plain
from ..datasets.voc import OFFICIAL_IMAGE_COUNTS

logger = logging.getLogger(__name__)

MAKE_PROPOSALS = "make one with `frcnn proposals dump` or `frcnn proposals convert`"
_BORDER = 1.0  # pixels that a box may stick out: py-faster-rcnn's decoding grows boxes by one
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
        return _parse(load_plain(local), local.stat().st_size)
    except OSError as error:
        raise UserError(f"cannot read proposal file {path}: {error}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to say
        raise UserError(
            f"{path} is damaged, or not a proposal file ({str(error) or type(error).__name__}); "
            f"{MAKE_PROPOSALS}"
        ) from error


def _parse(content: Any, size: int) -> Proposals:
    """Turn what a file of `size` bytes holds into entries of the right types.

    ValueError says what is wrong. Each number must have a byte at least: a list that is in a file
    once may be in other lists many times, and arrays of these would fill the memory.
    """
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    content = {_OLD_KEYS.get(key, key): value for key, value in content.items()}
    keys = ("ids", "boxes", "objectness_logits")
    missing = [key for key in keys if key not in content]
    if missing:
        found = ", ".join(str(key) for key in list(content)[:5]) or "nothing"
        raise ValueError(f"it has no {', '.join(missing)} (but {found})")
    ids, boxes, logits = (content[key] for key in keys)
    if not len(ids) == len(boxes) == len(logits):
        raise ValueError(f"{len(ids)} ids, {len(boxes)} arrays of boxes, {len(logits)} of logits")
    mode = BoxMode(content.get("bbox_mode", BoxMode.XYXY_ABS))
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        raise ValueError(f"boxes are in mode {mode.name}; XYXY_ABS is needed")
    result = Proposals([str(image_id) for image_id in ids], [], [])
    for image_id, *pair in zip(ids, boxes, logits, strict=True):
        try:
            size -= sum(map(_count, pair))
            if size < 0:
                raise ValueError("the file repeats the same values again and again")
            box_array, logit_array = _as_arrays(*pair)
        except (TypeError, ValueError) as error:
            raise ValueError(f"image {image_id}: {error}") from error
        if mode == BoxMode.XYWH_ABS:
            box_array[:, 2:] += box_array[:, :2]
        result.boxes.append(box_array)
        result.logits.append(logit_array)
    return result


def _count(values: Any) -> int:
    """Return how many numbers an array or a list of rows has."""
    if isinstance(values, np.ndarray):
        return values.size
    rows = [row if isinstance(row, list | np.ndarray) else [row] for row in values]
    if any(isinstance(item, list | np.ndarray) for row in rows for item in row):
        raise ValueError("rows of rows")
    return sum(map(len, rows))


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


# ---- Whether proposals fit their data set -------------------------------------------------------


def check_proposals(
    path: str | os.PathLike[str], dataset_dicts: Sequence[Mapping[str, Any]], dataset_name: str
) -> Proposals:
    """Read a proposal file of a whole data set; return its entries in the order of the set.

    Raises:
        UserError: if the file cannot be read, or as ``validate_proposals``.
    """
    proposals = load_proposals(path)
    validate_proposals(proposals, dataset_dicts, dataset_name, f"proposal file {path}")
    ordered = proposals.reordered([str(item["image_id"]) for item in dataset_dicts])
    counts = [len(logits) for logits in ordered.logits] or [0]
    logger.info(
        "%s: %d images of %s, %.1f proposals per image (%d to %d)",
        path, len(ordered.ids), dataset_name, np.mean(counts), min(counts), max(counts),
    )  # fmt: skip
    return ordered


def validate_proposals(
    proposals: Proposals,
    dataset_dicts: Sequence[Mapping[str, Any]],
    dataset_name: str,
    source: str,
) -> None:
    """Check that every image of the data set has an entry with possible boxes, and no other.

    Images without ``width`` and ``height`` are not compared with their boxes. Messages begin with
    ``source``, what the entries come from.

    Raises:
        UserError: for a missing, extra or repeated image; a box that is not finite, has no area
            or lies more than a pixel outside its image; a logit that is not finite.
    """
    ids = [str(item["image_id"]) for item in dataset_dicts]
    _check_ids(proposals.ids, ids, dataset_name, source)
    if ids and not any(len(logits) for logits in proposals.logits):
        raise UserError(f"{source} has no box in any of its {len(ids)} images; {MAKE_PROPOSALS}")
    size_of = {
        str(item["image_id"]): (float(item["width"]), float(item["height"]))
        for item in dataset_dicts
        if "width" in item and "height" in item
    }
    for image_id, boxes, logits in zip(
        proposals.ids, proposals.boxes, proposals.logits, strict=True
    ):
        problem = _find_problem(boxes, logits, size_of.get(image_id, (np.inf, np.inf)))
        if problem:
            raise UserError(f"{source}, image {image_id} of {dataset_name}: {problem}")


def check_covered(
    found: Collection[str], wanted: Sequence[str], dataset_name: str, source: str
) -> None:
    """Raise a UserError, which begins with ``source``, if ``wanted`` image ids have no entry."""
    covered = set(found)
    missing = [image_id for image_id in wanted if image_id not in covered]
    if not missing:
        return
    # The number of images gives away PASCAL's own sets.
    guess = [
        name
        for name, count in OFFICIAL_IMAGE_COUNTS.items()
        if count == len(covered) and name != dataset_name
    ]
    hint = f"; was it made for {guess[0]}?" if guess else ""
    raise UserError(
        f"{source} has no entry for image {missing[0]} of {dataset_name} (it covers {len(covered)} "
        f"images, {len(wanted) - len(missing)} of them of this data set{hint})"
    )


def _check_ids(found: list[str], wanted: list[str], dataset_name: str, source: str) -> None:
    check_covered(found, wanted, dataset_name, source)
    known = set(wanted)
    extra = [image_id for image_id in found if image_id not in known]
    if extra:
        raise UserError(
            f"{source} has entries for {len(extra)} images that are not in {dataset_name} (first: "
            f"{extra[0]}); each data set needs its own file"
        )
    if len(found) > len(known):
        twice = Counter(found).most_common(1)[0][0]
        raise UserError(f"{source} has more than one entry for image {twice}; {MAKE_PROPOSALS}")


def _find_problem(
    boxes: npt.NDArray[np.float32], logits: npt.NDArray[np.float32], size: tuple[float, float]
) -> str | None:
    """Say what is wrong with the boxes of one image of ``size`` (width, height)."""
    if len(boxes) == 0:
        return None
    infinite = {"box": ~np.isfinite(boxes).all(axis=1), "logit": ~np.isfinite(logits)}
    for name, bad in infinite.items():
        if bad.any():
            return f"{name} {bad.argmax()} is not finite; the weights diverged, or {MAKE_PROPOSALS}"
    flat = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    if flat.any():
        index = int(flat.argmax())
        return (
            f"box {index} {boxes[index].tolist()} has no area; boxes are x1, y1, x2, y2 with "
            f"x2 > x1 and y2 > y1"
        )
    beyond = np.maximum(-boxes[:, :2], boxes[:, 2:] - np.array(size)).max(axis=1)
    if beyond.max() > _BORDER:
        index = int(beyond.argmax())
        return (
            f"box {index} {boxes[index].tolist()} lies {beyond[index]:.1f} px outside the image "
            f"of {size[0]:.0f} x {size[1]:.0f}; boxes must be in pixels of the original image, "
            f"not of the resized one, in the order x1, y1, x2, y2"
        )
    return None

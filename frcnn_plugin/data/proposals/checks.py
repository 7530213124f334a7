"""Whether proposals fit their data set: one entry per image, with boxes that can be."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UserError
from ..datasets.voc import OFFICIAL_IMAGE_COUNTS
from .files import MAKE_PROPOSALS, Proposals, load_proposals

logger = logging.getLogger(__name__)

_BORDER = 1.0  # pixels that a box may stick out: py-faster-rcnn's decoding grows boxes by one


def check_proposals(
    path: str | os.PathLike[str], dataset_dicts: Sequence[Mapping[str, Any]], dataset_name: str
) -> Proposals:
    """Read a proposal file and check that it is one of this data set.

    Args:
        path: the file.
        dataset_dicts: the whole data set, in Detectron2's format.
        dataset_name: its name, for messages.

    Returns:
        The entries, in the order of the data set.

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

    Args:
        proposals: the entries.
        dataset_dicts: the whole data set; images without ``width`` and ``height`` are not compared
            with their boxes.
        dataset_name: its name, for messages.
        source: what the entries come from, as messages begin.

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


def describe_missing(
    found: Collection[str], wanted: Sequence[str], dataset_name: str
) -> str | None:
    """Say, after a file's name, which ``wanted`` image ids have no entry; None if all have."""
    covered = set(found)
    missing = [image_id for image_id in wanted if image_id not in covered]
    if not missing:
        return None
    # The number of images gives away PASCAL's own sets.
    guess = [
        name
        for name, count in OFFICIAL_IMAGE_COUNTS.items()
        if count == len(covered) and name != dataset_name
    ]
    hint = f"; was it made for {guess[0]}?" if guess else ""
    return (
        f"has no entry for image {missing[0]} of {dataset_name} (it covers {len(covered)} images, "
        f"{len(wanted) - len(missing)} of them of this data set{hint})"
    )


def _check_ids(found: list[str], wanted: list[str], dataset_name: str, source: str) -> None:
    missing = describe_missing(found, wanted, dataset_name)
    if missing:
        raise UserError(f"{source} {missing}")
    known = set(wanted)
    extra = [image_id for image_id in found if image_id not in known]
    if extra:
        raise UserError(
            f"{source} has entries for {len(extra)} images that are not in {dataset_name} (first: "
            f"{extra[0]}); each data set needs a file of its own"
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

"""Proposals of other programs into Detectron2's format: selective search's .mat, and a plain .npz.

Both formats list the best box first (or carry scores). The files written hold the negative rank as
the logit, because Detectron2 sorts by the logits when it loads them and would shuffle equal ones.
"""

import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import UserError
from ...plain_pickle import load_mat
from .files import Proposals, check_covered, save_proposals, validate_proposals

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]

_MOST_UNPACKED = 100  # times the size of an .npz file: boxes are not that regular

_MIN_SIZE = 2  # pixels, see convert_selective_search_mat


def convert_selective_search_mat(
    mat_path: str | os.PathLike[str],
    dataset_dicts: Sequence[Mapping[str, Any]],
    out: str | os.PathLike[str],
    dataset_name: str = "the data set",
) -> Proposals:
    """Convert Fast R-CNN's selective search download, such as ``voc_2007_trainval.mat``.

    The file holds ``boxes``, a cell array of one (M, 4) array per image with rows y1, x1, y2, x2
    (1-based, inclusive), and ``images``, a cell array of their ids. A file without ``images`` is
    taken to be in the order of the data set, as in py-faster-rcnn; it must then have as many
    entries.

    Like py-faster-rcnn, of equal boxes the first is kept, and of these the ones with x2 - x1 >= 2
    and y2 - y1 > 2 in inclusive coordinates (its ">=" and ">" differ: ds_utils.py). All that
    remain are written, in their order.

    Args:
        mat_path: the .mat file, of MATLAB 5 to 7.2. Needs scipy.
        dataset_dicts: the data set. Images that only the file has are left out.
        out: proposal file to write.
        dataset_name: name of the data set, for messages.

    Returns:
        What was written.

    Raises:
        UserError: without scipy; for a missing, damaged or foreign file, or one that does not fit
            the data set. Nothing is written then.
    """
    content = load_mat(mat_path)
    if "boxes" not in content:
        found = ", ".join(key for key in content if not key.startswith("__")) or "nothing"
        raise UserError(
            f"{mat_path}: no variable 'boxes' (but {found}); selective search files hold the cell "
            f"arrays 'boxes' and 'images'"
        )
    cells = np.asarray(content["boxes"]).ravel()
    if "images" in content:
        ids = [_cell_text(cell) for cell in np.asarray(content["images"]).ravel()]
    else:
        ids = [str(item["image_id"]) for item in dataset_dicts]
        logger.warning("%s does not name its images: taken in the data set's order", mat_path)
    if len(ids) != len(cells):
        raise UserError(
            f"{mat_path}: boxes of {len(cells)} images, but {len(ids)} images "
            f"{'named' if 'images' in content else f'in {dataset_name}'}"
        )
    wanted = {str(item["image_id"]) for item in dataset_dicts}
    entries = {}
    for image_id, cell in zip(ids, cells, strict=True):
        if image_id in wanted:
            rows = _as_rows(cell, (4,), f"{mat_path}, image {image_id}")
            entries[image_id] = _from_selective_search(rows)
    return _write(entries, ids, dataset_dicts, out, dataset_name, mat_path)


def convert_npz(
    npz_path: str | os.PathLike[str],
    dataset_dicts: Sequence[Mapping[str, Any]],
    out: str | os.PathLike[str],
    dataset_name: str = "the data set",
) -> Proposals:
    """Convert a plain .npz file, as ``np.savez(path, **{"000005": boxes, ...})`` writes it.

    Each key is an image id. Its value is (N, 4): x1, y1, x2, y2, continuous (x2 - x1 is the width),
    in pixels of the original image, best first; or (N, 5) with a score, higher is better, by which
    it is sorted (equal scores keep their order). No box is dropped.

    The other arguments, the result and the errors are those of
    :func:`convert_selective_search_mat`.
    """
    if not Path(npz_path).is_file():
        raise UserError(f"there is no file {npz_path}")
    wanted = {str(item["image_id"]) for item in dataset_dicts}
    try:
        with zipfile.ZipFile(npz_path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > _MOST_UNPACKED * (os.path.getsize(npz_path) + 1000):
            raise ValueError(f"it would unpack to {unpacked} bytes")
        with np.load(npz_path, allow_pickle=False) as content:
            ids = list(content.files)
            arrays = {image_id: content[image_id] for image_id in ids if image_id in wanted}
    except Exception as error:  # numpy raises whatever a damaged file happens to say
        raise UserError(f"{npz_path} is damaged, or not an .npz file: {error}") from error
    entries = {
        image_id: _best_first(array, f"{npz_path}, image {image_id}")
        for image_id, array in arrays.items()
    }
    return _write(entries, ids, dataset_dicts, out, dataset_name, npz_path)


def _cell_text(cell: Any) -> str:
    """Return the text in a cell, which scipy wraps in one array or two."""
    while isinstance(cell, np.ndarray):
        if cell.size != 1:
            raise UserError(
                f"'images' of a selective search file holds {cell.tolist()!r}, not an id"
            )
        cell = cell.item()
    return str(cell)


def _as_rows(value: Any, widths: tuple[int, ...], where: str) -> FloatArray:
    """Return one image's rows as float64, of one of ``widths`` columns."""
    try:
        # Before any arithmetic: the originals store 16-bit unsigned numbers.
        rows = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: not an array of numbers ({error})") from error
    if rows.size == 0:
        return np.zeros((0, widths[0]))
    if rows.ndim != 2 or rows.shape[1] not in widths:
        wanted = " or ".join(f"(N, {width})" for width in widths)
        raise UserError(f"{where}: an array of shape {rows.shape}; it must be {wanted}")
    return rows


def _from_selective_search(rows: FloatArray) -> FloatArray:
    """Turn (M, 4) y1, x1, y2, x2, 1-based and inclusive, into (N, 4) XYXY, without bad boxes."""
    boxes = rows[:, [1, 0, 3, 2]] - 1
    _, first = np.unique(boxes, axis=0, return_index=True)
    boxes = boxes[np.sort(first)]
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    boxes = boxes[(width >= _MIN_SIZE) & (height > _MIN_SIZE)]
    return boxes + np.array([0, 0, 1, 1])


def _best_first(value: Any, where: str) -> FloatArray:
    """Return one image's (N, 4), sorted by the fifth column if there is one."""
    rows = _as_rows(value, (4, 5), where)
    if rows.shape[1] == 5:
        if not np.isfinite(rows[:, 4]).all():
            raise UserError(f"{where}: a score, the fifth column, is not finite")
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    return rows[:, :4]


def _write(
    entries: Mapping[str, FloatArray],
    covered: Sequence[str],
    dataset_dicts: Sequence[Mapping[str, Any]],
    out: str | os.PathLike[str],
    dataset_name: str,
    source: str | os.PathLike[str],
) -> Proposals:
    """Check and write boxes that are sorted, best first; ``covered``: ids in the source."""
    if len(covered) > len(entries):
        logger.info(
            "%s: %d images are not in %s and left out",
            source, len(covered) - len(entries), dataset_name,
        )  # fmt: skip
    ids = [str(item["image_id"]) for item in dataset_dicts]
    check_covered(covered, ids, dataset_name, str(source))
    proposals = Proposals(
        ids,
        [entries[image_id].astype(np.float32) for image_id in ids],
        [-np.arange(len(entries[image_id]), dtype=np.float32) for image_id in ids],
    )
    validate_proposals(proposals, dataset_dicts, dataset_name, str(source))
    save_proposals(out, proposals.ids, proposals.boxes, proposals.logits)
    return proposals

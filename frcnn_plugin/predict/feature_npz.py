"""Features of many boxes in one .npz file, written as they come."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from detectron2.structures import Boxes, Instances

from ..atomic_files import replacing

# Name in the file of a field of Instances, and its type there.
_FIELDS = {
    "pred_boxes": ("boxes", np.float32),
    "scores": ("scores", np.float32),
    "pred_classes": ("classes", np.int64),
    "fc7": ("fc7", np.float32),
    "scores_all": ("scores_all", np.float32),
    "objectness": ("objectness", np.float32),
    "proposal_index": ("proposal_index", np.int64),
    "proposal_boxes": ("proposal_boxes", np.float32),
}


class FeatureFile(AbstractContextManager["FeatureFile"]):
    """Collects rows on disk, not in memory: 100 boxes of one image take 1.6 MB.

    Plain arrays, so that ``numpy.load`` needs no pickle. Leaving the ``with`` block without an
    error puts the file in place; otherwise nothing is left.
    """

    def __init__(self, path: str | os.PathLike[str], class_names: Sequence[str]) -> None:
        """Start.

        Args:
            path: file to write, ending in ``.npz``.
            class_names: by class index.
        """
        self.path = Path(path)
        self._class_names = list(class_names)
        self._files: list[str] = []
        self._sizes: list[tuple[int, int]] = []
        self._columns: dict[str, _Column] = {}
        self._folder = Path(tempfile.mkdtemp(prefix=f"{self.path.name}.", dir=self.path.parent))

    def add(self, file_name: str, instances: Instances) -> None:
        """Append the boxes of an image.

        Args:
            file_name: of the image.
            instances: of :class:`~frcnn_plugin.predict.FasterRCNNPredictor` with features, the same
                fields for every image; may be empty.
        """
        self._add("image_index", np.full(len(instances), len(self._files), dtype=np.int64))
        for field, (name, dtype) in _FIELDS.items():
            if instances.has(field):
                value: Any = instances.get(field)
                tensor = value.tensor if isinstance(value, Boxes) else value
                self._add(name, tensor.numpy().astype(dtype))
        self._files.append(file_name)
        self._sizes.append(instances.image_size)

    def _add(self, name: str, rows: npt.NDArray[Any]) -> None:
        if name not in self._columns:
            self._columns[name] = _Column(open(self._folder / name, "w+b"), rows)
        self._columns[name].append(rows)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Write the file, or forget all."""
        try:
            if kind is None:
                self._write()
        finally:
            for column in self._columns.values():
                column.file.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self) -> None:
        whole = {
            "file_names": np.array(self._files, dtype=np.str_),
            "image_sizes": np.array(self._sizes, dtype=np.int64).reshape(-1, 2),
            "class_names": np.array(self._class_names, dtype=np.str_),
        }
        with (
            replacing(self.path) as temporary,
            zipfile.ZipFile(temporary, "w", allowZip64=True) as archive,
        ):
            for name, array in whole.items():
                with archive.open(f"{name}.npy", "w") as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
            for name, column in self._columns.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    column.write(file)


class _Column:
    """Rows of one array, in a file without header."""

    def __init__(self, file: IO[bytes], example: npt.NDArray[Any]) -> None:
        self.file = file
        self._dtype, self._row = example.dtype, example.shape[1:]
        self._number = 0

    def append(self, rows: npt.NDArray[Any]) -> None:
        assert rows.dtype == self._dtype and rows.shape[1:] == self._row
        self.file.write(np.ascontiguousarray(rows).tobytes())
        self._number += len(rows)

    def write(self, target: IO[bytes]) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self._number, *self._row),
        }
        np.lib.format.write_array_header_1_0(target, header)
        self.file.seek(0)
        shutil.copyfileobj(self.file, target)

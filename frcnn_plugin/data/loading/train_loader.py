"""The training data loader: batches, epochs and flips in the originals' order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

from ...errors import UserError
from .mappers import MirroringMapper


class MirroredDataset(Dataset[dict[str, Any]]):
    """A list of data set dicts, and after it the same list once more, to be mirrored.

    The originals double the training set with mirrored images and show every entry once per epoch,
    instead of flipping at random (point 38 of docs/faithfulness.md).
    """

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        mirrored: Sequence[dict[str, Any]] | None = None,
    ) -> None:
        """Describe both halves; nothing is copied.

        Args:
            dicts: in Detectron2's format.
            mirrored: those of the second half, if something about them differs (their proposals);
                also in coordinates of the image, not of its mirror image.
        """
        self._halves = (dicts, dicts if mirrored is None else mirrored)

    def __len__(self) -> int:
        """Return twice the number of images."""
        return 2 * len(self._halves[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return entry ``index``, with ``"mirrored"`` telling its half."""
        half, position = divmod(index, len(self._halves[0]))
        if half > 1:
            raise IndexError(index)
        return {**self._halves[half][position], "mirrored": bool(half)}


class OrientationBatchSampler(Sampler[int]):
    """An endless stream of indices, in runs of one batch that share their orientation.

    Epoch after epoch is shuffled and dealt into batches that are all landscape (width >= height)
    or all portrait, as the originals do; entries that find no partner wait for the next epoch, so
    every entry is used. The stream depends on the seed alone, and can start at any iteration
    without loading an image, which makes resumed runs exact.
    """

    def __init__(
        self, landscape: Sequence[bool], images_per_process: int, seed: int, start_iter: int = 0
    ) -> None:
        """Describe the stream.

        Args:
            landscape: per entry of the data set, whether it is at least as wide as high.
            images_per_process: batch of one process; the processes take turns.
            seed: the same in all processes.
            start_iter: iterations that were already trained.

        Raises:
            ValueError: empty data set, or no image per batch.
        """
        if not landscape or images_per_process < 1:
            raise ValueError(f"{len(landscape)} entries, {images_per_process} images per process")
        self._landscape = list(landscape)
        self._size = images_per_process
        self._seed = seed
        self._start = start_iter

    def __iter__(self) -> Iterator[int]:
        """Yield indices for this process."""
        world = comm.get_world_size()
        first = self._start * world + comm.get_rank()
        for batch in itertools.islice(self._batches(), first, None, world):
            yield from batch

    def _batches(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self._seed)
        waiting: dict[bool, list[int]] = {True: [], False: []}
        while True:
            for index in torch.randperm(len(self._landscape), generator=generator).tolist():
                bucket = waiting[self._landscape[index]]
                bucket.append(index)
                if len(bucket) == self._size:
                    yield bucket[:]
                    bucket.clear()


def training_dicts(cfg: CfgNode, proposal_files: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Load Detectron2's training dicts, with proposals if there is a file per training set."""
    dicts: list[dict[str, Any]] = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        proposal_files=list(proposal_files) or None,
    )
    return dicts


def build_train_loader(
    cfg: CfgNode,
    *,
    images_per_process: int,
    seed: int,
    start_iter: int = 0,
    proposal_files: Sequence[str] = (),
    mirrored_proposal_files: Sequence[str] = (),
) -> Iterable[list[dict[str, Any]]]:
    """Build the loader of the doubled training set, in batches of one orientation.

    Args:
        cfg: config; ``MODEL.LOAD_PROPOSALS`` must be set if there are proposal files.
        images_per_process: batch of this process.
        seed: of the order, the same in all processes.
        start_iter: iterations of this order that were already trained.
        proposal_files: see :func:`training_dicts`.
        mirrored_proposal_files: proposals of the mirrored images, in the coordinates of the images
            themselves; without them those of the images are mirrored.

    Returns:
        An endless iterable of batches, whose content depends on nothing but the arguments.
    """
    dicts = training_dicts(cfg, proposal_files)
    unknown = next((d for d in dicts if "width" not in d or "height" not in d), None)
    if unknown is not None:
        raise UserError(
            f"{unknown['file_name']}: its data set gives no width and height, which "
            "DATALOADER.MIRRORED_COPIES needs; add them, or set DATALOADER.MIRRORED_COPIES False"
        )
    landscape = [d["width"] >= d["height"] for d in dicts]
    mirrored = training_dicts(cfg, mirrored_proposal_files) if mirrored_proposal_files else None
    loader: Iterable[list[dict[str, Any]]] = build_detection_train_loader(
        MirroredDataset(
            DatasetFromList(dicts, copy=False),
            mirrored and DatasetFromList(mirrored, copy=False),
        ),
        mapper=MirroringMapper(cfg, is_train=True),
        sampler=OrientationBatchSampler(landscape * 2, images_per_process, seed, start_iter),
        total_batch_size=images_per_process * comm.get_world_size(),
        aspect_ratio_grouping=False,  # the sampler groups
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),  # images are copied while the GPU computes
    )
    return loader

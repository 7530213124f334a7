"""The training data loader: batches, epochs and flips in the originals' order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

from ...errors import UserError
from ..datasets.geometry import refuse_unreadable, unreadable
from .bad_images import CatchingMapper, CheckedLoader, StandInDataset, skips_bad_images
from .image_reader import image_header
from .mappers import MirroringMapper, build_mapper

_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")


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

        Those ``mirrored`` are given if something about them differs (their proposals), in
        coordinates of the image as well, not of its mirror image.
        """
        self._halves = (dicts, dicts if mirrored is None else mirrored)

    def __len__(self) -> int:
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
        self,
        landscape: Sequence[bool],
        images_per_process: int,
        seed: int,
        start_iter: int = 0,
        repeats: torch.Tensor | None = None,
    ) -> None:
        """Describe the stream.

        Args:
            landscape: per entry of the data set, whether it is at least as wide as high.
            images_per_process: batch of one process; the processes take turns.
            seed: the same in all processes.
            start_iter: iterations that were already trained.
            repeats: per entry, how often it comes per epoch, (N,) float; the part after the point
                is the probability of once more. None: once.

        Raises:
            ValueError: empty data set, or no image per batch.
        """
        if not landscape or images_per_process < 1:
            raise ValueError(f"{len(landscape)} entries, {images_per_process} images per process")
        self._landscape = list(landscape)
        self._size = images_per_process
        self._seed = seed
        self._start = start_iter
        self._repeats = repeats

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
            for index in self._epoch(generator):
                bucket = waiting[self._landscape[index]]
                bucket.append(index)
                if len(bucket) == self._size:
                    yield bucket[:]
                    bucket.clear()

    def _epoch(self, generator: torch.Generator) -> list[int]:
        if self._repeats is None:
            return torch.randperm(len(self._landscape), generator=generator).tolist()
        times = self._repeats.floor()
        times += torch.rand(len(times), generator=generator) < self._repeats - times
        indices = torch.arange(len(times)).repeat_interleave(times.long())
        return indices[torch.randperm(len(indices), generator=generator)].tolist()


def training_dicts(cfg: CfgNode, proposal_files: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Load Detectron2's training dicts, with proposals if there is a file per training set.

    Sizes that a data set does not give are read from the headers of its images.
    """
    dicts: list[dict[str, Any]] = list(
        get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            proposal_files=list(proposal_files) or None,
        )
    )
    if not skips_bad_images(cfg):
        refuse_unreadable(", ".join(cfg.DATASETS.TRAIN), unreadable(dicts), len(dicts))
    for index, record in enumerate(dicts):
        if "width" not in record or "height" not in record:
            width, height, _ = image_header(record["file_name"])
            dicts[index] = {**record, "width": width, "height": height}
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
    """Build the loader of the training set, in batches of one orientation.

    With ``DATALOADER.MIRRORED_COPIES`` the set is doubled; without, which four-step training alone
    asks for, images are flipped as ``INPUT.RANDOM_FLIP`` says.

    Args:
        cfg: config; ``MODEL.LOAD_PROPOSALS`` must be set if there are proposal files.
        images_per_process: batch of this process.
        seed: of the order, the same in all processes.
        start_iter: iterations of this order that were already trained.
        proposal_files: see :func:`training_dicts`.
        mirrored_proposal_files: proposals of the mirrored images, in the coordinates of the images
            themselves; without them those of the images are mirrored.

    Returns:
        An endless iterable of batches, which come in an order that depends on nothing but the
        arguments.

    Raises:
        UserError: a sampler that does not fit; while iterating, an image that cannot be used, see
            ``DATALOADER.ON_BAD_IMAGE``.
    """
    dicts = training_dicts(cfg, proposal_files)
    landscape = [d["width"] >= d["height"] for d in dicts]
    repeats = _repeats(cfg, dicts)
    entries: Any = DatasetFromList(dicts, copy=False)
    if cfg.DATALOADER.MIRRORED_COPIES:
        landscape *= 2
        repeats = repeats if repeats is None else repeats.repeat(2)
        mirrored = training_dicts(cfg, mirrored_proposal_files) if mirrored_proposal_files else None
        entries = MirroredDataset(entries, mirrored and DatasetFromList(mirrored, copy=False))
        mapper: Any = CatchingMapper(MirroringMapper(cfg, is_train=True))
    else:
        mapper = CatchingMapper(build_mapper(cfg, is_train=True))
    if skips_bad_images(cfg):
        entries, mapper = StandInDataset(entries, mapper, landscape), None
    loader = build_detection_train_loader(
        entries,
        mapper=mapper,
        sampler=OrientationBatchSampler(landscape, images_per_process, seed, start_iter, repeats),
        total_batch_size=images_per_process * comm.get_world_size(),
        aspect_ratio_grouping=False,  # the sampler groups
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda"),  # images are copied while the GPU computes
    )
    return CheckedLoader(cfg, loader, is_train=True)


def _repeats(cfg: CfgNode, dicts: Sequence[dict[str, Any]]) -> torch.Tensor | None:
    """Return how often images with rare classes come per epoch; None if all come once."""
    node = cfg.DATALOADER
    if node.SAMPLER_TRAIN not in _SAMPLERS:
        raise UserError(
            f"DATALOADER.SAMPLER_TRAIN {node.SAMPLER_TRAIN} goes neither with "
            f"DATALOADER.MIRRORED_COPIES nor with four-step training: use {' or '.join(_SAMPLERS)}"
        )
    if node.SAMPLER_TRAIN == _SAMPLERS[0]:
        return None
    # Newer versions of Detectron2 have a choice of the root.
    options = {"sqrt": node.REPEAT_SQRT} if "REPEAT_SQRT" in node else {}
    factors: torch.Tensor = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        dicts, node.REPEAT_THRESHOLD, **options
    )
    return factors


def ignored_keys(cfg: CfgNode) -> list[str]:
    """Say, in a sentence per key, what Detectron2's loader heeds and ours leaves alone, and why."""
    copies = cfg.DATALOADER.MIRRORED_COPIES
    if not (copies or cfg.FOUR_STEP.ENABLED):
        return []  # Detectron2's loader
    ignored = []
    if copies and cfg.INPUT.RANDOM_FLIP == "horizontal":
        ignored.append(
            "INPUT.RANDOM_FLIP horizontal does nothing: with DATALOADER.MIRRORED_COPIES True the "
            'mirror image of every image is in the training set already; set it to "none"'
        )
    if not cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        ignored.append(
            "DATALOADER.ASPECT_RATIO_GROUPING False does nothing: batches are of one orientation, "
            "as in the original code"
        )
    if cfg.FOUR_STEP.ENABLED and cfg.INPUT.CROP.ENABLED:
        ignored.append(
            "INPUT.CROP does not count for FOUR_STEP.TARGET_STATISTICS and RPN_TARGET_STATISTICS, "
            "which are measured on whole images"
        )
    return ignored

"""In which order images are trained on: batching, epochs, flips."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler


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

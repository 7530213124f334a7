"""Images that cannot be used: a run stops with the file's name, or goes on without them.

Worker processes hand such an image on as data. An exception would reach the main process as the
text of a traceback, and end the worker.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.queues import Queue
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.structures import Boxes, Instances
from torch.utils.data import Dataset, get_worker_info

from ... import stopping
from ...errors import UserError, check_choice
from ...process import leave_if_asked
from .mappers import build_mapper

logger = logging.getLogger(__name__)

Record = dict[str, Any]

CHOICES = ("stop", "skip")
_MOST_IN_A_ROW = 100  # bad images, after which a run ends anyway
_BLANK = (64, 64)  # pixels of the network input that takes the place of a bad test image


class CatchingMapper:
    """A mapper that returns what is wrong with an image, as "bad_image", where others raise."""

    def __init__(self, mapper: Callable[[Record], Record]) -> None:
        self._mapper = mapper

    def __call__(self, record: Record) -> Record:
        """Load one entry."""
        if get_worker_info() is not None:  # in a worker process
            Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
        try:
            return self._mapper(record)
        except UserError as error:
            kept = ("file_name", "image_id", "height", "width")
            known = {key: record[key] for key in kept if key in record}
            height, width = _BLANK
            return {"height": height, "width": width, **known, "bad_image": str(error)}


def _end_worker(error: Exception, _: object) -> None:
    """End a worker whose batch cannot be sent, as when /dev/shm is full.

    Python would drop the batch, and the main process wait for it for ever.
    """
    sys.stderr.write(f"a worker process could not send its images: {error}\n")
    sys.stderr.flush()
    os._exit(1)


def explain_dead_worker(error: Exception) -> str:
    """Return what to do about an exception if it says that a worker process ended, else "".

    Raises Stopped if the signal that asked this process to stop has also ended its workers.
    """
    text = str(error).partition("\n")[0] or type(error).__name__
    # The last two come from the socket by which a batch is fetched.
    if not (text.startswith("DataLoader worker") or isinstance(error, EOFError | ConnectionError)):
        return ""
    if stopping.asked():
        raise stopping.Stopped
    return (
        f"a process that loads images has ended ({text.rstrip('. ')}). Usually memory ran out: "
        "that of the machine, or /dev/shm, which has only 64 MB in a container unless it is "
        "started with --shm-size or --ipc=host. Lower DATALOADER.NUM_WORKERS; 0 needs no such "
        "process"
    )


class StandInDataset(Dataset[Record]):
    """Mapped entries, each bad one replaced by the next that is good and of its orientation.

    Which one that is depends on the files alone, so a resumed run sees the same images.
    """

    def __init__(
        self,
        entries: Dataset[Record],
        mapper: Callable[[Record], Record],
        landscape: Sequence[bool],
    ) -> None:
        """Take entries, a :class:`CatchingMapper` and, per entry, whether it is no portrait."""
        self._entries, self._mapper, self._landscape = entries, mapper, landscape

    def __len__(self) -> int:
        return len(self._landscape)

    def __getitem__(self, index: int) -> Record:
        """Load entry ``index``, or that which stands in for it; "bad_images" has the reasons."""
        reasons: list[str] = []
        for position in range(index, index + len(self)):
            other = position % len(self)
            if self._landscape[other] != self._landscape[index]:
                continue
            record = self._mapper(self._entries[other])
            if "bad_image" not in record or len(reasons) == _MOST_IN_A_ROW:
                return {**record, "bad_images": reasons}
            reasons.append(record["bad_image"])
        return record


class CheckedLoader:
    """A loader of entries that a :class:`CatchingMapper` made; deals with the bad ones.

    Attributes:
        reasons: why images were left out, each once, in the order they came.
    """

    def __init__(self, cfg: CfgNode, loader: Any, *, is_train: bool) -> None:
        """Wrap a loader of batches, lists of entries.

        In training bad entries are dropped; otherwise they become small black images without
        proposals, in which little is found, as every image of a test set has to appear.

        Raises:
            UserError: unknown ``DATALOADER.ON_BAD_IMAGE``.
        """
        self._skips = skips_bad_images(cfg)
        self._loader = loader
        self._is_train = is_train
        self._channels = len(cfg.MODEL.PIXEL_MEAN)
        self.reasons: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[Record]]:
        """Start the loader, and return its batches; each has one entry at least."""
        # At once, not with the first batch: starting a loader draws a random number.
        return self._checked(iter(self._loader))

    def _checked(self, batches: Iterator[list[Record]]) -> Iterator[list[Record]]:
        in_a_row = 0
        while True:
            if not self._is_train:
                leave_if_asked()
            try:
                batch = next(batches, None)
            except (RuntimeError, EOFError, ConnectionError) as error:
                if explanation := explain_dead_worker(error):
                    raise UserError(explanation) from None
                raise
            if batch is None:
                return
            good = []
            for record in batch:
                stood_in_for = record.pop("bad_images", ())
                for reason in stood_in_for:
                    self._leave_out(reason)
                reason = record.pop("bad_image", None)
                if reason is None:
                    in_a_row = 0
                    good.append(record)
                    continue
                self._leave_out(reason)
                in_a_row += 1 + len(stood_in_for)
                if in_a_row >= _MOST_IN_A_ROW:
                    raise UserError(
                        f"{in_a_row} images in a row cannot be used; the last: {reason}"
                    )
                if not self._is_train:
                    good.append(self._blank(record))
            if good:
                yield good

    def _leave_out(self, reason: str) -> None:
        if not self._skips:
            raise UserError(
                f"{reason}. `frcnn doctor --all` looks at every image; with "
                "DATALOADER.ON_BAD_IMAGE skip a run goes on without those that cannot be used"
            )
        if reason not in self.reasons:
            self.reasons[reason] = None
            logger.warning("image left out (%d so far): %s", len(self.reasons), reason)

    def _blank(self, record: Record) -> Record:
        proposals = Instances(
            _BLANK, proposal_boxes=Boxes(torch.zeros(0, 4)), objectness_logits=torch.zeros(0)
        )
        image = torch.zeros(self._channels, *_BLANK)
        return {**record, "image": image, "proposals": proposals}


def skips_bad_images(cfg: CfgNode) -> bool:
    """Return whether a run goes on without images that cannot be used.

    Raises:
        UserError: unknown ``DATALOADER.ON_BAD_IMAGE``.
    """
    choice = cfg.DATALOADER.ON_BAD_IMAGE
    check_choice("DATALOADER.ON_BAD_IMAGE", choice, CHOICES)
    return bool(choice == "skip")


def build_test_loader(
    cfg: CfgNode,
    source: str | list[Record],
    mapper: Callable[[Record], Record] | None = None,
) -> CheckedLoader:
    """Build Detectron2's test loader of a data set, named or given as its entries.

    The mapper is that of :func:`~.mappers.build_mapper` if it is None.
    """
    catching = CatchingMapper(mapper or build_mapper(cfg, is_train=False))
    if isinstance(source, str):
        loader = build_detection_test_loader(cfg, source, mapper=catching)
    else:
        workers = cfg.DATALOADER.NUM_WORKERS
        loader = build_detection_test_loader(source, mapper=catching, num_workers=workers)
    return CheckedLoader(cfg, loader, is_train=False)

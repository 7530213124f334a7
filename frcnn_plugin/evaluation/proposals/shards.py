"""Proposals in parts, so that making them for a large data set can be interrupted."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...atomic_files import reading_json, write_json
from ...data.proposals.files import Proposals, load_proposals, save_proposals
from ...errors import UserError
from .evaluator import ProposalCollector

logger = logging.getLogger(__name__)

_FINGERPRINT = "fingerprint.json"


class ProposalShards:
    """A folder of proposal files that each cover some images, and a note of what made them."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Name the folder; nothing is looked at yet.

        Args:
            folder: where the shards are, or will be.
        """
        self.folder = Path(folder)

    def open(self, fingerprint: Mapping[str, str]) -> None:
        """Make the folder ready; remove shards that something else made, with a warning.

        Args:
            fingerprint: what the proposals depend on -> a hash of it. Shards are kept only if all
                are the same as when the folder was opened first.
        """
        note = self.folder / _FINGERPRINT
        if self.folder.is_dir():
            before = _read_note(note)
            changed = [name for name in fingerprint if before.get(name) != fingerprint[name]]
            if not changed:
                return
            logger.warning(
                "%s: made before the %s changed: removed, all images are done again",
                self.folder, " and ".join(changed),
            )  # fmt: skip
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        # Last: a folder without it counts as made by something else.
        write_json(note, dict(fingerprint))

    def write(self, proposals: Proposals) -> None:
        """Add a shard; other processes may do so at the same time."""
        path = self.folder / f"{uuid.uuid4().hex}.pkl"
        save_proposals(path, proposals.ids, proposals.boxes, proposals.logits)

    def read(self) -> Proposals:
        """Return all entries, each image once; remove damaged shards, with a warning."""
        entries: dict[str, tuple[Any, Any]] = {}
        for path in sorted(self.folder.glob("*.pkl")):
            try:
                shard = load_proposals(path)
            except UserError as error:
                logger.warning("%s; its images are done again", error)
                path.unlink()
                continue
            for image_id, boxes, logits in zip(shard.ids, shard.boxes, shard.logits, strict=True):
                entries.setdefault(image_id, (boxes, logits))
        pairs = list(entries.values())
        return Proposals(list(entries), [pair[0] for pair in pairs], [pair[1] for pair in pairs])

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)


class ShardWriter(ProposalCollector):
    """Writes the proposals of one process as they come, a shard per `shard_size` images."""

    def __init__(self, shards: ProposalShards, shard_size: int, dataset_name: str) -> None:
        """Create the writer.

        Args:
            shards: where to.
            shard_size: images per shard: what an interruption can lose, at most, per process.
            dataset_name: name of the data set, for messages.
        """
        super().__init__(dataset_name, distributed=False)
        self._shards = shards
        self._shard_size = shard_size

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take in the proposals of some images, as `ProposalCollector.process`."""
        super().process(inputs, outputs)
        if len(self._entries) >= self._shard_size:
            self._write()

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Write the rest; return an empty dict."""
        if self._entries:
            self._write()
        return OrderedDict()

    def _write(self) -> None:
        """Write what was collected, in the order it came, and forget it."""
        self._warn_of_bad()
        boxes, logits = (list(column) for column in zip(*self._entries.values(), strict=True))
        self._shards.write(Proposals(list(self._entries), boxes, logits))
        self.reset()


def _read_note(path: Path) -> dict[str, Any]:
    """Return the fingerprint; empty if the file is missing or damaged."""
    try:
        with reading_json(path, "fingerprint of proposals") as content:
            return dict(content)
    except UserError:
        return {}

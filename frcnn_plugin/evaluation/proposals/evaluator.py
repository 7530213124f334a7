"""Collecting the proposals of a data set in one or several processes, and measuring their recall.

All classes but `ProposalShards` are evaluators for Detectron2's ``inference_on_dataset``; the model
gives, per image, ``{"proposals": Instances}`` with `proposal_boxes` in original-image pixels and
`objectness_logits`, as PaperRCNN does in its phase "rpn" and Detectron2's ProposalNetwork always.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ...atomic_files import reading_json, write_json
from ...data.proposals.files import Proposals, load_proposals, save_proposals
from ...errors import UserError
from ..ground_truth import absent_images, gather_by_image, load_ground_truth
from .recall import COUNTS, report_recall

logger = logging.getLogger(__name__)

_Entry = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]  # boxes (N, 4), logits (N,)
_NOTHING = (np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.float32))


class ProposalCollector(DatasetEvaluator):
    """Collects the proposals of all images of a data set and writes them to a file."""

    def __init__(
        self, dataset_name: str, output_path: str | os.PathLike[str] | None = None
    ) -> None:
        """Create the collector; the main process writes `output_path`, whole or not at all."""
        self._dataset_name = dataset_name
        self._output_path = None if output_path is None else Path(output_path)
        self.reset()

    def reset(self) -> None:
        """Forget all proposals."""
        self._entries: dict[str, _Entry] = {}

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take in the `proposals` of some images, told by their `image_id`.

        An image that comes a second time, because samplers repeat some to fill a batch, is ignored.

        Raises:
            UserError: if the model gives no proposals.
        """
        for item, output in zip(inputs, outputs, strict=True):
            if "proposals" not in output:
                raise UserError(
                    f"the model returned {', '.join(output) or 'nothing'} instead of proposals: "
                    f"PaperRCNN does so with MODEL.PAPER_RCNN.PHASE rpn"
                )
            instances = output["proposals"]
            boxes = _to_numpy(instances.proposal_boxes.tensor)
            logits = _to_numpy(instances.objectness_logits)
            self._entries.setdefault(str(item["image_id"]), (boxes, logits))

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Write the file; return an empty dict.

        Raises:
            UserError: if an image of the data set was not processed, or another one was.
        """
        entries = gather_by_image(self._entries)
        if comm.is_main_process():
            dicts = DatasetCatalog.get(self._dataset_name)
            self._finish(entries, [str(item["image_id"]) for item in dicts])
        return OrderedDict()

    def _finish(self, entries: dict[str, _Entry], image_ids: list[str]) -> Proposals:
        """Put the entries in the order of the data set and write them."""
        name = self._dataset_name
        absent = absent_images(entries, image_ids, name)
        if absent:
            text = f"{len(absent)} of {len(image_ids)} images were not processed"
            if self._output_path is not None:
                raise UserError(
                    f"{name}: {text} (first: '{absent[0]}'); {self._output_path} would be "
                    f"incomplete and is not written"
                )
            logger.warning("%s: %s; they count as without proposals", name, text)
        proposals = self._clean({key: entries.get(key, _NOTHING) for key in image_ids})
        if self._output_path is not None:
            save_proposals(self._output_path, proposals.ids, proposals.boxes, proposals.logits)
            logger.info("%s: proposals written to %s", name, self._output_path)
        return proposals

    def _clean(self, entries: Mapping[str, _Entry]) -> Proposals:
        """Sort best first; leave out boxes that are not finite or have no area, with a warning."""
        clean, num_bad = {}, 0
        for image_id, (boxes, logits) in entries.items():
            good = np.isfinite(boxes).all(axis=1) & np.isfinite(logits)
            good &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
            num_bad += int((~good).sum())
            kept = np.flatnonzero(good)
            # Equal ones stay in the order of the model.
            kept = kept[np.argsort(-logits[kept], kind="stable")]
            clean[image_id] = boxes[kept], logits[kept]
        if num_bad:
            logger.warning(
                "%s: %d proposals have a logit or box that is nan or infinite, or no area; they "
                "are left out (diverged weights?)",
                self._dataset_name, num_bad,
            )  # fmt: skip
        return _as_proposals(clean)


class ProposalEvaluator(ProposalCollector):
    """Also measures recall: one-to-one, at IoU .50 to .95, by number of proposals."""

    def __init__(
        self,
        dataset_name: str,
        output_path: str | os.PathLike[str] | None = None,
        counts: Sequence[int] = COUNTS,
        output_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Create the evaluator; the ground truth is loaded when it is needed.

        The curves, for each of the `counts` of proposals per image, go to ``recall.json`` and
        ``recall.png`` in `output_dir`. Without it they go beside `output_path`, as
        ``<stem>.recall.json`` and ``.png``, if there is one.
        """
        super().__init__(dataset_name, output_path)
        self._counts = tuple(counts)
        self._curves_stem: Path | None = None
        if output_dir is not None:
            self._curves_stem = Path(output_dir) / "recall"
        elif self._output_path is not None:
            self._curves_stem = self._output_path.with_suffix(".recall")

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Write the file, print recall and write its curves.

        Returns:
            ``{"proposals": {"AR@300", "R@0.5@300", "R@0.7@300", ...}}`` in percent for each number
            of proposals; AR is the mean over IoU .50:.05:.95. Empty on processes other than the
            main one, and on a set without ground truth.

        Raises:
            UserError: if an image of the data set was not processed but a file is to be written,
                or an image of another set was.
        """
        entries = gather_by_image(self._entries)
        if not comm.is_main_process():
            return OrderedDict()
        truth = load_ground_truth(self._dataset_name)
        proposals = self._finish(entries, truth.image_ids)
        curves = report_recall(
            proposals, truth, self._dataset_name, self._counts, self._curves_stem
        )
        return OrderedDict() if curves is None else OrderedDict(proposals=curves.metrics())


class ProposalShards:
    """A folder of proposal files that each cover some images, and a note of what made them.

    With them, making the proposals of a large data set can be interrupted.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Name the folder; nothing is looked at yet."""
        self.folder = Path(folder)

    def open(self, fingerprint: Mapping[str, str]) -> None:
        """Make the folder ready; remove shards that something else made, with a warning.

        That is, if any hash of `fingerprint` (what the proposals depend on -> a hash of it) is
        another than when the folder was opened first.

        Raises:
            UserError: the folder cannot be written.
        """
        note = self.folder / "fingerprint.json"
        if self.folder.is_dir():
            before: dict[str, str] = {}
            with suppress(UserError), reading_json(note, "fingerprint of proposals") as content:
                before = dict(content)
            changed = [name for name in fingerprint if before.get(name) != fingerprint[name]]
            if not changed:
                return
            logger.warning(
                "%s: made before the %s changed: removed, all images are done again",
                self.folder, " and ".join(changed),
            )  # fmt: skip
            shutil.rmtree(self.folder)
        try:
            self.folder.mkdir(parents=True)
            # Last: a folder without it counts as made by something else.
            write_json(note, dict(fingerprint))
        except OSError as error:
            raise UserError(f"cannot write the proposals: {error}") from error

    def write(self, proposals: Proposals) -> None:
        """Add a shard; other processes may do so at the same time."""
        path = self.folder / f"{uuid.uuid4().hex}.pkl"
        save_proposals(path, proposals.ids, proposals.boxes, proposals.logits)

    def read(self) -> Proposals:
        """Return all entries, each image once; remove damaged shards, with a warning."""
        entries: dict[str, _Entry] = {}
        for path in sorted(self.folder.glob("*.pkl")):
            try:
                shard = load_proposals(path)
            except UserError as error:
                logger.warning("%s; its images are done again", error)
                path.unlink()
                continue
            for image_id, boxes, logits in zip(shard.ids, shard.boxes, shard.logits, strict=True):
                entries.setdefault(image_id, (boxes, logits))
        return _as_proposals(entries)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)


class ShardWriter(ProposalCollector):
    """Writes the proposals of one process as they come, a shard per `shard_size` images."""

    def __init__(self, shards: ProposalShards, shard_size: int, dataset_name: str) -> None:
        """Create the writer; an interruption can lose one shard at most, per process."""
        super().__init__(dataset_name)
        self._shards = shards
        self._shard_size = shard_size

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take in the proposals of some images, as `ProposalCollector.process`."""
        super().process(inputs, outputs)
        if len(self._entries) >= self._shard_size:
            self.evaluate()

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Write what was collected, in the order it came, and forget it; return an empty dict."""
        if self._entries:
            self._shards.write(self._clean(self._entries))
            self.reset()
        return OrderedDict()


def _as_proposals(entries: Mapping[str, _Entry]) -> Proposals:
    pairs = entries.values()
    return Proposals(list(entries), [pair[0] for pair in pairs], [pair[1] for pair in pairs])


def _to_numpy(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    # A copy: the tensor may be a view of a much larger one.
    return tensor.detach().to("cpu", torch.float32).numpy().copy()

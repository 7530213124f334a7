"""Collecting the proposals of a data set in one or several processes, and measuring their recall.

Both are evaluators for Detectron2's ``inference_on_dataset``; the model gives, per image,
``{"proposals": Instances}`` with `proposal_boxes` in original-image pixels and
`objectness_logits`, as PaperRCNN does in its phase "rpn" and Detectron2's ProposalNetwork always.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ...data.proposals.files import Proposals, save_proposals
from ...errors import UserError
from ..ground_truth import load_ground_truth
from .recall import COUNTS, report_recall

logger = logging.getLogger(__name__)

_Entry = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]  # boxes (N, 4), logits (N,)


class ProposalCollector(DatasetEvaluator):
    """Collects the proposals of all images of a data set and writes them to a file."""

    def __init__(
        self,
        dataset_name: str,
        output_path: str | os.PathLike[str] | None = None,
        distributed: bool = True,
    ) -> None:
        """Create the collector.

        Args:
            dataset_name: any name in the DatasetCatalog.
            output_path: proposal file that the main process writes, whole or not at all.
            distributed: collect from all processes; the main one goes on with them.
        """
        self._dataset_name = dataset_name
        self._output_path = None if output_path is None else Path(output_path)
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forget all proposals."""
        self._entries: dict[str, _Entry] = {}
        self._num_bad = 0

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Take in the proposals of some images.

        Boxes that are not finite or have no area are left out, with a warning at the end. An image
        that comes a second time, as samplers do to fill a batch, is ignored.

        Args:
            inputs: dicts with `image_id`.
            outputs: dicts with `proposals`.

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
            good = np.isfinite(boxes).all(axis=1) & np.isfinite(logits)
            good &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
            self._num_bad += int((~good).sum())
            kept = np.flatnonzero(good)
            # Best first; equal ones stay in the order of the model.
            kept = kept[np.argsort(-logits[kept], kind="stable")]
            self._entries.setdefault(str(item["image_id"]), (boxes[kept], logits[kept]))

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Write the file; return nothing but an empty dict.

        Raises:
            UserError: if an image of the data set was not processed, or another one was.
        """
        if self._gather():
            dicts = DatasetCatalog.get(self._dataset_name)
            self._finish([str(item["image_id"]) for item in dicts])
        return OrderedDict()

    def _gather(self) -> bool:
        """Bring all entries to the main process; return True there."""
        if not self._distributed:
            return True
        comm.synchronize()
        gathered = comm.gather((self._entries, self._num_bad), dst=0)
        if not comm.is_main_process():
            return False
        self._entries, self._num_bad = {}, 0
        for entries, num_bad in gathered:
            self._num_bad += num_bad
            for image_id, entry in entries.items():
                self._entries.setdefault(image_id, entry)
        return True

    def _warn_of_bad(self) -> None:
        if self._num_bad:
            logger.warning(
                "%s: %d proposals have a logit or box that is nan or infinite, or no area; they "
                "are left out (diverged weights?)",
                self._dataset_name, self._num_bad,
            )  # fmt: skip

    def _finish(self, image_ids: list[str]) -> Proposals:
        """Put the entries in the order of the data set and write them."""
        name = self._dataset_name
        known = set(image_ids)
        unknown = [image_id for image_id in self._entries if image_id not in known]
        if unknown:
            raise UserError(
                f"{len(unknown)} images with proposals (first: '{unknown[0]}') are not in data "
                f"set '{name}': the loader reads another set"
            )
        absent = [image_id for image_id in image_ids if image_id not in self._entries]
        if absent:
            text = f"{len(absent)} of {len(image_ids)} images were not processed"
            if self._output_path is not None:
                raise UserError(
                    f"{name}: {text} (first: '{absent[0]}'); {self._output_path} would be "
                    f"incomplete and is not written"
                )
            logger.warning("%s: %s; they count as without proposals", name, text)
        self._warn_of_bad()
        nothing = (np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.float32))
        entries = [self._entries.get(image_id, nothing) for image_id in image_ids]
        proposals = Proposals(image_ids, [e[0] for e in entries], [e[1] for e in entries])
        if self._output_path is not None:
            save_proposals(self._output_path, proposals.ids, proposals.boxes, proposals.logits)
            logger.info("%s: proposals written to %s", name, self._output_path)
        return proposals


class ProposalEvaluator(ProposalCollector):
    """Also measures recall: one-to-one, at IoU .50 to .95, by number of proposals."""

    def __init__(
        self,
        dataset_name: str,
        output_path: str | os.PathLike[str] | None = None,
        distributed: bool = True,
        counts: Sequence[int] = COUNTS,
        output_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Create the evaluator; the ground truth is loaded when it is needed.

        Args:
            dataset_name: any name in the DatasetCatalog.
            output_path: proposal file that the main process writes, whole or not at all.
            distributed: collect from all processes; the main one evaluates.
            counts: numbers of proposals per image to measure.
            output_dir: folder for the curves, ``recall.json`` and ``recall.png``. Without it they
                go beside `output_path`, as ``<stem>.recall.json`` and ``.png``, if there is one.

        Raises:
            UserError: for `counts` that are no positive numbers.
        """
        super().__init__(dataset_name, output_path, distributed)
        if not counts or min(counts) < 1:
            raise UserError(f"counts must be positive numbers of proposals, got {tuple(counts)}")
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
        if not self._gather():
            return OrderedDict()
        truth = load_ground_truth(self._dataset_name)
        proposals = self._finish(truth.image_ids)
        curves = report_recall(
            proposals, truth, self._dataset_name, self._counts, self._curves_stem
        )
        return OrderedDict() if curves is None else OrderedDict(proposals=curves.metrics())


def _to_numpy(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return tensor.detach().to("cpu", torch.float32).numpy()

"""Proposals handed from one stage to the next, as files.

They are files because a run that is resumed in stage 2 needs the very proposals that the stage
began with, and the RPN that made them is gone once its convolutions are trained further. Besides,
people can look at files, and Detectron2 reads them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, BoxMode
from detectron2.utils import comm
from torch import nn

from ..atomic_files import safe_file_name, sha256
from ..data.loading.mappers import MirroringMapper, build_mapper
from ..data.loading.train_loader import training_dicts
from ..data.proposals.files import check_proposals
from ..errors import UserError
from ..evaluation.proposals.evaluator import ProposalCollector, ProposalEvaluator
from ..modeling.box_ops import mirror
from .stages import STAGES, Stage

logger = logging.getLogger(__name__)


class _MirroredBack(ProposalCollector):
    """Collect proposals of mirrored images, in the coordinates of the original image."""

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        for output in outputs:
            proposals = output["proposals"]
            boxes = mirror(proposals.proposal_boxes.tensor, proposals.image_size[1])
            proposals.proposal_boxes = Boxes(boxes)
        super().process(inputs, outputs)


class StageProposals:
    """The proposals of an RPN stage: where they are, how they are made and checked.

    One file per data set, in ``OUTPUT_DIR/proposals/stage<k>``; with
    ``FOUR_STEP.MIRRORED_PROPOSALS`` "recompute" a second one for the mirrored images of each
    training set. Boxes are in original-image pixels.
    """

    def __init__(self, cfg: CfgNode, stage: Stage) -> None:
        self._cfg = cfg
        self._stage = stage
        self._reader = next(s for s in STAGES if s.proposals_of == stage.number)
        self.folder = Path(cfg.OUTPUT_DIR) / stage.proposals

    def path(self, dataset_name: str, *, mirrored: bool = False) -> str:
        """Return the file of a data set."""
        name = safe_file_name(dataset_name)
        return str(self.folder / f"{name}{'_mirrored' if mirrored else ''}.pkl")

    @property
    def train_files(self) -> list[str]:
        """Files of the training sets, in their order."""
        return [self.path(name) for name in self._cfg.DATASETS.TRAIN]

    @property
    def mirrored_files(self) -> list[str]:
        """Files for the mirrored training images; none if proposals are mirrored instead."""
        if self._cfg.FOUR_STEP.MIRRORED_PROPOSALS == "mirror":
            return []
        return [self.path(name, mirrored=True) for name in self._cfg.DATASETS.TRAIN]

    @property
    def test_files(self) -> list[str]:
        """Files of the test sets, in their order."""
        return [self.path(name) for name in self._cfg.DATASETS.TEST]

    def make(self, model: nn.Module) -> dict[str, Any]:
        """Write all files with the RPN of ``model``, in all processes.

        Args:
            model: an unwrapped PaperRCNN; its phase is "rpn" afterwards.

        Returns:
            recall per test set (main process).
        """
        model.set_phase("rpn")  # type: ignore[operator]
        results = {}
        with _selection(model, self._cfg):
            for name in self._cfg.DATASETS.TEST if self._cfg.FOUR_STEP.EVALUATE_STEPS else ():
                evaluator = ProposalEvaluator(name, self.path(name))
                results[name] = self._run(model, name, evaluator)
            for name in self._cfg.DATASETS.TRAIN:
                self._run(model, name, ProposalCollector(name, self.path(name)))
                if self.mirrored_files:
                    collector = _MirroredBack(name, self.path(name, mirrored=True))
                    self._run(model, name, collector, mirrored=True)
        comm.synchronize()
        return results

    def _run(
        self, model: nn.Module, name: str, evaluator: ProposalCollector, mirrored: bool = False
    ) -> Any:
        logger.info("proposals for %s%s", name, ", mirrored" if mirrored else "")
        # Every image gets an entry, even one without objects.
        dicts = get_detection_dataset_dicts(name, filter_empty=False)
        mapper: Any = build_mapper(self._cfg, is_train=False)
        if mirrored:
            dicts = [{**d, "mirrored": True} for d in dicts]
            mapper = MirroringMapper(self._cfg, is_train=False)
        loader = build_detection_test_loader(
            dicts, mapper=mapper, num_workers=self._cfg.DATALOADER.NUM_WORKERS
        )
        return inference_on_dataset(model, loader, evaluator)

    def training_dicts(self) -> list[dict[str, Any]]:
        """Return training images with proposals, and mirrored images that have their own."""
        dicts = training_dicts(self._cfg, self.train_files)
        if self.mirrored_files:
            dicts += [_mirror(d) for d in training_dicts(self._cfg, self.mirrored_files)]
        return dicts

    def _repeat(self) -> str:
        """Return the overrides that start a run at the stage that reads these proposals."""
        node, folder = self._cfg.FOUR_STEP, Path(self._cfg.OUTPUT_DIR)
        if node.START_AT == self._reader.number:
            weights = self._cfg.MODEL.WEIGHTS
        else:
            weights = str(folder / f"{self._stage.checkpoint}.pth")
        words = f"FOUR_STEP.START_AT {self._reader.number} MODEL.WEIGHTS {weights}"
        if self._reader.restores:
            initial = node.INITIAL_WEIGHTS or folder / "initial_weights.pth"
            words += f" FOUR_STEP.INITIAL_WEIGHTS {initial}"
        return words

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of every file a detector stage trains on, by file name."""
        files = [*self.train_files, *self.mirrored_files]
        return {Path(f).name: sha256(f) for f in files}

    def check(self, digests: Mapping[str, str]) -> None:
        """Check that the files are those a resumed stage began with.

        Args:
            digests: what :meth:`digests` returned then.

        Raises:
            UserError: a file is missing or has changed; names it and the way to continue.
        """
        for name, digest in digests.items():
            path = self.folder / name
            if path.is_file() and sha256(path) == digest:
                continue
            problem = "has changed since" if path.is_file() else "is missing, but"
            raise UserError(
                f"{path} {problem} stage {self._reader.number} began to train on it. Put it "
                f"back; or repeat the stage in a new OUTPUT_DIR, with {self._repeat()}"
            )
        for name in self._cfg.DATASETS.TRAIN:
            dicts = get_detection_dataset_dicts(name, filter_empty=False)
            check_proposals(self.path(name), dicts, name)


def _mirror(record: dict[str, Any]) -> dict[str, Any]:
    """Move ground truth and proposals of ``record`` to the coordinates of the mirrored image."""

    def flip(boxes: Any) -> Any:
        return mirror(torch.as_tensor(np.asarray(boxes)), record["width"]).numpy()

    annotations = []
    for a in record["annotations"]:
        box = BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
        annotations.append({**a, "bbox": flip(box).tolist(), "bbox_mode": BoxMode.XYXY_ABS})
    return {**record, "annotations": annotations, "proposal_boxes": flip(record["proposal_boxes"])}


@contextmanager
def _selection(model: nn.Module, cfg: CfgNode) -> Iterator[None]:
    """Let the RPN select as the originals do for cached proposals: all -> NMS -> 2000."""
    rpn: Any = model.proposal_generator
    before = rpn.pre_nms_topk, rpn.post_nms_topk
    rpn.pre_nms_topk = {**before[0], False: cfg.FOUR_STEP.PRE_NMS_TOPK}
    rpn.post_nms_topk = {**before[1], False: cfg.FOUR_STEP.POST_NMS_TOPK}
    try:
        yield
    finally:
        rpn.pre_nms_topk, rpn.post_nms_topk = before

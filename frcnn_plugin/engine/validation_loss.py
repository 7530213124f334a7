"""The losses on ``DATASETS.TEST`` during training, for a curve beside those of training."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    build_detection_test_loader,
    detection_utils,
    get_detection_dataset_dicts,
)
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from ..data.loading.bad_images import CatchingMapper, CheckedLoader
from ..data.loading.mappers import ImageMapper, with_resize
from ..data.proposals.files import load_proposals
from ..process import leave_if_asked, unwrap_model

logger = logging.getLogger(__name__)


class ValidationLoss(HookBase):
    """Every ``TEST.LOSS_PERIOD`` iterations, log the mean of each loss over a test set.

    The losses are those of training: the same samples are drawn each time, dropout is on, and
    images have the size of test images. Nothing that training goes on with is changed: no
    gradient, no buffer, no random state. They are logged as "validation/loss_rpn_cls", ... and
    "validation/total_loss", with the name of the set in between if there are several.

    All processes need the hook.
    """

    def __init__(
        self, cfg: CfgNode, proposal_files: Callable[[], Sequence[str] | None] | None = None
    ) -> None:
        """Read the period.

        Args:
            cfg: config of the run.
            proposal_files: returns a file per test set if the model needs proposals at this
                moment, or else none; None if its losses cannot be computed now. Default: what
                ``DATASETS.PROPOSAL_FILES_TEST`` says.
        """
        self._cfg = cfg.clone()
        self._cfg.defrost()
        given = list(cfg.DATASETS.PROPOSAL_FILES_TEST) if cfg.MODEL.LOAD_PROPOSALS else []
        self._proposal_files = proposal_files or (lambda: given)

    def after_step(self) -> None:
        """Measure if it is time to."""
        period = self._cfg.TEST.LOSS_PERIOD
        if period <= 0 or (self.trainer.iter + 1) % period:
            return
        files = self._proposal_files()
        if files is None:
            return
        model: Any = unwrap_model(self.trainer.model)
        sets = self._cfg.DATASETS.TEST
        for i, name in enumerate(sets):
            prefix = f"validation/{name}/" if len(sets) > 1 else "validation/"
            with _nothing_changed(model):
                losses = self._measure(model, name, files[i : i + 1])
            if losses and comm.is_main_process():
                logger.info("losses on %s: total %.4g", name, losses["total_loss"])
                for key, value in losses.items():
                    self.trainer.storage.put_scalar(prefix + key, value, smoothing_hint=False)
        comm.synchronize()

    def _measure(self, model: nn.Module, name: str, files: Sequence[str]) -> dict[str, float]:
        """Return the mean losses over a set, in the main process."""
        loader = self._loader(name, files)
        # Of its own, as the model logs what it samples.
        with torch.no_grad(), EventStorage(self.trainer.iter):
            total: defaultdict[str, float] = defaultdict(float)
            images = 0
            model.train()
            for batch in loader:
                leave_if_asked()
                seed_all_rng(images)
                for key, value in model(batch).items():
                    total[key] += float(value) * len(batch)
                images += len(batch)
        shares = comm.gather((total, images))
        images = sum(count for _, count in shares)
        keys = sorted({key for share, _ in shares for key in share})
        means = {key: sum(share.get(key, 0.0) for share, _ in shares) / images for key in keys}
        return means | {"total_loss": sum(means.values())} if means else {}

    def _loader(self, name: str, files: Sequence[str]) -> Any:
        cfg = self._cfg.clone()
        cfg.MODEL.LOAD_PROPOSALS = bool(files)
        if cfg.FOUR_STEP.ENABLED:
            cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = cfg.FOUR_STEP.POST_NMS_TOPK
        # With annotations, as in training, but images as in evaluation.
        options = ImageMapper.from_config(cfg, True)
        images = detection_utils.build_augmentation(cfg, False)
        mapper = ImageMapper(**{**options, "augmentations": with_resize(cfg, images)})
        for file in files:  # before Detectron2 reads it, with which it could run code
            load_proposals(file)
        dicts = get_detection_dataset_dicts(
            [name],
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            proposal_files=list(files) or None,
        )
        loader = build_detection_test_loader(
            dicts, mapper=CatchingMapper(mapper), num_workers=cfg.DATALOADER.NUM_WORKERS
        )
        # An image that cannot be used has no losses, so it is left out as in training.
        return CheckedLoader(cfg, loader, is_train=True)


@contextmanager
def _nothing_changed(model: nn.Module) -> Iterator[None]:
    """Keep buffers, modes and the state of all random generators of this process."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = {name: module.training for name, module in model.named_modules()}
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        for name, module in model.named_modules():
            module.training = training[name]

"""What is worth a warning when training starts, but does not stop it."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import IterableDataset

from .stages import build_stages

logger = logging.getLogger(__name__)


class RunWarnings(HookBase):
    """Says at the start if a run is short, or chooses its best checkpoint on what it trains on."""

    def __init__(self, cfg: CfgNode) -> None:
        """Look at ``cfg`` when training starts; in the main process."""
        self._cfg = cfg

    def before_train(self) -> None:
        """Warn."""
        images = dataset_size(self.trainer._trainer.data_loader)
        if images is not None and self._cfg.DATALOADER.MIRRORED_COPIES:
            images //= 2
        warnings = [short_run(self._cfg, images), validation_on_training_set(self._cfg)]
        for warning in warnings:
            if warning:
                logger.warning("%s", warning)


def dataset_size(loader: Any) -> int | None:
    """Number of entries of the data set at the bottom of a host's data loader, None if unknown."""
    while loader is not None:
        below = getattr(loader, "dataset", None)
        if below is None or below is loader:
            break
        loader = below
        if hasattr(loader, "__getitem__") and not isinstance(loader, IterableDataset):
            break
    try:
        return len(loader)
    except TypeError:
        return None


def short_run(cfg: CfgNode, images: int | None) -> str | None:
    """A warning if not every training image will be seen once.

    Args:
        cfg: config.
        images: of the training set, mirrored copies not counted; None if unknown.
    """
    if images is None:
        return None
    if cfg.FOUR_STEP.ENABLED:
        processes = comm.get_world_size()
        plans = [
            (f"step {stage.number}", f"FOUR_STEP.ITERS {stage.iters}", stage.iters,
             stage.images * processes)
            for stage in build_stages(cfg)
        ]  # fmt: skip
    else:
        iterations = cfg.SOLVER.MAX_ITER
        plans = [("the run", f"SOLVER.MAX_ITER {iterations}", iterations, cfg.SOLVER.IMS_PER_BATCH)]
    short = [
        f"{what} trains less than one epoch: {key} x {batch} images per iteration are "
        f"{iterations * batch} images of {images}"
        for what, key, iterations, batch in plans
        if iterations * batch < images
    ]
    return "; ".join(short) or None


def validation_on_training_set(cfg: CfgNode) -> str | None:
    """A warning if the set that decides on the best checkpoint is one that is trained on."""
    if cfg.TEST.EVAL_PERIOD <= 0 or not cfg.DATASETS.TEST:
        return None
    test = cfg.DATASETS.TEST[0]
    same = [name for name in cfg.DATASETS.TRAIN if name == test or _source(name) == _source(test)]
    if not same:
        return None
    which = f"'{test}'" + (f" (the same data as '{same[0]}')" if same[0] != test else "")
    return (
        f"the best checkpoint is chosen on {which}, which is trained on: its AP50 says nothing "
        "about other images. Put another set first in DATASETS.TEST"
    )


def _source(name: str) -> object:
    """What the data of a registered set are read from; unique if not known."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("json_file"):
        return metadata.get("json_file")
    if metadata.get("dirname"):
        return metadata.get("dirname"), metadata.get("split")
    return object()

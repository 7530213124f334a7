"""Evaluation of a checkpoint, also of one from the middle of four-step training."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from ..checkpoint.checkpointer import AtomicCheckpointer
from ..four_step.checkpoints import as_checkpoint_is
from .trainer import PaperTrainer


def evaluate_checkpoint(cfg: CfgNode) -> Any:
    """Load ``MODEL.WEIGHTS`` and evaluate it on ``DATASETS.TEST``.

    A checkpoint of a four-step run is evaluated as what it is: an RPN (recall) in stages 1 and 3, a
    detector on the proposals of stage 1 in stage 2, which must lie beside it in "proposals/stage1".

    Args:
        cfg: config; in several processes the same.

    Returns:
        the metrics, in the main process.

    Raises:
        UserError: the checkpoint, or the proposals of stage 1, are missing or damaged.
    """
    cfg = as_checkpoint_is(cfg)
    model = PaperTrainer.build_model(cfg)
    AtomicCheckpointer(model, cfg=cfg, evaluating=True).load(cfg.MODEL.WEIGHTS)
    return PaperTrainer.test(cfg, model)

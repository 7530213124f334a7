"""Evaluation of a checkpoint, also of one from the middle of the four steps."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..checkpoint.checkpointer import AtomicCheckpointer
from ..checkpoint.read import peek
from ..errors import UserError
from ..four_step.proposals import with_test_proposals
from .trainer import PaperTrainer

logger = logging.getLogger(__name__)


def evaluate_checkpoint(cfg: CfgNode) -> Any:
    """Load ``MODEL.WEIGHTS`` and evaluate it on ``DATASETS.TEST``.

    A checkpoint of a four-step run is evaluated as what it is: an RPN (recall) in steps 1 and 3, a
    detector on the proposals of step 1 in step 2, which must lie beside it in "proposals/stage1".

    Args:
        cfg: config; in several processes the same.

    Returns:
        the metrics, in the main process.

    Raises:
        UserError: the checkpoint, or the proposals of step 1, are missing or damaged.
    """
    cfg = as_checkpoint_is(cfg)
    model = PaperTrainer.build_model(cfg)
    AtomicCheckpointer(model, cfg=cfg, evaluating=True).load(cfg.MODEL.WEIGHTS)
    return PaperTrainer.test(cfg, model)


def as_checkpoint_is(cfg: CfgNode) -> CfgNode:
    """A copy of the config that evaluates ``MODEL.WEIGHTS`` as the step it is from.

    Raises:
        UserError: it detects on proposals of a step before, and they are missing.
    """
    cfg = cfg.clone()
    cfg.defrost()
    weights = Path(cfg.MODEL.WEIGHTS)
    phase, step = phase_and_step(weights)
    if phase and cfg.MODEL.PAPER_RCNN.PHASE == "joint":
        logger.info("%s is from step %d of 4: evaluated as '%s'", weights, step, phase)
        cfg.MODEL.PAPER_RCNN.PHASE = phase
        if phase == "rpn":  # select as the run did, so that the numbers are the run's
            cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = cfg.FOUR_STEP.PRE_NMS_TOPK
            cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cfg.FOUR_STEP.POST_NMS_TOPK
            logger.info("with the FOUR_STEP.POST_NMS_TOPK %d best", cfg.FOUR_STEP.POST_NMS_TOPK)
        else:
            folder = weights.parent / "proposals" / f"stage{step - 1}"
            files = tuple(str(folder / f"{name}.pkl") for name in cfg.DATASETS.TEST)
            missing = [f for f in files if not Path(f).is_file()]
            if missing:
                raise UserError(
                    f"{weights} detects on proposals of step {step - 1}, but {missing[0]} is "
                    f"missing; make it with tools/dump_proposals.py from stage{step - 1}_final.pth"
                )
            cfg = with_test_proposals(cfg, files)
    return cfg


def phase_and_step(weights: Path) -> tuple[str, int]:
    """Phase and number of the step a checkpoint is from; ("", 0) if it is a whole detector.

    Args:
        weights: file; one that is missing, or of another kind, counts as a whole detector.
    """
    if weights.suffix != ".pth" or not weights.is_file():
        return "", 0
    try:
        step = peek(weights).stage
    except UserError:  # the checkpointer will judge it
        return "", 0
    return {1: "rpn", 2: "fast_rcnn", 3: "rpn"}.get(step, ""), step

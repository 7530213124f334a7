"""Evaluation of stages: of their checkpoints, and in the middle of a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import hooks

from .. import host
from ..atomic_files import safe_file_name
from ..checkpoint.read import peek
from ..errors import UserError
from ..process import unwrap_model
from .stages import STAGES, ScheduledStage, Stage, stage_at

logger = logging.getLogger(__name__)


def with_test_proposals(cfg: CfgNode, proposal_files: Sequence[str]) -> CfgNode:
    """Return a copy of ``cfg`` with a file of proposals for each entry of ``DATASETS.TEST``."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS.PROPOSAL_FILES_TEST = tuple(proposal_files)
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    return cfg


def stage_of(weights: str | os.PathLike[str]) -> Stage | None:
    """Return the stage that a checkpoint is from; None if it is a whole detector.

    FourStepHook's state in the checkpoint tells, not the file's name. A missing file, or one of
    another kind, counts as a whole detector.
    """
    path = Path(weights)
    if path.suffix != ".pth" or not path.is_file():
        return None
    try:
        number = peek(path).stage
    except UserError:  # the checkpointer will report it
        return None
    return next((s for s in STAGES if s.number == number and not s.completes), None)


def as_checkpoint_is(cfg: CfgNode) -> CfgNode:
    """Return a copy of the config that evaluates ``MODEL.WEIGHTS`` as the stage it is from.

    Raises:
        UserError: the stage needs proposals of the stage before, and they are missing.
    """
    cfg = cfg.clone()
    cfg.defrost()
    weights = Path(cfg.MODEL.WEIGHTS)
    stage = stage_of(weights)
    if stage is None or cfg.MODEL.PAPER_RCNN.PHASE != "joint":
        return cfg
    logger.info(
        "%s is from stage %d of %d: evaluated as '%s'",
        weights, stage.number, len(STAGES), stage.phase,
    )  # fmt: skip
    cfg.MODEL.PAPER_RCNN.PHASE = stage.phase
    if not stage.proposals_of:  # the run's selection, so that the results are the run's
        cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = cfg.FOUR_STEP.PRE_NMS_TOPK
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cfg.FOUR_STEP.POST_NMS_TOPK
        logger.info("with the FOUR_STEP.POST_NMS_TOPK %d best", cfg.FOUR_STEP.POST_NMS_TOPK)
        return cfg
    folder = weights.parent / stage.proposals
    files = [str(folder / f"{safe_file_name(name)}.pkl") for name in cfg.DATASETS.TEST]
    missing = next((f for f in files if not Path(f).is_file()), None)
    if missing is not None:
        source = STAGES[stage.proposals_of - 1]
        raise UserError(
            f"{weights} detects on proposals of stage {source.number}, but {missing} is missing; "
            f"make it with frcnn proposals dump from {source.checkpoint}.pth"
        )
    return with_test_proposals(cfg, files)


class StageEvalHook(hooks.EvalHook):
    """Detectron2's EvalHook that evaluates as much of a detector as the stage has.

    Every ``TEST.EVAL_PERIOD`` iterations: in stages 1 and 3 nothing, as there is no detector; in
    stage 2 the detector on the proposals of stage 1 (metrics "stage2/..."); in stage 4 the whole
    detector, with the RPN of stage 3. At the end of the run the finished detector, if there is one.
    """

    def __init__(
        self,
        plain: hooks.EvalHook,
        stages: Sequence[ScheduledStage],
        evaluate: Callable[[Stage, Any], Any],
    ) -> None:
        """Take the place of Detectron2's hook.

        Args:
            plain: the hook as DefaultTrainer made it: how often, and what it would evaluate.
            stages: the run's stages.
            evaluate: measures a detector that is not whole, as
                :meth:`~frcnn_plugin.four_step.FourStepHook.evaluate` does.
        """
        # If the model is not whole at the end, FourStepHook evaluates its last stage.
        period, function = host.eval_period_and_function(plain)
        super().__init__(period, function, eval_after_train=stages[-1].completes)
        self._every = period
        self._stages, self._evaluate = stages, evaluate

    def after_step(self) -> None:
        """Evaluate if it is time to."""
        iteration = self.trainer.iter + 1
        if self._every <= 0 or iteration % self._every != 0:
            return
        stage = stage_at(self._stages, self.trainer.iter)
        # The end of a stage is left to FourStepHook, or to after_train.
        if stage is None or not stage.proposals_of or iteration == stage.end:
            return
        model: Any = unwrap_model(self.trainer.model)
        if stage.completes:
            model.set_phase("joint")
            super().after_step()
        else:
            self._evaluate(stage, model)
        model.set_phase(stage.phase)

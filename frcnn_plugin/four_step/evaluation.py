"""Evaluation of a run in the middle of a stage, and of detectors on given proposals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import hooks

from .. import host
from ..process import unwrap_model
from .stages import ScheduledStage, Stage, stage_at


def with_test_proposals(cfg: CfgNode, proposal_files: Sequence[str]) -> CfgNode:
    """Return a copy of ``cfg`` whose test sets come with proposals.

    Args:
        cfg: config.
        proposal_files: one per entry of ``DATASETS.TEST``.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS.PROPOSAL_FILES_TEST = tuple(proposal_files)
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    return cfg


class StageEvalHook(hooks.EvalHook):
    """Detectron2's EvalHook that knows what there is to evaluate.

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
            stages: of the run.
            evaluate: measures a detector that is not whole, as
                :meth:`~frcnn_plugin.four_step.FourStepHook.evaluate`.
        """
        # If the model is not whole at the end, FourStepHook evaluates what there is.
        period, function = host.eval_period_and_function(plain)
        super().__init__(period, function, eval_after_train=stages[-1].completes)
        self._every = period
        self._stages, self._evaluate = stages, evaluate

    def after_step(self) -> None:
        """Evaluate if it is time for it."""
        iteration = self.trainer.iter + 1
        if self._every <= 0 or iteration % self._every != 0:
            return
        stage = stage_at(self._stages, self.trainer.iter)
        # The end of a stage is FourStepHook's, or after_train's.
        if stage is None or not stage.proposals_of or iteration == stage.end:
            return
        model: Any = unwrap_model(self.trainer.model)
        if stage.completes:
            model.set_phase("joint")
            super().after_step()
        else:
            self._evaluate(stage, model)
        model.set_phase(stage.phase)

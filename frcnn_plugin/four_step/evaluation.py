"""Evaluation in the middle of the four steps."""

from __future__ import annotations

from typing import Any

from detectron2.engine import hooks

from ..host import eval_period_and_function
from ..process import unwrap_model
from .hook import FourStepHook


class StageEvalHook(hooks.EvalHook):
    """The host's EvalHook that knows what there is to evaluate.

    Every ``TEST.EVAL_PERIOD`` iterations: in steps 1 and 3 nothing, as there is no detector; in
    step 2 the detector on the proposals of step 1 (metrics "stage2/..."); in step 4 the whole
    detector, with the RPN of step 3. At the end of the run the finished detector, if there is one.
    """

    def __init__(self, host: hooks.EvalHook, four_step: FourStepHook) -> None:
        """Take over what ``host``, as DefaultTrainer made it, would evaluate."""
        finished = four_step.stages[-1].number == 4  # else four_step evaluates what there is
        super().__init__(*eval_period_and_function(host), eval_after_train=finished)
        self._four_step = four_step

    def after_step(self) -> None:
        """Evaluate if it is time for it."""
        iteration = self.trainer.iter + 1
        if self._period <= 0 or iteration % self._period != 0:
            return
        stage = self._four_step.stage_at(self.trainer.iter)
        # The end of a step is four_step's, or after_train's.
        if stage is None or stage.phase == "rpn" or iteration == stage.end:
            return
        model: Any = unwrap_model(self.trainer.model)
        if stage.number == 4:
            model.set_phase("joint")
            self._do_eval()
        else:
            self._four_step.evaluate(stage.number, model)
        model.set_phase(stage.phase)

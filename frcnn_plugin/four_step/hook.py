"""Four-step alternating training as a hook in one run (paper section 3.2)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data.loading.train_loader import build_train_loader
from ..process import unwrap_model, wrap_model
from . import weights as stage_weights
from .checkpoints import check_schedule, check_start, schedule_state
from .log import StageLog, forget_losses, put_results
from .plan import format_plan, plan_rows
from .proposals import StageProposals
from .stage_statistics import set_target_statistics
from .stages import Stage, build_stages
from .statistics import broadcast_statistics

logger = logging.getLogger(__name__)


class FourStepHook(HookBase):
    """Switches one model between the steps of the paper's alternating training.

    There is one model, one optimizer and one learning-rate schedule. At the first iteration of a
    step the hook makes proposals with the step before, changes weights as the step asks for,
    forgets momentum, freezes what does not train, wraps the model for several processes anew and
    swaps the data loader. Parameters that do not train have no gradient, so the optimizer passes
    over them and its state always fits on resume.

    A checkpoint of iteration i resumes at i + 1. If that is the first iteration of a step, nothing
    of the step has happened and all of it is done; otherwise all of it is in the checkpoint.

    It must be the first hook of the trainer, in all processes. Needs a PaperRCNN model and a
    trainer with ``model``, ``optimizer``, ``scheduler`` and ``_trainer`` as the host's
    DefaultTrainer has them; the schedule comes from
    :func:`~frcnn_plugin.four_step.stages.build_four_step_scheduler`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Read the schedule from ``FOUR_STEP``.

        Raises:
            UserError: see :func:`~frcnn_plugin.four_step.stages.build_stages` and
                :func:`~frcnn_plugin.four_step.checkpoints.check_start`.
        """
        check_start(cfg)
        self.cfg = cfg.clone()
        self.stages = build_stages(cfg)
        self._seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self._active: Stage | None = None
        self._log = StageLog()
        # What a resumed run has to find again: digests of proposal files, and of the backbone.
        self._proposals: dict[str, str] = {}
        self._shared_convolutions = ""

    # ---- the run ----------------------------------------------------------------------------

    def before_train(self) -> None:
        """Print the plan, keep the initial weights, take up an interrupted step."""
        model: Any = unwrap_model(self.trainer.model)
        self._trainable = [n for n, p in model.named_parameters() if p.requires_grad]
        self._log.start()
        self.plan = plan_rows(self.cfg, self.stages, model)
        logger.info("%s", format_plan(self.cfg, self.plan))
        if self.trainer.start_iter == 0 and not self.cfg.FOUR_STEP.INITIAL_WEIGHTS:
            if comm.is_main_process():
                Path(self.cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
                stage_weights.save_initial(model, self._initial_weights)
            comm.synchronize()
        # The rate that a finished run saved is that of its own end, not of the step that follows.
        rates = self.trainer.scheduler.get_lr()
        for group, rate in zip(self.trainer.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        stage = self.stage_at(self.trainer.start_iter)
        if stage is not None and stage.start != self.trainer.start_iter:
            self._resume(stage)

    def before_step(self) -> None:
        """Enter a step at its first iteration."""
        stage = self.stage_at(self.trainer.iter)
        assert stage is not None, self.trainer.iter
        if self.trainer.iter == stage.start:
            self._enter(stage)
        self.trainer.storage.put_scalar("stage", stage.number, smoothing_hint=False)

    def after_step(self) -> None:
        """Finish a step behind its last iteration, before any checkpoint of it is written."""
        stage = self._active
        if stage is not None and self.trainer.iter + 1 == stage.end:
            model: Any = unwrap_model(self.trainer.model)
            stage_weights.fold_statistics(model)
            if stage.number == 3:
                self._shared_convolutions = stage_weights.digest(model.backbone)

    def after_train(self) -> None:
        """Make the model whole, and make sure that both its networks share their convolutions."""
        model: Any = unwrap_model(self.trainer.model)
        last = self.stages[-1]
        if self.trainer.iter >= last.end:  # not so after an error
            if last.number == 4:
                self._check_shared(model)
            else:
                self._keep_results(self.evaluate(last.number, model))
        self._log.stop()
        model.set_phase("joint" if last.number == 4 else last.phase)

    # ---- entering a step --------------------------------------------------------------------

    def _enter(self, stage: Stage) -> None:
        comm.synchronize()
        self._log.stage = stage.number
        logger.info("step %d of 4 begins: %s", stage.number, stage.phase)
        model: Any = unwrap_model(self.trainer.model)
        model.eval()
        # A run that starts with a detector step has the RPN's checkpoint, but not its proposals.
        if stage is not self.stages[0] or stage.phase == "fast_rcnn":
            self.evaluate(stage.number - 1, model)
        if stage.number == 2:
            stage_weights.restore_initial(model, self._initial_weights, ("backbone", "roi_heads"))
        elif stage.number == 3:
            stage_weights.redraw_rpn_head(model, self._seed + stage.number)
        elif stage.number == 4 and self.cfg.FOUR_STEP.PREDICTOR_START == "restart":
            stage_weights.redraw_predictor(model, self._seed + stage.number)
        if stage.number == 4 and not self._shared_convolutions:  # step 3 was another run's
            self._shared_convolutions = stage_weights.digest(model.backbone)
        set_target_statistics(self.cfg, stage, model)
        if stage.phase == "fast_rcnn":
            self._proposals = broadcast_statistics(self._stage_proposals(stage).digests)
        # In place: the learning-rate scheduler and the checkpointer hold the optimizer.
        self.trainer.optimizer.state.clear()
        self._activate(stage, model)

    def _resume(self, stage: Stage) -> None:
        logger.info("resuming in step %d of 4", stage.number)
        if stage.phase == "fast_rcnn":
            self._stage_proposals(stage).check(self._proposals)
        self._activate(stage, unwrap_model(self.trainer.model))

    def _activate(self, stage: Stage, model: Any) -> None:
        self._active = stage
        self._log.stage = stage.number
        model.set_phase(stage.phase)
        trains = tuple(f"{name}." for name in stage.trains)
        trainable = {name for name in self._trainable if name.startswith(trains)}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
            parameter.grad = None
        # A live wrapper would not notice the change, and processes would drift apart.
        self.trainer.model = model
        self.trainer.model = wrap_model(model).train()
        forget_losses(self.trainer.storage)
        self.trainer._trainer.reset_data_loader(lambda: self._loader(stage))

    def _loader(self, stage: Stage) -> Any:
        cfg = self.cfg.clone()
        cfg.defrost()
        files: dict[str, list[str]] = {}
        if stage.phase == "fast_rcnn":
            cfg.MODEL.LOAD_PROPOSALS = True
            cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = cfg.FOUR_STEP.POST_NMS_TOPK
            proposals = self._stage_proposals(stage)
            files["proposal_files"] = proposals.train_files
            files["mirrored_proposal_files"] = proposals.mirrored_files
        return build_train_loader(
            cfg,
            images_per_process=stage.images,
            seed=self._seed + stage.number,
            start_iter=self.trainer.storage.iter - stage.start,
            **files,
        )

    # ---- parts ------------------------------------------------------------------------------

    def evaluate(self, number: int, model: Any) -> dict[str, Any]:
        """Measure a finished step; an RPN step also hands its proposals on.

        Returns:
            per test set, metrics by task (main process); empty if nothing was measured.
        """
        results: dict[str, Any] = {}
        if number in (1, 3):
            results = StageProposals(self.cfg, number).make(model)
        elif self.cfg.FOUR_STEP.EVALUATE_STEPS and hasattr(self.trainer, "test_on_proposals"):
            files = StageProposals(self.cfg, number - 1).test_files
            if all(Path(f).is_file() for f in files):  # not so if the run started with this step
                results = self.trainer.test_on_proposals(model, files)
        if not comm.is_main_process():
            return {}
        put_results(self.trainer.storage, number, results)
        return results

    def _keep_results(self, results: dict[str, Any]) -> None:
        # Where the host looks for those of its own evaluation, and in the same form.
        if results:
            only = next(iter(results.values()))
            self.trainer._last_eval_results = results if len(results) > 1 else only

    def _check_shared(self, model: Any) -> None:
        if stage_weights.digest(model.backbone) != self._shared_convolutions:
            raise RuntimeError("the convolutions changed in step 4, which must not train them")
        logger.info(
            "the RPN (step 3) and the detector (step 4) share their convolutions: SHA-256 %s",
            self._shared_convolutions,
        )

    def stage_at(self, iteration: int) -> Stage | None:
        """The step that an iteration of the whole run belongs to."""
        return next((s for s in self.stages if s.start <= iteration < s.end), None)

    def _stage_proposals(self, stage: Stage) -> StageProposals:
        return StageProposals(self.cfg, stage.number - 1)

    @property
    def _initial_weights(self) -> str:
        given = self.cfg.FOUR_STEP.INITIAL_WEIGHTS
        return given or str(Path(self.cfg.OUTPUT_DIR) / "initial_weights.pth")

    # ---- checkpoints ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values: what a resumed run needs, and the step, which evaluation needs."""
        return {
            "proposals": dict(self._proposals),
            "shared_convolutions": self._shared_convolutions,
            "schedule": schedule_state(self.cfg),
            "seed": int(self._seed),
            "step": self._active.number if self._active else 0,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of an interrupted run.

        Raises:
            UserError: it had another schedule; names the keys and both values.
        """
        check_schedule(state["schedule"], schedule_state(self.cfg))
        self._seed = state["seed"]
        self._proposals = state["proposals"]
        self._shared_convolutions = state["shared_convolutions"]

"""Four-step alternating training as a hook in one run (paper section 3.2, facts 9.1)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm

from ..errors import UserError
from ..modeling.feature_sizes import backbone_feature_sizes
from . import stage_weights
from .parallel import unwrap_model, wrap_model
from .plan import format_plan
from .stage_log import StageLog
from .stage_proposals import StageProposals
from .stages import Stage, build_stages
from .statistics import broadcast_statistics, head_target_statistics, rpn_target_statistics
from .train_loader import build_train_loader, training_dicts

logger = logging.getLogger(__name__)

# A resumed run must have been started with the same values of these.
_SCHEDULE_KEYS = (
    *(
        f"FOUR_STEP.{key}"
        for key in (
            "ITERS", "DROPS", "IMS_PER_BATCH", "PREDICTOR_START", "TARGET_STATISTICS",
            "RPN_TARGET_STATISTICS", "PRE_NMS_TOPK", "POST_NMS_TOPK", "MIRRORED_PROPOSALS",
            "START_AT",
        )
    ),
    *(f"SOLVER.{key}" for key in ("BASE_LR", "GAMMA", "MOMENTUM", "WEIGHT_DECAY")),
    "SEED",
    "DATASETS.TRAIN",
)  # fmt: skip


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
    trainer with ``model``, ``optimizer``, ``checkpointer`` and ``_trainer`` as the host's
    DefaultTrainer has them; the schedule comes from
    :func:`~frcnn_plugin.engine.stages.build_four_step_scheduler`.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Read the schedule from ``FOUR_STEP``.

        Raises:
            UserError: see :func:`~frcnn_plugin.engine.stages.build_stages`.
        """
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
        logger.info("%s", format_plan(self.cfg, self.stages, model))
        if self.trainer.start_iter == 0 and not self.cfg.FOUR_STEP.INITIAL_WEIGHTS:
            if comm.is_main_process():
                Path(self.cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
                stage_weights.save_initial(model, self._initial_weights)
            comm.synchronize()
        stage = self._stage_at(self.trainer.start_iter)
        if stage is not None and stage.start != self.trainer.start_iter:
            self._resume(stage)

    def before_step(self) -> None:
        """Enter a step at its first iteration."""
        iteration = self.trainer.iter
        stage = self._stage_at(iteration)
        assert stage is not None, iteration
        if iteration == stage.start:
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
        if self.trainer.iter + 1 >= last.end:
            if last.number == 4:
                self._check_shared(model)
            else:
                self._evaluate(last, model)
        self._log.stop()
        model.set_phase("joint" if last.number == 4 else last.phase)

    # ---- entering a step --------------------------------------------------------------------

    def _enter(self, stage: Stage) -> None:
        comm.synchronize()
        self._log.stage = stage.number
        logger.info("step %d of 4 begins: %s", stage.number, stage.phase)
        model: Any = unwrap_model(self.trainer.model)
        model.eval()
        if stage is not self.stages[0]:
            self._evaluate(self.stages[self.stages.index(stage) - 1], model)
        elif stage.phase == "fast_rcnn":  # the run starts here, with the RPN's checkpoint
            self._evaluate(None, model, number=stage.number - 1)
        if stage.number == 2:
            stage_weights.restore_initial(model, self._initial_weights, ("backbone", "roi_heads"))
        elif stage.number == 3:
            stage_weights.redraw_rpn_head(model, self._seed + stage.number)
        elif stage.number == 4 and self.cfg.FOUR_STEP.PREDICTOR_START == "restart":
            stage_weights.redraw_predictor(model, self._seed + stage.number)
        self._set_statistics(stage, model)
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
        self.trainer.model = None
        self.trainer.model = wrap_model(model).train()
        self._forget_losses()
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

    def _set_statistics(self, stage: Stage, model: Any) -> None:
        cfg = self.cfg
        if stage.phase == "rpn" and cfg.FOUR_STEP.RPN_TARGET_STATISTICS:
            rpn = model.proposal_generator
            mean, std = broadcast_statistics(
                lambda: rpn_target_statistics(
                    training_dicts(cfg),
                    rpn,
                    backbone_feature_sizes(model.backbone, rpn.in_features),
                    min_size=cfg.INPUT.MIN_SIZE_TRAIN[0],
                    max_size=cfg.INPUT.MAX_SIZE_TRAIN,
                )
            )
            rpn.target_statistics.set(mean, std)
        elif stage.phase == "fast_rcnn" and cfg.FOUR_STEP.TARGET_STATISTICS == "per_class":
            predictor = model.roi_heads.box_predictor
            proposals = self._stage_proposals(stage)
            mean, std, _ = broadcast_statistics(
                lambda: head_target_statistics(
                    proposals.training_dicts(),
                    predictor.num_classes,
                    predictor.box2box_transform,
                    mirror=not proposals.mirrored_files,
                    class_agnostic=predictor.target_statistics.num_classes == 1,
                    class_names=MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes,
                )
            )
            if stage.number == 4 and cfg.FOUR_STEP.PREDICTOR_START == "continue":
                # The function that step 2 learned stays, in the units of the new statistics.
                predictor.target_statistics.unfold(predictor.bbox_pred, mean, std)
            else:
                predictor.target_statistics.set(mean, std)

    def _evaluate(self, stage: Stage | None, model: Any, number: int = 0) -> None:
        """Measure a finished step; an RPN step also hands its proposals on."""
        number = stage.number if stage else number
        if number in (1, 3):
            results = StageProposals(self.cfg, number).make(model)
        elif self.cfg.FOUR_STEP.EVALUATE_STEPS and hasattr(self.trainer, "test_on_proposals"):
            files = StageProposals(self.cfg, number - 1).test_files
            if not all(Path(f).is_file() for f in files):
                return  # the run started with this step
            results = self.trainer.test_on_proposals(model, files)
        else:
            return
        if comm.is_main_process():
            for metrics in results.values():
                for task, values in metrics.items():
                    for key, value in values.items():
                        name = f"stage{number}/{task}/{key}"
                        self.trainer.storage.put_scalar(name, value, smoothing_hint=False)

    def _check_shared(self, model: Any) -> None:
        if not self._shared_convolutions:
            return  # the run did not train step 3
        if stage_weights.digest(model.backbone) != self._shared_convolutions:
            raise RuntimeError("the convolutions changed in step 4, which must not train them")
        logger.info(
            "the RPN (step 3) and the detector (step 4) share their convolutions: SHA-256 %s",
            self._shared_convolutions,
        )

    def _forget_losses(self) -> None:
        # The host prints the newest value of every loss, also of those that have ended.
        storage = self.trainer.storage
        for values in (storage._history, storage._latest_scalars):
            for name in [n for n in values if "loss" in n]:
                del values[name]

    def _stage_at(self, iteration: int) -> Stage | None:
        return next((s for s in self.stages if s.start <= iteration < s.end), None)

    def _stage_proposals(self, stage: Stage) -> StageProposals:
        return StageProposals(self.cfg, stage.number - 1)

    @property
    def _initial_weights(self) -> str:
        given = self.cfg.FOUR_STEP.INITIAL_WEIGHTS
        return given or str(Path(self.cfg.OUTPUT_DIR) / "initial_weights.pth")

    # ---- checkpoints ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values: digests, and the keys that must not change."""
        return {
            "proposals": dict(self._proposals),
            "shared_convolutions": self._shared_convolutions,
            "schedule": {key: repr(_value(self.cfg, key)) for key in _SCHEDULE_KEYS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the state of an interrupted run.

        Raises:
            UserError: it had another schedule; names the keys and both values.
        """
        now = self.state_dict()["schedule"]
        changed = [
            f"{key} was {before} and is {now[key]}"
            for key, before in state["schedule"].items()
            if key in now and now[key] != before
        ]
        if changed:
            raise UserError(
                f"this run began with another schedule: {'; '.join(changed)}. Resume it with the "
                "old values, or start a new run in another OUTPUT_DIR"
            )
        self._proposals = state["proposals"]
        self._shared_convolutions = state["shared_convolutions"]


class StageCheckpointer(HookBase):
    """Writes ``stage<k>_final`` behind the last iteration of each step.

    Put it behind the host's LRScheduler hook, so that the schedule's state is that of the next
    iteration. Main process only, as the host's PeriodicCheckpointer.
    """

    def __init__(self, stages: list[Stage]) -> None:
        """Take the steps of the run."""
        self._stages = stages

    def after_step(self) -> None:
        """Save at the end of a step."""
        for stage in self._stages:
            if self.trainer.iter + 1 == stage.end:
                self.trainer.checkpointer.save(
                    stage.checkpoint, iteration=self.trainer.iter, phase=stage.phase
                )


def _value(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg

"""Four-step alternating training as a hook in one run (paper section 3.2)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from .. import host
from ..atomic_files import sha256
from ..data.loading.train_loader import build_train_loader
from ..errors import UserError
from ..modeling import fold_target_statistics
from ..process import unwrap_model, wrap_model
from . import weights as stage_weights
from .checkpoints import INITIAL_WEIGHTS, check_same, check_start, schedule_state
from .log import StageLog, format_plan, plan_rows, put_results
from .proposals import StageProposals
from .stages import STAGES, ScheduledStage, Stage, build_stages, stage_at
from .statistics import on_main_process, set_target_statistics

logger = logging.getLogger(__name__)


class FourStepHook(HookBase):
    """Switch one model between the stages of the paper's alternating training.

    There is one model, one optimizer and one learning-rate schedule. At the first iteration of a
    stage the hook makes proposals with the model of the stage before, changes weights as the stage
    requires, forgets momentum, freezes what does not train, wraps the model for several processes
    anew and swaps the data loader. Parameters that do not train have no gradient, so the optimizer
    passes over them and its state always fits on resume.

    A checkpoint of iteration i resumes at i + 1. If that is the first iteration of a stage, none of
    this has happened yet and all of it is done; otherwise all of it is in the checkpoint.

    It must be the first hook of the trainer, in all processes. It needs a PaperRCNN model and a
    trainer with ``model``, ``optimizer``, ``scheduler`` and ``_trainer``, as Detectron2's
    DefaultTrainer has them; the schedule comes from
    :func:`~frcnn_plugin.four_step.build_four_step_scheduler`.

    Attributes:
        stages: of the run.
        plan: the printed plan, a row per stage; empty until ``before_train``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Read the schedule from ``FOUR_STEP``; raise UserError if it cannot be run."""
        check_start(cfg)
        self.cfg = cfg.clone()
        self.stages = build_stages(cfg)
        self.plan: list[dict[str, str]] = []
        self._seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self._active: ScheduledStage | None = None
        self._log = StageLog()
        # Those of the RPN stages, by number, including stages that this run leaves out.
        self._proposals = {
            s.number: StageProposals(self.cfg, s) for s in STAGES if s.phase == "rpn"
        }
        # What a resumed run must find unchanged: digests of proposal files and of the backbone.
        self._proposal_digests: dict[str, str] = {}
        self._shared_convolutions = ""
        self._initial_digest = ""  # of the file; "" in files of earlier versions

    # ---- the run ----------------------------------------------------------------------------

    def before_train(self) -> None:
        """Print the plan, keep the initial weights, continue an interrupted stage."""
        model: Any = unwrap_model(self.trainer.model)
        # What the config froze (for VGG16 conv1 and conv2) stays frozen in every stage.
        self._trainable = [n for n, p in model.named_parameters() if p.requires_grad]
        for planned in self.stages:
            if not any(n.split(".", 1)[0] in planned.trains for n in self._trainable):
                frozen = self.cfg.MODEL.PAPER_RCNN.FREEZE
                raise UserError(
                    f"MODEL.PAPER_RCNN.FREEZE {list(frozen)} leaves nothing for stage "
                    f"{planned.number} to train: shorten the list, or leave the stage out with "
                    "FOUR_STEP.START_AT and FOUR_STEP.STOP_AFTER"
                )
        self._log.start()
        self.plan = plan_rows(self.cfg, self.stages, model)
        logger.info("%s", format_plan(self.cfg, self.plan))
        if self.trainer.start_iter == 0 and not self.cfg.FOUR_STEP.INITIAL_WEIGHTS:
            if comm.is_main_process():
                Path(self.cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
                stage_weights.save_initial(model, self._initial_weights)
            comm.synchronize()
        self._check_initial(model)
        # A run that was finished saved the rate of its end, not that of the stage that follows.
        rates = self.trainer.scheduler.get_lr()
        for group, rate in zip(self.trainer.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        stage = stage_at(self.stages, self.trainer.start_iter)
        if stage is not None and stage.start != self.trainer.start_iter:
            self._resume(stage)
        else:  # its checkpoint may have to be written yet
            self._active = stage_at(self.stages, self.trainer.start_iter - 1)

    def before_step(self) -> None:
        """Enter a stage at its first iteration."""
        stage = stage_at(self.stages, self.trainer.iter)
        assert stage is not None, self.trainer.iter
        if self.trainer.iter == stage.start:
            self._enter(stage)
        self.trainer.storage.put_scalar("stage", stage.number, smoothing_hint=False)

    def after_step(self) -> None:
        """Fold statistics after a stage's last iteration, before any checkpoint of it is written.

        From then on its weights mean what those of Detectron2's own layers mean, in every file.
        """
        if self._active is not None and self.trainer.iter + 1 == self._active.end:
            fold_target_statistics(unwrap_model(self.trainer.model))

    def after_train(self) -> None:
        """Make the model whole, and check that both its networks share their convolutions."""
        model: Any = unwrap_model(self.trainer.model)
        last = self.stages[-1]
        if self.trainer.iter >= last.end:  # otherwise an error ended the run
            if last.completes:
                self._check_shared(model)
            elif results := self.evaluate(last, model):
                # Where DefaultTrainer looks for its own evaluation's results, in the same form.
                only = next(iter(results.values()))
                host.set_last_results(self.trainer, results if len(results) > 1 else only)
        self._log.stop()
        model.set_phase("joint" if last.completes else last.phase)

    # ---- entering a stage -------------------------------------------------------------------

    def _enter(self, stage: ScheduledStage) -> None:
        comm.synchronize()
        model: Any = unwrap_model(self.trainer.model)
        model.eval()
        # A run that starts with a detector stage has the RPN's checkpoint but not its proposals.
        if stage.previous is not None and (stage.proposals_of or stage is not self.stages[0]):
            self._log.stage = stage.previous.number  # what is measured is its result
            self.evaluate(stage.previous, model)
        self._log.stage = stage.number
        logger.info("stage %d of %d begins: %s", stage.number, len(STAGES), stage.name)
        stage_weights.begin_stage(model, stage, self._initial_weights, self._seed + stage.number)
        # From here on the convolutions must not change: noted now, compared at the end of the run.
        if "backbone" not in stage.trains and not self._shared_convolutions:
            self._shared_convolutions = stage_weights.digest(model.backbone)
        proposals = self._proposals.get(stage.proposals_of)
        set_target_statistics(self.cfg, stage, model, proposals)
        if proposals is not None:
            self._proposal_digests = on_main_process(proposals.digests)
        # In the originals each stage is a separate training with a new solver. Here the optimizer
        # is emptied, not replaced, as the scheduler and the checkpointer hold this one.
        self.trainer.optimizer.state.clear()
        self._activate(stage, model)

    def _resume(self, stage: ScheduledStage) -> None:
        logger.info("resuming in stage %d of %d", stage.number, len(STAGES))
        if stage.proposals_of:
            self._proposals[stage.proposals_of].check(self._proposal_digests)
        self._activate(stage, unwrap_model(self.trainer.model))

    def _activate(self, stage: ScheduledStage, model: Any) -> None:
        self._active = stage
        self._log.stage = stage.number
        model.set_phase(stage.phase)
        trains = tuple(f"{name}." for name in stage.trains)
        trainable = {name for name in self._trainable if name.startswith(trains)}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trainable)
            parameter.grad = None
        # DistributedDataParallel reads requires_grad only when it is made. An old wrapper would not
        # notice the change, and the processes would drift apart.
        self.trainer.model = model
        self.trainer.model = wrap_model(model).train()
        # The log would show the last losses of the stage before next to those of this one.
        host.forget_scalars(self.trainer.storage, "loss")
        host.inner_trainer(self.trainer).reset_data_loader(lambda: self._loader(stage))

    def _loader(self, stage: ScheduledStage) -> Any:
        cfg = self.cfg.clone()
        cfg.defrost()
        files: dict[str, list[str]] = {}
        if stage.proposals_of:
            cfg.MODEL.LOAD_PROPOSALS = True
            cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = cfg.FOUR_STEP.POST_NMS_TOPK
            proposals = self._proposals[stage.proposals_of]
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

    def evaluate(self, stage: Stage, model: Any) -> dict[str, Any]:
        """Measure a finished stage; an RPN also writes its proposals.

        Args:
            stage: any but the last of the four, which the trainer evaluates.
            model: unwrapped.

        Returns:
            per test set, metrics by task (main process); empty if nothing was measured.
        """
        results: dict[str, Any] = {}
        if stage.number in self._proposals:
            results = self._proposals[stage.number].make(model)
        elif self.cfg.FOUR_STEP.EVALUATE_STEPS and hasattr(self.trainer, "test_on_proposals"):
            files = self._proposals[stage.proposals_of].test_files
            if all(Path(f).is_file() for f in files):  # none if the run started with this stage
                results = self.trainer.test_on_proposals(model, files)
        if not comm.is_main_process():
            return {}
        put_results(self.trainer.storage, stage.number, results)
        return results

    def test_proposals(self) -> list[str] | None:
        """Return the files of proposals that the losses of this stage need on ``DATASETS.TEST``.

        None if there are no such files, or the stage has just ended: its statistics are folded.
        """
        stage = self._active
        if stage is None or self.trainer.iter + 1 == stage.end:
            return None
        files = self._proposals[stage.proposals_of].test_files if stage.proposals_of else []
        return files if all(Path(f).is_file() for f in files) else None

    def _check_shared(self, model: Any) -> None:
        if stage_weights.digest(model.backbone) != self._shared_convolutions:
            raise RuntimeError(
                "the convolutions changed in stage 3 or 4, which must not train them"
            )
        logger.info(
            "the RPN (stage 3) and the detector (stage 4) share their convolutions: SHA-256 %s",
            self._shared_convolutions,
        )

    def _check_initial(self, model: Any) -> None:
        """Stop before training, not when stage 2 begins, if its weights are gone or others."""
        ahead = [s for s in self.stages if s.restores and s.start >= self.trainer.start_iter]

        def found() -> str:
            for stage in ahead:
                stage_weights.initial_state(model, self._initial_weights, stage.trains)
            return sha256(self._initial_weights)

        if ahead:
            before, self._initial_digest = self._initial_digest, on_main_process(found)
            then, now = (
                {INITIAL_WEIGHTS: f"{d[:12]} (SHA-256)"} for d in (before, self._initial_digest)
            )
            check_same(then if before else {}, now, self.cfg.RESUME_MAY_DIFFER)

    @property
    def _initial_weights(self) -> str:
        given = self.cfg.FOUR_STEP.INITIAL_WEIGHTS
        return given or str(Path(self.cfg.OUTPUT_DIR) / "initial_weights.pth")

    # ---- checkpoints ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return plain values: what a resumed run needs, and the stage, for evaluation."""
        return {
            "proposals": dict(self._proposal_digests),
            "shared_convolutions": self._shared_convolutions,
            "initial_weights": self._initial_digest,
            "schedule": schedule_state(self.cfg),
            "seed": int(self._seed),
            "step": self._active.number if self._active else 0,  # see evaluation.stage_of
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state of an interrupted run; raise UserError if its schedule was another."""
        check_same(state["schedule"], schedule_state(self.cfg), self.cfg.RESUME_MAY_DIFFER)
        self._seed = state["seed"]
        self._proposal_digests = state["proposals"]
        self._shared_convolutions = state["shared_convolutions"]
        self._initial_digest = state.get("initial_weights", "")

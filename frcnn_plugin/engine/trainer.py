"""Detectron2's trainer with what the originals' training needs; evaluation of a checkpoint."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_train_loader
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from .. import stopping
from ..atomic_files import disk_error, safe_file_name
from ..checkpoint.checkpointer import AtomicCheckpointer
from ..checkpoint.read import peek
from ..data.datasets.checks import class_names
from ..data.loading.bad_images import CatchingMapper, CheckedLoader, build_test_loader
from ..data.loading.mappers import build_mapper
from ..data.loading.train_loader import build_train_loader
from ..data.proposals.files import load_proposals
from ..errors import UserError
from ..evaluation.class_map import ClassMapEvaluator, class_numbers
from ..evaluation.coco import RecordingCOCOEvaluator
from ..evaluation.proposals.evaluator import ProposalEvaluator
from ..evaluation.voc import VOCEvaluator
from ..four_step.checkpoints import StageCheckpointer
from ..four_step.evaluation import StageEvalHook, as_checkpoint_is, with_test_proposals
from ..four_step.hook import FourStepHook
from ..four_step.stages import build_four_step_scheduler
from ..four_step.statistics import on_main_process
from ..host import inner_trainer, last_results, registered_hooks, set_inner_trainer
from ..modeling import fold_target_statistics
from ..process import is_lost_process, unwrap_model, wrap_model
from ..stopping import Stopped
from .guards.memory_errors import memory_errors_explained
from .guards.step_guard import StepGuard
from .hooks import (
    BestCheckpoint,
    CaffeMomentum,
    SeedEveryIteration,
    TimeToGo,
    add_checkpoint_hooks,
)
from .same_run import check_config, check_data, data_digest, run_state
from .validation_loss import ValidationLoss

logger = logging.getLogger(__name__)


class PaperTrainer(DefaultTrainer):
    """DefaultTrainer that also runs several processes on CPUs, with fused SGD and our evaluators.

    Any Detectron2 script can use it in place of DefaultTrainer.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build everything from ``cfg``."""
        # As DefaultTrainer's constructor, which always passes ``device_ids`` to
        # DistributedDataParallel; a model on the CPU refuses them.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        # Detectron2's AMPTrainer needs CUDA; on the CPU PaperRCNN itself applies autocast, and
        # bfloat16 needs no scaling of the loss.
        amp_on_cuda = cfg.SOLVER.AMP.ENABLED and next(model.parameters()).is_cuda
        trainer_class = AMPTrainer if amp_on_cuda else SimpleTrainer
        inner = trainer_class(wrap_model(model), data_loader, optimizer)
        set_inner_trainer(self, inner)
        # Registered with the inner trainer: only that one calls its hooks after a backward pass.
        self._guard = StepGuard(cfg, model)
        inner.register_hooks([self._guard])
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # A proxy, as in Detectron2: the checkpointer must not keep the trainer alive.
        self.checkpointer = AtomicCheckpointer(
            model, cfg.OUTPUT_DIR, cfg=cfg, trainer=weakref.proxy(self)
        )
        self._data_digest = ""
        self._is_leaving = False
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def train(self) -> dict[str, Any] | None:
        """Train, and return the results of the last evaluation; None if there was none.

        DefaultTrainer returns them only if ``TEST.EXPECTED_RESULTS`` is set.

        Raises:
            UserError: what stopped it, if the user can do something about it, such as a full disk.
            Stopped: another process of the run is lost; or, within
                :func:`frcnn_plugin.stopping.listening`, a signal came. The last finished iteration
                is saved.
        """
        try:
            super().train()
        except OSError as e:  # perhaps of a log, closed after the checkpoint had failed
            first = _first_user_error(e) or disk_error(e)
            if first is None:
                raise
            raise UserError(
                f"{first if isinstance(first, UserError) else first.strerror}. Make room where "
                f"OUTPUT_DIR {self.cfg.OUTPUT_DIR} is, and continue with --resume"
            ) from None
        return last_results(self)

    def before_train(self) -> None:
        """Call the hooks; evaluate first if the run was killed before it had done so."""
        with self._leaving(self.start_iter - 1, saved=True):
            super().before_train()
            self._repeat_evaluation()

    def _repeat_evaluation(self) -> None:
        period, iteration = self.cfg.TEST.EVAL_PERIOD, self.start_iter
        if period <= 0 or iteration == 0 or iteration % period or iteration >= self.max_iter:
            return
        own = registered_hooks(self)
        best = [hook for hook in own if isinstance(hook, BestCheckpoint)]  # main process only
        if on_main_process(
            lambda: bool(best) and all(hook.compared != iteration - 1 for hook in best)
        ):
            self.iter = self.storage.iter = iteration - 1
            for hook in own:
                if isinstance(hook, (hooks.EvalHook, BestCheckpoint)):
                    hook.after_step()
            self.iter = self.storage.iter = iteration

    def after_train(self) -> None:
        """Call the hooks; a finished run that is resumed ends where it ended before."""
        self.iter = self.storage.iter = min(self.iter, self.max_iter)
        called: list[HookBase] = registered_hooks(self)
        if self._is_leaving:  # perhaps after the last iteration, which is when this one evaluates
            called = [hook for hook in called if not isinstance(hook, hooks.EvalHook)]
        with self._leaving(self.max_iter - 1, saved=True):
            _call_all(hook.after_train for hook in called)

    def before_step(self) -> None:
        """Call the hooks, in which four-step training makes its proposals.

        Raises:
            UserError: memory ran out; says what to lower.
        """
        # The last checkpoint is that of the stage before: now its weights are being changed.
        with self._leaving(self.iter - 1, saved=True), memory_errors_explained(self.cfg):
            super().before_step()

    def run_step(self) -> None:
        """Run an iteration.

        Raises:
            UserError: a loss is not finite, or memory ran out; says why and what to do.
        """
        # Whatever fails in it does so before the weights change.
        with self._leaving(self.iter - 1), self._guard.explaining():
            super().run_step()

    def after_step(self) -> None:
        """Call the hooks; then, if any process was asked to stop, end the run in all.

        Raises:
            Stopped: the iteration is saved.
        """
        with self._leaving(self.iter):
            _call_all(hook.after_step for hook in registered_hooks(self))
            if signals := [name for name in comm.all_gather(stopping.asked()) if name]:
                raise Stopped(signals[0])

    @contextmanager
    def _leaving(self, iteration: int, *, saved: bool = False) -> Iterator[None]:
        """Where the block is stopped, or misses a process, save an iteration and end the run.

        `saved`: that iteration has its checkpoint, and the weights may be others by now.
        """
        try:
            yield
        except (Stopped, RuntimeError) as error:
            lost, together = not isinstance(error, Stopped), str(getattr(error, "message", ""))
            if self._is_leaving or (lost and not is_lost_process(error)):
                raise
            self._is_leaving = True
            is_main, signal = comm.is_main_process(), together or stopping.asked()
            if is_main and not saved and iteration >= self.start_iter:
                newest = self.checkpointer.get_checkpoint_file()
                if not newest or peek(newest).iteration != iteration:
                    self.iter, now = iteration, self.iter
                    self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
                    self.iter = now
            why = f"stopped by {signal}" if signal else "another process of this run has ended"
            file = Path(self.checkpointer.get_checkpoint_file()).name or "no checkpoint yet"
            message = (
                f"{why}, after iteration {iteration + 1:,} of {self.max_iter:,}; --resume goes on "
                f"in {self.cfg.OUTPUT_DIR} ({file})"
            )
            if comm.get_world_size() > 1:
                # Which process was lost, the one that has started this one says if there is one.
                told = lost and multiprocessing.parent_process() is not None
                if not told and (is_main or not signal):
                    # At once: when the first process ends, the launcher ends the others.
                    print(message, file=sys.stderr, flush=True)
                message = ""
            if together:
                comm.synchronize()
            raise Stopped(message, stopping.STATUS if signal else 1) from None

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        """Evaluate a model on ``DATASETS.TEST``, as DefaultTrainer does.

        Raises:
            UserError: memory ran out; says what to lower.
        """
        with memory_errors_explained(cfg):
            return super().test(cfg, model, evaluators)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build Detectron2's SGD, in torch's fused implementation where there is one.

        The groups are the originals': bias learning rate x ``SOLVER.BIAS_LR_FACTOR`` (2), decay on
        biases as ``SOLVER.WEIGHT_DECAY_BIAS`` says.
        """
        optimizer = super().build_optimizer(cfg, model)
        # Faster, and the same to 1e-7. Set in the groups, as Detectron2's builder has no argument
        # for it.
        if _has_fused_sgd(next(model.parameters()).device):
            for group in optimizer.param_groups:
                group["foreach"], group["fused"] = False, True
        return optimizer

    def build_hooks(self) -> list[HookBase | None]:
        """Build Detectron2's hooks, and those of this package that ``cfg`` asks for."""
        # Hooks are called in the order of the list, and see what those before them did.
        ret = super().build_hooks()
        position = next(i for i, h in enumerate(ret) if isinstance(h, hooks.LRScheduler))
        if self.cfg.SOLVER.CAFFE_MOMENTUM:
            # Right after the hook that changes the rate, before the next iteration uses it.
            ret.insert(position + 1, CaffeMomentum(self.optimizer))
        if self.cfg.SEED >= 0:
            node = self.cfg.FOUR_STEP
            # Stages left out count, so that the others draw the same numbers as in a whole run.
            left_out = sum(node.ITERS[: node.START_AT - 1]) if node.ENABLED else 0
            # Before all others except the hook of the four stages, which changes the loader.
            ret.insert(0, SeedEveryIteration(self.cfg.SEED, left_out))
        four_step = FourStepHook(self.cfg) if self.cfg.FOUR_STEP.ENABLED else None
        if self.cfg.TEST.LOSS_PERIOD > 0 and self.cfg.DATASETS.TEST:
            files = four_step.test_proposals if four_step else None
            ret.insert(position + 1, ValidationLoss(self.cfg, files))
        if four_step:
            ret = [
                StageEvalHook(h, four_step.stages, four_step.evaluate)
                if isinstance(h, hooks.EvalHook)
                else h
                for h in ret
            ]
            ret.insert(0, four_step)  # first: what it does between stages is not iteration time
            if comm.is_main_process():
                ret.insert(-1, StageCheckpointer(four_step.stages))  # before the writers
        if comm.is_main_process():
            position = next(i for i, h in enumerate(ret) if isinstance(h, hooks.IterationTimer))
            ret.insert(position + 1, TimeToGo(self.cfg, four_step.stages if four_step else ()))
            ret = add_checkpoint_hooks(self.cfg, ret, self.checkpointer)
        return ret

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Build Detectron2's learning-rate schedule, or that of four-step training."""
        if cfg.FOUR_STEP.ENABLED:
            return build_four_step_scheduler(cfg, optimizer)
        return super().build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_iter: int = 0) -> Any:
        """Build Detectron2's loader, or the doubled set of ``DATALOADER.MIRRORED_COPIES``.

        The originals do not flip at random: they train on the set and its mirrored copy, every
        entry once per epoch. Detectron2's loader cannot do that, and starts with the first images
        again when a run is resumed: it ignores ``start_iter``, the iterations already trained.
        """
        _check_proposals(cfg, cfg.DATASETS.PROPOSAL_FILES_TRAIN)
        if not (cfg.DATALOADER.MIRRORED_COPIES or cfg.FOUR_STEP.ENABLED):
            mapper = CatchingMapper(build_mapper(cfg, is_train=True))
            loader = build_detection_train_loader(cfg, mapper=mapper)
            return CheckedLoader(cfg, loader, is_train=True)
        images, rest = divmod(cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size())
        if (rest or not images) and not cfg.FOUR_STEP.ENABLED:  # whose stages have their own
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} cannot be divided among "
                f"{comm.get_world_size()} processes: make it a multiple of their number"
            )
        return build_train_loader(
            cfg,
            images_per_process=max(1, images),
            seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
            start_iter=start_iter,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else (),
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Build Detectron2's loader with the resize of ``INPUT.RESIZE``."""
        _check_proposals(cfg, cfg.DATASETS.PROPOSAL_FILES_TEST)
        return build_test_loader(cfg, dataset_name)

    def resume_or_load(self, resume: bool = True) -> None:
        """Load weights; a resumed run continues in the data where it stopped.

        Target statistics of weights that a new run starts with are folded: the box layer still
        predicts the same, in the units of this run. (Those of a stage of four-step training, from
        which the next one starts, stay.)

        Args:
            resume: continue from ``OUTPUT_DIR``'s last checkpoint if there is one.

        Raises:
            UserError: the checkpoint is missing or damaged, or from another config, data or number
                of processes; see ``RESUME_MAY_DIFFER``.
        """
        resumed = resume and self.checkpointer.has_checkpoint()
        self._data_digest = on_main_process(lambda: data_digest(self.cfg))
        if resumed:
            self._check_same_run()
        rates, groups = self.scheduler.base_lrs, self.optimizer.state_dict()["param_groups"]
        super().resume_or_load(resume)
        if resumed and self.cfg.RESUME_MAY_DIFFER:
            # The states of schedule and optimizer brought the values of the checkpoint.
            self.scheduler.base_lrs = rates
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "param_groups": groups})
            for group, rate in zip(
                self.optimizer.param_groups, self.scheduler.get_lr(), strict=True
            ):
                group["lr"] = rate
        if not resumed and self.cfg.FOUR_STEP.START_AT == 1:
            fold_target_statistics(unwrap_model(self.model))
        # In four-step training its hook makes the loader anyway.
        if self.start_iter > 0 and not self.cfg.FOUR_STEP.ENABLED:
            inner_trainer(self).reset_data_loader(
                lambda: self.build_train_loader(self.cfg, self.start_iter)
            )

    def _check_same_run(self) -> None:
        try:
            found = peek(self.checkpointer.get_checkpoint_file())
        except UserError:  # loading says so, with better advice
            return
        check_config(self.cfg, found, comm.get_world_size())
        check_data(self.cfg, found, self._data_digest)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a DefaultTrainer, and what a resumed run is compared with."""
        if not self._data_digest:
            self._data_digest = data_digest(self.cfg)
        run = run_state(self._data_digest, comm.get_world_size())
        return {**super().state_dict(), "run": run}

    def test_on_proposals(self, model: nn.Module, proposal_files: Sequence[str]) -> dict[str, Any]:
        """Evaluate the detector alone on given proposals.

        Args:
            model: unwrapped PaperRCNN; its phase is "fast_rcnn" afterwards.
            proposal_files: one per entry of ``DATASETS.TEST``.

        Returns:
            Per test set, its metrics by task.
        """
        cfg = with_test_proposals(self.cfg, proposal_files)
        model.set_phase("fast_rcnn")  # type: ignore[operator]
        results = self.test(cfg, model)
        return {cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else results

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Build COCO's evaluator for COCO-format sets, else VOC's; recall for an RPN alone."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", safe_file_name(dataset_name))
        if cfg.MODEL.PAPER_RCNN.PHASE == "rpn":
            return ProposalEvaluator(dataset_name, output_dir=folder)
        evaluator: DatasetEvaluator
        if MetadataCatalog.get(dataset_name).get("evaluator_type") == "coco":
            # A cached conversion would outlive a change of the annotations.
            evaluator = RecordingCOCOEvaluator(
                dataset_name, output_dir=folder, allow_cached_coco=False
            )
        else:
            evaluator = VOCEvaluator(
                dataset_name,
                output_dir=folder,
                match=cfg.TEST.VOC_MATCH,
                metric=cfg.TEST.VOC_METRIC,
                per_class=cfg.TEST.DETECTIONS_PER_CLASS,
            )
        if not cfg.DATASETS.CLASS_MAP:
            return evaluator
        trained, tested = class_names(cfg.DATASETS.TRAIN[0]), class_names(dataset_name)
        return ClassMapEvaluator(evaluator, class_numbers(trained, tested, cfg.DATASETS.CLASS_MAP))


def evaluate_checkpoint(cfg: CfgNode) -> Any:
    """Load ``MODEL.WEIGHTS`` and evaluate it on ``DATASETS.TEST``.

    A checkpoint of a four-step run is evaluated as what it is: an RPN (recall) in stages 1 and 3, a
    detector on the proposals of stage 1 in stage 2, which must lie beside it in "proposals/stage1".

    Returns:
        The metrics, in the main process.

    Raises:
        UserError: the checkpoint, or the proposals of stage 1, are missing or damaged.
    """
    cfg = as_checkpoint_is(cfg)
    model = PaperTrainer.build_model(cfg)
    AtomicCheckpointer(model, cfg=cfg, evaluating=True).load(cfg.MODEL.WEIGHTS)
    return PaperTrainer.test(cfg, model)


def _call_all(calls: Iterable[Callable[[], None]]) -> None:
    """Make all calls, which belong to the iteration, and then raise what stopped one of them."""
    first: BaseException | None = None
    for call in calls:
        try:
            call()
        except (Stopped, RuntimeError) as error:
            if not (isinstance(error, Stopped) or is_lost_process(error)):
                raise
            first = first or error
    if first is not None:
        raise first


def _first_user_error(error: BaseException) -> UserError | None:
    """Return the one that another error followed."""
    chain: BaseException | None = error
    while chain is not None and not isinstance(chain, UserError):
        chain = chain.__context__
    return chain


def _check_proposals(cfg: CfgNode, files: Sequence[str]) -> None:
    """Read files of proposals before Detectron2 does, with which they could run code."""
    for file in files if cfg.MODEL.LOAD_PROPOSALS else ():
        load_proposals(file)


def _has_fused_sgd(device: torch.device) -> bool:
    """Try torch's fused SGD on ``device``; support grew device by device, so no version says it."""
    parameter = torch.zeros(1, device=device, requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    try:
        torch.optim.SGD([parameter], lr=1.0, momentum=0.9, fused=True).step()
    except (RuntimeError, TypeError):
        return False
    return True

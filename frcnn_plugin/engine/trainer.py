"""The host's trainer with what the originals' training needs."""

from __future__ import annotations

import os
import weakref
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.utils import comm
from torch import nn

from ..evaluation.voc import VOCEvaluator
from .hooks import CaffeMomentum


class PaperTrainer(DefaultTrainer):
    """DefaultTrainer that also runs several processes on CPUs, with fused SGD and our evaluators.

    Any Detectron2 script can use it in place of DefaultTrainer.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build everything from ``cfg``.

        Repeats the host's constructor because that one passes ``device_ids`` to
        DistributedDataParallel, which a model on the CPU refuses; there is no argument to say so.
        """
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        trainer_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_class(self.wrap(model), data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def train(self) -> dict[str, Any] | None:
        """Train; returns the last evaluation's results, None if there was none.

        The host returns them only if ``TEST.EXPECTED_RESULTS`` is set.
        """
        super().train()
        return getattr(self, "_last_eval_results", None)

    @staticmethod
    def wrap(model: nn.Module) -> nn.Module:
        """Wrap ``model`` for training in several processes; as it is if there is only one."""
        on_gpu = next(model.parameters()).is_cuda
        kwargs = {} if on_gpu else {"device_ids": None}
        return create_ddp_model(model, broadcast_buffers=False, **kwargs)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """The host's SGD, in torch's fused implementation where there is one.

        The groups are the originals': bias learning rate x ``SOLVER.BIAS_LR_FACTOR`` (2), decay on
        biases as ``SOLVER.WEIGHT_DECAY_BIAS`` says.
        """
        optimizer = super().build_optimizer(cfg, model)
        if _has_fused_sgd(next(model.parameters()).device):
            for group in optimizer.param_groups:
                group["foreach"], group["fused"] = False, True
        return optimizer

    def build_hooks(self) -> list[HookBase | None]:
        """The host's hooks, plus :class:`CaffeMomentum` if ``SOLVER.CAFFE_MOMENTUM``."""
        ret = super().build_hooks()
        if self.cfg.SOLVER.CAFFE_MOMENTUM:
            position = next(i for i, h in enumerate(ret) if isinstance(h, hooks.LRScheduler))
            ret.insert(position + 1, CaffeMomentum(self._trainer.optimizer))
        return ret

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """COCO's evaluator for COCO-format sets, the VOC one for all others.

        Args:
            cfg: config; results go to ``OUTPUT_DIR/inference``.
            dataset_name: a registered data set.
        """
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        if MetadataCatalog.get(dataset_name).get("evaluator_type") == "coco":
            return COCOEvaluator(
                dataset_name, output_dir=folder, use_fast_impl=_has_fast_cocoeval()
            )
        return VOCEvaluator(
            dataset_name, output_dir=folder, match=cfg.TEST.VOC_MATCH, metric=cfg.TEST.VOC_METRIC
        )


def _has_fused_sgd(device: torch.device) -> bool:
    """Whether torch has a fused SGD for ``device``: tried, as support grew device by device."""
    parameter = torch.zeros(1, device=device, requires_grad=True)
    parameter.grad = torch.zeros_like(parameter)
    try:
        torch.optim.SGD([parameter], lr=1.0, momentum=0.9, fused=True).step()
    except (RuntimeError, TypeError):
        return False
    return True


def _has_fast_cocoeval() -> bool:
    """Whether the host's compiled COCO evaluation is there; pycocotools does it otherwise."""
    try:
        from detectron2 import _C  # noqa: F401
    except ImportError:
        return False
    return True

"""A model, its optimizer and its input: one that is measured."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks.agreement import Found
from benchmarks.inputs import make_batch
from benchmarks.peers import build_detectron2, build_torchvision
from benchmarks.sections import Clock
from benchmarks.specs import Sample, Spec, Work
from benchmarks.weights import Place, RandomWeights, calibrate, copy_layers, roles
from frcnn_plugin.checkpoint.checkpointer import AtomicCheckpointer
from frcnn_plugin.engine import PaperTrainer
from frcnn_plugin.errors import UserError
from frcnn_plugin.four_step.weights import fold_statistics


class Contender:
    """A built model that can be run."""

    def __init__(self, spec: Spec, work: Work, weights: RandomWeights) -> None:
        """Build it.

        Args:
            spec: which model.
            work: what it will do.
            weights: for all layers, unless ``MODEL.WEIGHTS`` names a file.
        """
        self.spec, self.work = spec, work
        cfg = self.cfg = spec.cfg(work.training)
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.model, places = _build(cfg, spec)
        if not cfg.MODEL.WEIGHTS:
            weights.fill(places)
        elif spec.kind == "config":
            _load(self.model, cfg)
        else:
            ours = build_model(cfg)
            _load(ours, cfg)
            copy_layers(roles(ours), places)
        self.model.train(work.training)
        self.optimizer = _optimizer(cfg, spec, self.model) if work.training else None
        self._autocast = spec.bf16 and not spec.own_switch(cfg, work.training)
        self.arguments = self.arguments_for(work)
        self.parts = _parts(self.model)
        self.proposer = self.parts["proposal"][0]

    def arguments_for(self, work: Work) -> tuple[Any, ...]:
        """What the model is called with; :attr:`arguments` may be set to it."""
        return _arguments(self.cfg, self.spec, work, self.device)

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bfloat16 if it is wanted and the model has no switch of its own."""
        if not self._autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def forward(self) -> Any:
        """Run the model once: losses, or detections."""
        # Detectron2's heads log to the storage that its trainer provides.
        with EventStorage(), self.autocast(), torch.set_grad_enabled(self.work.training):
            return self.model(*self.arguments)

    def run(self, clock: Clock | None = None) -> None:
        """One inference, or one training step."""
        torch.manual_seed(self.work.seed)  # sampling and dropout do the same every time
        result = self.forward()
        if not self.work.training:
            return
        assert self.optimizer is not None
        loss = sum(result.values())
        self.optimizer.zero_grad(set_to_none=True)  # here, as Detectron2's trainer does
        self._timed(clock, "backward", loss.backward)
        self._timed(clock, "optimizer", self.optimizer.step)

    @staticmethod
    def _timed(clock: Clock | None, name: str, function: Callable[[], Any]) -> None:
        if clock is None:
            function()
            return
        clock.start(name)
        function()
        clock.stop(name)

    def sample(self) -> Sample:
        """Run once and measure: seconds, "total" and by section."""
        # Hooks that wait for a GPU would slow the whole down: there, sections get a run of their
        # own. On a CPU they cost nothing.
        clock = Clock(self.parts, self.synchronise)
        try:
            total = self._seconds(clock)
        finally:
            clock.close()
        if self.device.type == "cuda":
            sectioned, total = total, self._seconds(None)
            clock.seconds = {k: v * total / sectioned for k, v in clock.seconds.items()}
        inner = sum(v for k, v in clock.seconds.items() if k != "layers")
        return {"total": total, **clock.seconds, "other": total - inner}

    def _seconds(self, clock: Clock | None) -> float:
        self.synchronise()
        start = time.perf_counter()
        self.run(clock)
        self.synchronise()
        return time.perf_counter() - start

    def detections(self) -> list[Found]:
        """What inference finds in each image; classes count from 0 in all models."""
        found = []
        for result in self.forward():
            if self.spec.kind == "torchvision":
                found.append(Found(result["boxes"].cpu(), result["labels"].cpu() - 1))
            else:
                instances = result["instances"].to("cpu")
                found.append(Found(instances.pred_boxes.tensor, instances.pred_classes))
        return found

    def outcome(self) -> dict[str, Any]:
        """Run once; how many proposals (and detections) there are, or the losses."""
        counts: list[int] = []

        def count(module: nn.Module, args: Any, output: Any) -> None:
            counts.extend(len(x) for x in output[0])

        handle = self.proposer.register_forward_hook(count)
        torch.manual_seed(self.work.seed)
        try:
            result = self.forward()
        finally:
            handle.remove()
        found: dict[str, Any] = {"proposals": min(counts, default=0)}
        if self.work.training:
            found["loss"] = sum(float(loss.detach()) for loss in result.values())
            if found["loss"] - found["loss"] != 0:
                raise UserError(f"{self.spec.name}: the loss is {found['loss']}: other weights?")
        else:
            detections = [x.get("instances", x) if isinstance(x, dict) else x for x in result]
            found["detections"] = min(
                len(d["boxes"] if isinstance(d, dict) else d) for d in detections
            )
        return found


def calibrated_weights(spec: Spec, work: Work) -> RandomWeights:
    """Random weights under which ``spec`` finds its full number of boxes.

    The model is built, used and dropped.
    """
    if spec.cfg(False).MODEL.WEIGHTS:
        return RandomWeights(work.seed)
    plain = Spec(spec.name, spec.kind, spec.config_file, spec.opts)
    one = Work(False, work.height, work.width, 1, work.objects, work.seed)
    contender = Contender(plain, one, RandomWeights(work.seed))
    return calibrate(RandomWeights(work.seed), roles(contender.model), contender.forward)


def _build(cfg: CfgNode, spec: Spec) -> tuple[nn.Module, dict[str, Place]]:
    if spec.kind == "detectron2":
        return build_detectron2(cfg, spec.bf16)
    if spec.kind == "torchvision":
        return build_torchvision(cfg)
    model = build_model(cfg)
    if not all(hasattr(model, name) for name in ("backbone", "proposal_generator", "roi_heads")):
        raise UserError(
            f"{spec.config_file}: {cfg.MODEL.META_ARCHITECTURE} is no two-stage detector, which is "
            "what this tool measures"
        )
    return model, roles(model)


def _load(model: nn.Module, cfg: CfgNode) -> None:
    AtomicCheckpointer(model, cfg=cfg, evaluating=True).load(cfg.MODEL.WEIGHTS)
    fold_statistics(model)


def _optimizer(cfg: CfgNode, spec: Spec, model: nn.Module) -> torch.optim.Optimizer:
    if spec.kind == "config":
        return PaperTrainer.build_optimizer(cfg, model)
    if spec.kind == "detectron2":
        return DefaultTrainer.build_optimizer(cfg, model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    solver = cfg.SOLVER
    return torch.optim.SGD(
        parameters, lr=solver.BASE_LR, momentum=solver.MOMENTUM, weight_decay=solver.WEIGHT_DECAY
    )


def _arguments(cfg: CfgNode, spec: Spec, work: Work, device: torch.device) -> tuple[Any, ...]:
    batch = make_batch(
        work.height,
        work.width,
        batch=work.batch,
        objects=work.objects,
        classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        seed=work.seed,
    )
    if spec.kind != "torchvision":
        return (batch,)  # the model moves it
    images = [x["image"].to(device) for x in batch]
    if not work.training:
        return (images,)
    truths = [x["instances"].to(device) for x in batch]
    return images, [{"boxes": t.gt_boxes.tensor, "labels": t.gt_classes + 1} for t in truths]


def _parts(model: Any) -> dict[str, list[nn.Module]]:
    """Sections as in table 5 of the paper, and all convolutions and linear layers together."""
    if hasattr(model, "proposal_generator"):
        rpn, heads = model.proposal_generator, model.roi_heads
        layers = [getattr(rpn, "rpn_head", None)]
    else:
        rpn, heads = model.rpn, model.roi_heads
        layers = [rpn.head]
    layers += [getattr(heads, "box_head", None), getattr(heads, "box_predictor", None)]
    return {
        "conv": [model.backbone],
        "proposal": [rpn],
        "region-wise": [heads],
        "layers": [model.backbone, *(m for m in layers if m is not None)],
    }

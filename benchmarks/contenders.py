"""One that is measured: a model, its optimizer and its input.

Also what is learned from a run: where the time goes, and which detections are found.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import box_iou

from benchmarks.peers import build_peer
from benchmarks.weights import Place, RandomWeights, calibrate, copy_layers, roles
from benchmarks.work import Spec, Work, make_batch
from frcnn_plugin.checkpoint.checkpointer import AtomicCheckpointer
from frcnn_plugin.engine import PaperTrainer
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import fold_target_statistics

# Seconds of one run: "total", the sections that there are, and "layers".
Sample = dict[str, float]
# Together they are the total; the first three are those of table 5 of the paper.
SECTIONS = ("conv", "proposal", "region-wise", "backward", "optimizer", "other")


class Clock:
    """Adds up seconds by section, those of sub-modules by hooks.

    Sections may lie inside each other; each counts on its own.
    """

    def __init__(
        self,
        parts: Mapping[str, Sequence[nn.Module]],
        synchronise: Callable[[], None],
        hooks: contextlib.ExitStack,
    ) -> None:
        """Watch the modules of each section; wait for the device at every start and stop."""
        self.seconds: dict[str, float] = defaultdict(float)
        self._synchronise = synchronise
        self._starts: dict[str, float] = {}
        for name, modules in parts.items():
            start, stop = partial(self._start, name), partial(self._stop, name)
            for module in modules:
                hooks.enter_context(module.register_forward_pre_hook(start))
                hooks.enter_context(module.register_forward_hook(stop))

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Count the time of the ``with`` block."""
        self._start(name)
        yield
        self._stop(name)

    def _start(self, name: str, *_: Any) -> None:
        self._synchronise()
        self._starts[name] = time.perf_counter()

    def _stop(self, name: str, *_: Any) -> None:
        self._synchronise()
        self.seconds[name] += time.perf_counter() - self._starts.pop(name)


@dataclass(frozen=True)
class Found:
    """Detections in one image."""

    boxes: torch.Tensor  # (R, 4) continuous XYXY in pixels of the image, best first
    classes: torch.Tensor  # (R,) int64


def found_again(ours: Sequence[Found], theirs: Sequence[Found]) -> float:
    """Return the percentage of our detections that have a partner among theirs, image by image.

    Best first, each takes the one of its class that it overlaps most, if the IoU is 0.5 or more
    and no other has taken it. It is 100 if there are none.
    """
    total, found = 0, 0
    for a, b in zip(ours, theirs, strict=True):
        overlaps = box_iou(a.boxes, b.boxes) * (a.classes[:, None] == b.classes)
        total += len(a.boxes)
        for row in overlaps if len(b.boxes) else ():
            best = int(row.argmax())
            if row[best] >= 0.5:
                found += 1
                overlaps[:, best] = 0
    return 100 * found / total if total else 100.0


class Contender:
    """A built model that can be run."""

    def __init__(self, spec: Spec, work: Work, weights: RandomWeights) -> None:
        """Build it; the weights are for all layers, unless ``MODEL.WEIGHTS`` names a file."""
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
        """Return what the model is called with; :attr:`arguments` may be set to it."""
        batch = make_batch(work, self.cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        for item in batch:  # torchvision's model does not move them
            item["image"] = item["image"].to(self.device)
            item["instances"] = item["instances"].to(self.device)
        if self.spec.kind != "torchvision":
            return (batch,)
        images = [x["image"] for x in batch]
        if not work.training:
            return (images,)
        truths = [x["instances"] for x in batch]
        return images, [{"boxes": t.gt_boxes.tensor, "labels": t.gt_classes + 1} for t in truths]

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return autocast to bfloat16 if it is wanted and the model has no switch of its own."""
        if not self._autocast:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def forward(self) -> Any:
        """Run the model once: losses, or detections."""
        # Detectron2's heads log to the storage that its trainer provides.
        with EventStorage(), self.autocast(), torch.set_grad_enabled(self.work.training):
            return self.model(*self.arguments)

    def run(self, clock: Clock | None = None) -> None:
        """Run one inference, or one training iteration."""
        torch.manual_seed(self.work.seed)  # sampling and dropout do the same every time
        result = self.forward()
        if not self.work.training:
            return
        assert self.optimizer is not None
        loss = sum(result.values())
        self.optimizer.zero_grad(set_to_none=True)  # here, as Detectron2's trainer does
        with clock.section("backward") if clock else contextlib.nullcontext():
            loss.backward()
        with clock.section("optimizer") if clock else contextlib.nullcontext():
            self.optimizer.step()

    def sample(self) -> Sample:
        """Run once and measure."""
        # Hooks that wait for a GPU would slow the whole run: there, sections get a run of their
        # own. On a CPU they cost nothing.
        with contextlib.ExitStack() as hooks:
            clock = Clock(self.parts, self.synchronise, hooks)
            total = self.seconds(clock)
        if self.device.type == "cuda":
            sectioned, total = total, self.seconds()
            clock.seconds = {k: v * total / sectioned for k, v in clock.seconds.items()}
        inner = sum(v for k, v in clock.seconds.items() if k != "layers")
        return {"total": total, **clock.seconds, "other": total - inner}

    def seconds(self, clock: Clock | None = None) -> float:
        """Run once; return how long it took."""
        self.synchronise()
        start = time.perf_counter()
        self.run(clock)
        self.synchronise()
        return time.perf_counter() - start

    def detections(self) -> list[Found]:
        """Return what inference finds in each image; classes count from 0 in all models."""
        found = []
        for result in self.forward():
            if self.spec.kind == "torchvision":
                found.append(Found(result["boxes"].cpu(), result["labels"].cpu() - 1))
            else:
                instances = result["instances"].to("cpu")
                found.append(Found(instances.pred_boxes.tensor, instances.pred_classes))
        return found

    def outcome(self) -> dict[str, Any]:
        """Run once; return the numbers of proposals and detections, or the loss."""
        counts: list[int] = []

        def count(module: nn.Module, args: Any, output: Any) -> None:
            counts.extend(len(x) for x in output[0])

        torch.manual_seed(self.work.seed)
        with self.proposer.register_forward_hook(count):
            if self.work.training:
                loss = sum(float(loss.detach()) for loss in self.forward().values())
                if not math.isfinite(loss):
                    raise UserError(f"{self.spec.name}: the loss is {loss}: try other weights")
                found = {"loss": loss}
            else:
                found = {"detections": min(len(each.boxes) for each in self.detections())}
        return {"proposals": min(counts, default=0), **found}


def calibrated_weights(spec: Spec, work: Work) -> RandomWeights:
    """Return random weights under which ``spec`` finds its full number of boxes.

    The model is built, used and dropped.
    """
    if spec.cfg(False).MODEL.WEIGHTS:
        return RandomWeights(work.seed)
    one = replace(work, training=False, batch=1)
    contender = Contender(replace(spec, bf16=False), one, RandomWeights(work.seed))
    return calibrate(RandomWeights(work.seed), roles(contender.model), contender.forward)


def _build(cfg: CfgNode, spec: Spec) -> tuple[nn.Module, dict[str, Place]]:
    if spec.kind != "config":
        return build_peer(cfg, spec.kind, spec.bf16)
    model = build_model(cfg)
    if not all(hasattr(model, name) for name in ("backbone", "proposal_generator", "roi_heads")):
        raise UserError(
            f"{spec.config_file}: {cfg.MODEL.META_ARCHITECTURE} is no two-stage detector, which is "
            "what this tool measures"
        )
    return model, roles(model)


def _load(model: nn.Module, cfg: CfgNode) -> None:
    AtomicCheckpointer(model, cfg=cfg, evaluating=True).load(cfg.MODEL.WEIGHTS)
    fold_target_statistics(model)


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


def _parts(model: Any) -> dict[str, list[nn.Module]]:
    """Return the modules of the sections, and "layers": all convolutions and linear layers."""
    if hasattr(model, "proposal_generator"):
        rpn, head = model.proposal_generator, getattr(model.proposal_generator, "rpn_head", None)
    else:
        rpn, head = model.rpn, model.rpn.head
    heads = model.roi_heads
    layers = [head, getattr(heads, "box_head", None), getattr(heads, "box_predictor", None)]
    return {
        "conv": [model.backbone],
        "proposal": [rpn],
        "region-wise": [heads],
        "layers": [model.backbone, *(m for m in layers if m is not None)],
    }

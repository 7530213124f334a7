"""Watch every training iteration; explain a loss that is not finite, and its likely causes."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from ...atomic_files import replacing
from ...errors import UserError
from ...modeling import PaperRPN
from ...process import unwrap_model
from .memory_errors import memory_errors_explained

# All originals fine-tune with this rate, on one or two images per iteration (paper section 3.1.3);
# for larger batches it grows in proportion, the rule that Detectron2 follows as well.
_RATE, _IMAGES = 1e-3, 2
# Network inputs are at most about 150 with Caffe's preprocessing, 3 with torchvision's. Pixels that
# were divided by a deviation meant for 0..1 are above 1000.
_LARGE_INPUT = 300.0
_SMALL_SIDE = 1.0  # network pixels: a smaller box is degenerate
_MANY = 3  # boxes that a message lists


class _PlainUserErrors(logging.Filter):
    """Log a user's mistake in the middle of training as a sentence, not as a stack trace."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, UserError):
            record.msg, record.args = "training stopped: %s", (str(error),)
            record.exc_info = None
        return True


_PLAIN_USER_ERRORS = _PlainUserErrors()  # a logger takes it once


class StepGuard(HookBase):
    """Stops on a loss that is not finite, before the optimizer spoils the weights with it.

    Detectron2 checks as well, but one iteration later for the other processes, and reports no more
    than the losses. This hook looks after every backward pass, in all processes: the one that finds
    something writes ``OUTPUT_DIR/nan_dump_<iteration>.pth``, and all stop. Gradients that overflow
    in mixed precision do not stop it: the scaler skips such iterations.

    Register it with the *inner* trainer, which calls ``after_backward``, and run the iterations
    inside :meth:`explaining`::

        guard = StepGuard(cfg, model)
        inner_trainer(trainer).register_hooks([guard])
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        """Watch ``model``, wrapped or not; the losses are what it returns in training."""
        self._cfg = cfg
        self._model: Any = unwrap_model(model)
        self._batch: list[dict[str, Any]] = []
        self._losses: dict[str, torch.Tensor] = {}
        self._previous_losses: dict[str, torch.Tensor] = {}
        self._has_gradients = False
        this = weakref.ref(self)

        # Functions, not methods: a copy of the model must not copy the trainer.
        def before(_: Any, args: tuple[Any, ...]) -> None:
            guard = this()
            if guard is not None and guard._model.training:
                guard._begin(args[0])

        def after(_: Any, __: Any, losses: Any) -> None:
            guard = this()
            if guard is not None and guard._model.training:
                guard._note(losses)

        rpn = getattr(self._model, "proposal_generator", None)
        if isinstance(rpn, PaperRPN):
            rpn.losses_are_watched = True
        self._model.register_forward_pre_hook(before)
        self._model.register_forward_hook(after)
        # Its training loop logs every exception with its traceback.
        logging.getLogger("detectron2.engine.train_loop").addFilter(_PLAIN_USER_ERRORS)

    def _begin(self, batch: Any) -> None:
        self._batch[:] = batch
        self._previous_losses, self._losses = self._losses, {}
        self._has_gradients = False

    def _note(self, losses: Any) -> None:
        if isinstance(losses, torch.Tensor):
            losses = {"total_loss": losses}
        self._losses = {name: value.detach() for name, value in losses.items()}

    def after_backward(self) -> None:
        """Look at the losses of this iteration.

        Raises:
            UserError: in every process, if one of them has a loss that is nan or infinite.
        """
        self._has_gradients = True
        if not self._losses:
            return
        total = torch.stack([value.sum().float() for value in self._losses.values()]).sum()
        processes = comm.get_world_size()
        # The lowest rank that finds something; the number of processes if none does.
        rank = torch.where(total.isfinite(), processes, comm.get_rank())
        if processes > 1:
            dist.all_reduce(rank, op=dist.ReduceOp.MIN)
        first = int(rank)
        if first == processes:
            return
        message = self._explain() if comm.get_rank() == first else ""
        raise UserError(comm.all_gather(message)[first])

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Run a part of training, and turn the errors that this class knows into UserErrors.

        Raises:
            UserError: memory ran out, or Detectron2 found numbers that are not finite.
        """
        # The list is filled when the batch of the iteration is known.
        with memory_errors_explained(self._cfg, self._batch):
            try:
                yield
            except FloatingPointError as e:
                raise UserError(self._explain(str(e).partition("\n")[0])) from None
        self._batch.clear()  # after a good iteration its images may go

    def _explain(self, found: str = "") -> str:
        """Write the dump, and say what happened; `found` is what Detectron2 said, if it did."""
        cfg, dump, iteration = self._cfg, self._dump(), self.trainer.iter
        path = Path(cfg.OUTPUT_DIR) / f"nan_dump_{iteration}.pth"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save(dump, temporary)
        if found:
            lines = [f"training diverged at iteration {iteration}: {found}"]
        else:
            word = "nan" if math.isnan(sum(dump["losses"].values())) else "infinite"
            losses = ", ".join(f"{k} {v:.4g}" for k, v in dump["losses"].items())
            lines = [f"the loss became {word} at iteration {iteration} ({losses})"]
        bad = dump["non_finite_weights"]
        if bad:
            parts = ", ".join(sorted({name.partition(".")[0] for name in bad}))
            before = sum(dump["previous_losses"].values())
            when = "before the first iteration: look at MODEL.WEIGHTS"
            if dump["previous_losses"] and math.isfinite(before):
                when = (
                    f"after iteration {iteration - 1}, whose loss was finite ({before:.4g}) but "
                    "whose gradients were not"
                )
            lines.append(f"{len(bad)} weights of {parts} were nan or infinite {when}")
        lines.append(f"The batch, the losses and the gradient norms are in {path}")
        lines.append("Likeliest causes, in this order:")
        causes = likely_causes(cfg, self._model, self._batch, dump["learning_rates"])
        lines += [f"  {number}. {cause}" for number, cause in enumerate(causes, start=1)]
        return "\n".join([*lines, *_way_back(cfg, iteration, bool(bad))])

    def _dump(self) -> dict[str, Any]:
        """Collect the evidence as plain values and tensors; boxes are XYXY in network pixels."""
        weights = self._model.named_parameters()
        return {
            "iteration": self.trainer.iter,
            "rank": comm.get_rank(),
            "phase": getattr(self._model, "phase", ""),
            "images": [_image(entry) for entry in self._batch],
            "losses": {name: float(value) for name, value in self._losses.items()},
            "previous_losses": {name: float(v) for name, v in self._previous_losses.items()},
            "learning_rates": sorted({float(g["lr"]) for g in self.trainer.optimizer.param_groups}),
            "gradient_norms": self._gradient_norms() if self._has_gradients else {},
            "non_finite_weights": [n for n, p in weights if not p.detach().isfinite().all()],
        }

    def _gradient_norms(self) -> dict[str, float]:
        """Return the norms by part of the model."""
        # What mixed precision multiplies the loss with, and so the gradients.
        scaler = getattr(self.trainer, "grad_scaler", None)
        scale = float(scaler.get_scale()) if scaler is not None else 1.0
        squares: dict[str, float] = {}
        for name, parameter in self._model.named_parameters():
            if parameter.grad is not None:
                part = name.partition(".")[0]
                norm = float(parameter.grad.detach().float().norm()) / scale
                squares[part] = squares.get(part, 0.0) + norm**2
        return {part: math.sqrt(square) for part, square in squares.items()}


def _image(entry: Mapping[str, Any]) -> dict[str, Any]:
    image_id = entry.get("image_id", "")
    image: dict[str, Any] = {
        "file_name": str(entry.get("file_name", "")),
        "image_id": image_id if isinstance(image_id, int) else str(image_id),
        "height": int(entry.get("height", 0)),
        "width": int(entry.get("width", 0)),
        "network_size": [int(side) for side in entry["image"].shape[-2:]],
        "mirrored": bool(entry.get("mirrored", False)),
    }
    if "instances" in entry:
        instances = entry["instances"]
        image["gt_boxes"] = instances.gt_boxes.tensor.detach().cpu().clone()
        image["gt_classes"] = instances.gt_classes.detach().cpu().clone()
    return image


def _way_back(cfg: CfgNode, iteration: int, weights_are_bad: bool) -> list[str]:
    last = Path(cfg.OUTPUT_DIR) / "last_checkpoint"
    if not last.is_file():
        return []
    name = last.read_text().strip()
    if weights_are_bad and name == f"model_{iteration - 1:07d}.pth":
        return [f"{name} already has the bad weights: continue from an earlier one"]
    return [
        f"The last checkpoint is {name}. With corrected data continue from it with --resume; a "
        "resumed run keeps its learning rate, so another rate needs a new run (--overwrite)"
    ]


# ---- causes ---------------------------------------------------------------------------------


def likely_causes(
    cfg: CfgNode, model: nn.Module, batch: Sequence[Mapping[str, Any]], rates: Sequence[float]
) -> list[str]:
    """List the causes that the batch, the weights and the config speak for, likeliest first.

    Args:
        cfg: config of the run.
        model: unwrapped.
        batch: the images, as the model gets them.
        rates: the optimizer's learning rates, ascending.

    Returns:
        One sentence each, with what to do.
    """
    images = len(batch) * comm.get_world_size()
    rate = rates[0]  # that of the weights; biases may have twice as much
    usual = _RATE * max(1.0, images / _IMAGES)
    too_high = rate > 1.5 * usual
    about_rate = (
        f"the learning rate: {rate:g} with {images} image{'s'[: images != 1]} per iteration; the "
        f"originals' for that batch is {usual:g}. "
    )
    clip = "" if cfg.SOLVER.CLIP_GRADIENTS.ENABLED else ", or SOLVER.CLIP_GRADIENTS.ENABLED True"
    frozen = sum(not p.requires_grad for n, p in model.named_parameters() if "backbone" in n)
    preprocessing = (
        f"MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)}, MODEL.PIXEL_STD "
        f"{list(cfg.MODEL.PIXEL_STD)}, INPUT.FORMAT {cfg.INPUT.FORMAT}"
    )
    largest_input = _largest_input(cfg, batch)

    causes = []
    if boxes := _degenerate_boxes(batch):
        more = f" and {len(boxes) - _MANY} more" if len(boxes) > _MANY else ""
        causes.append(
            "degenerate ground-truth boxes in this batch (x1, y1, x2, y2 in network pixels): "
            f"{'; '.join(boxes[:_MANY])}{more}. Correct the annotation files; in VOC-format sets "
            "`strict: True` in DATASETS.REGISTER names every bad box"
        )
    # With FREEZE_AT 0 it was a stage of four-step training that froze them, with good weights.
    frozen_at_random = not cfg.MODEL.WEIGHTS and frozen and cfg.MODEL.BACKBONE.FREEZE_AT > 0
    if frozen_at_random:
        causes.append(
            f"MODEL.WEIGHTS is empty and {frozen} tensors of the backbone are frozen at random "
            f"numbers (MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT}). Give "
            "MODEL.WEIGHTS, or MODEL.BACKBONE.FREEZE_AT 0"
        )
    if not largest_input <= _LARGE_INPUT:  # "not", so that nan is large
        causes.append(
            f"preprocessing: the network's input reaches {largest_input:.0f}, far above what any "
            f"weights expect ({preprocessing}). Pixels are 0 to 255; the mean and the deviation "
            "must be on that scale"
        )
    if too_high:
        causes.append(f"{about_rate}Type: SOLVER.BASE_LR {usual:g}")
    if not cfg.MODEL.WEIGHTS and not frozen_at_random:
        causes.append(
            "MODEL.WEIGHTS is empty: a network that starts from random numbers needs a smaller "
            "learning rate, or SOLVER.CLIP_GRADIENTS.ENABLED True, or ImageNet weights"
        )
    if cfg.SOLVER.AMP.ENABLED:
        causes.append(
            "mixed precision: a number larger than float16 can hold. Type: SOLVER.AMP.ENABLED "
            "False to see whether it stays finite"
        )
    if not too_high:
        causes.append(f"{about_rate}Not too high, but try SOLVER.BASE_LR {rate / 10:g}{clip}")
    if cfg.MODEL.WEIGHTS:
        causes.append(
            f"weights that do not fit: MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS}, the preprocessing "
            f"{preprocessing}; log.txt lists layers that were not found"
        )
    return causes


def _degenerate_boxes(batch: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return file names and corners of boxes that have no area or lie outside their image."""
    bad = []
    for entry in map(_image, batch):
        height, width = entry["network_size"]
        for x1, y1, x2, y2 in entry.get("gt_boxes", torch.zeros(0, 4)).tolist():
            side = min(x2 - x1, y2 - y1)
            inside = x1 > -1 and y1 > -1 and x2 < width + 1 and y2 < height + 1
            if not (side >= _SMALL_SIDE and inside):  # "not", so that nan is bad
                bad.append(f"{entry['file_name']} ({x1:.1f}, {y1:.1f}, {x2:.1f}, {y2:.1f})")
    return bad


def _largest_input(cfg: CfgNode, batch: Sequence[Mapping[str, Any]]) -> float:
    """Return the largest absolute value that the network gets to see."""
    mean = torch.tensor(cfg.MODEL.PIXEL_MEAN).reshape(-1, 1, 1)
    std = torch.tensor(cfg.MODEL.PIXEL_STD).reshape(-1, 1, 1)
    inputs = ((entry["image"].detach().cpu().float() - mean) / std for entry in batch)
    return max((float(x.abs().max()) for x in inputs), default=0.0)

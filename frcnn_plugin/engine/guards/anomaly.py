"""A loss that is not finite: the dump, the message, and what it most likely comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from ...atomic_files import replacing
from .anomaly_causes import likely_causes


@dataclass
class StepRecord:
    """What is known about a training step.

    Attributes:
        batch: the images, as the model gets them.
        losses: scalars by name; empty if the step did not get that far.
        previous_losses: those of the step before.
        has_gradients: the backward pass is done; else the gradients are those of the step before.
    """

    batch: Sequence[dict[str, Any]] = ()
    losses: Mapping[str, torch.Tensor] = field(default_factory=dict)
    previous_losses: Mapping[str, torch.Tensor] = field(default_factory=dict)
    has_gradients: bool = False


def explain_anomaly(
    cfg: CfgNode, model: nn.Module, trainer: Any, record: StepRecord, iteration: int, found: str
) -> str:
    """Write the dump, and say what happened and why it may have.

    Args:
        cfg: config of the run.
        model: unwrapped.
        trainer: the host's SimpleTrainer or one like it: its optimizer is looked at.
        record: the step.
        iteration: its number.
        found: what the host said, if it found the numbers before there was a loss.

    Returns:
        the message, of several lines.
    """
    dump = build_dump(model, trainer, record, iteration)
    path = save_dump(dump, cfg.OUTPUT_DIR)
    if found:
        lines = [f"training diverged at iteration {iteration}: {found}"]
    else:
        total = sum(dump["losses"].values())
        losses = ", ".join(f"{k} {v:.4g}" for k, v in dump["losses"].items())
        lines = [f"the loss became {_word(total)} at iteration {iteration} ({losses})"]
    if dump["non_finite_weights"]:
        parts = sorted({name.partition(".")[0] for name in dump["non_finite_weights"]})
        before = sum(dump["previous_losses"].values())
        how = "before the first step: look at MODEL.WEIGHTS"
        if dump["previous_losses"] and math.isfinite(before):
            how = (
                f"after iteration {iteration - 1}, whose loss was finite ({before:.4g}) but whose "
                "gradients were not"
            )
        count = len(dump["non_finite_weights"])
        lines.append(f"{count} weights of {', '.join(parts)} were nan or infinite {how}")
    lines.append(f"The batch, the losses and the gradient norms are in {path}")
    lines.append("Likeliest causes, in this order:")
    causes = likely_causes(cfg, model, record.batch, dump)
    lines += [f"  {number}. {cause}" for number, cause in enumerate(causes, start=1)]
    lines.append(_way_back(cfg, iteration, bool(dump["non_finite_weights"])))
    return "\n".join(lines)


def build_dump(
    model: nn.Module, trainer: Any, record: StepRecord, iteration: int
) -> dict[str, Any]:
    """Collect the evidence as plain values and tensors.

    Returns:
        ``iteration``, ``rank``, ``phase``; ``images``: per image ``file_name``, ``image_id``,
        ``height`` and ``width`` (of the file), ``network_size`` (height, width), ``mirrored``,
        ``gt_boxes`` (G, 4) float32 XYXY in network pixels, ``gt_classes`` (G,); ``losses``,
        ``previous_losses``; ``learning_rates`` (distinct ones, ascending); ``gradient_norms`` by
        part of the model, of ``gradients_of_iteration``; ``largest_weight`` (name, value);
        ``non_finite_weights`` (names).
    """
    names, largest = _look_at_weights(model)
    return {
        "iteration": iteration,
        "rank": comm.get_rank(),
        "phase": getattr(model, "phase", ""),
        "images": [_image(entry) for entry in record.batch],
        "losses": {name: float(value) for name, value in record.losses.items()},
        "previous_losses": {name: float(v) for name, v in record.previous_losses.items()},
        "learning_rates": sorted({float(g["lr"]) for g in trainer.optimizer.param_groups}),
        "gradient_norms": _gradient_norms(model, _loss_scale(trainer)),
        "gradients_of_iteration": iteration if record.has_gradients else iteration - 1,
        "largest_weight": largest,
        "non_finite_weights": names,
    }


def save_dump(dump: Mapping[str, Any], folder: str) -> Path:
    """Write ``nan_dump_<iteration>.pth``, complete or not at all; returns the path."""
    path = Path(folder) / f"nan_dump_{dump['iteration']}.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save(dict(dump), temporary)
    return path


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


def _gradient_norms(model: nn.Module, scale: float) -> dict[str, float]:
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            part = name.partition(".")[0]
            norm = float(parameter.grad.detach().float().norm()) / scale
            squares[part] = squares.get(part, 0.0) + norm**2
    return {part: math.sqrt(square) for part, square in squares.items()}


def _loss_scale(trainer: Any) -> float:
    """Mixed precision multiplies the loss, and so the gradients."""
    scaler = getattr(trainer, "grad_scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def _look_at_weights(model: nn.Module) -> tuple[list[str], dict[str, Any]]:
    """Names of parameters that are not finite, and the largest value among the others."""
    bad: list[str] = []
    largest: dict[str, Any] = {"name": "", "value": 0.0}
    for name, parameter in model.named_parameters():
        if not parameter.numel():
            continue
        value = float(parameter.detach().abs().max())
        if not math.isfinite(value):
            bad.append(name)
        elif value > largest["value"]:
            largest = {"name": name, "value": value}
    return bad, largest


def _word(value: float) -> str:
    return "nan" if math.isnan(value) else "infinite"


def _way_back(cfg: CfgNode, iteration: int, weights_are_bad: bool) -> str:
    last = Path(cfg.OUTPUT_DIR) / "last_checkpoint"
    if not last.is_file():
        return "No checkpoint was written before: start again after the correction"
    name = last.read_text().strip()
    if weights_are_bad and name == f"model_{iteration - 1:07d}.pth":
        return f"{name} has the bad weights already: go on from one before it"
    return (
        f"The last checkpoint is {name}. With corrected data go on from it with --resume; a "
        "resumed run keeps its learning rate, so another one needs a new run (--overwrite)"
    )

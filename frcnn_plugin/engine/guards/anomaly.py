"""A loss that is not finite: the dump, the message, and what it most likely comes from.

Causes are judged from the batch, the weights and the config.
"""

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

# All originals fine-tune with this rate, on one or two images per iteration (paper section 3.1.3);
# for larger batches it grows in proportion, the rule that Detectron2 follows as well.
_RATE, _IMAGES = 1e-3, 2
# Network inputs are at most about 150 with Caffe's preprocessing, 3 with torchvision's. Pixels that
# were divided by a deviation meant for 0..1 are above 1000.
_LARGE_INPUT = 300.0
_SMALL_SIDE = 1.0  # network pixels: a smaller box is degenerate
_MANY = 3  # boxes that a message lists


@dataclass
class StepRecord:
    """What is known about a training iteration.

    Attributes:
        batch: the images, as the model gets them.
        losses: scalars by name; empty if the iteration did not get that far.
        previous_losses: those of the iteration before.
        has_gradients: the backward pass is done; else the gradients are those of the iteration
            before.
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
        trainer: Detectron2's SimpleTrainer or one like it: its optimizer is looked at.
        record: the iteration.
        iteration: its number.
        found: what Detectron2 said, if it found the numbers before there was a loss.

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
        how = "before the first iteration: look at MODEL.WEIGHTS"
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
    """Return what mixed precision multiplies the loss with, and so the gradients."""
    scaler = getattr(trainer, "grad_scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def _look_at_weights(model: nn.Module) -> tuple[list[str], dict[str, Any]]:
    """Return the names of parameters that are not finite, and the largest of the others."""
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


# ---- causes ---------------------------------------------------------------------------------


def likely_causes(
    cfg: CfgNode, model: nn.Module, batch: Sequence[Mapping[str, Any]], dump: Mapping[str, Any]
) -> list[str]:
    """List the causes, likeliest first, each with what to do.

    Args:
        cfg: config of the run.
        model: unwrapped.
        batch: the images, as the model gets them.
        dump: see :func:`build_dump`.

    Returns:
        one sentence each. Those with evidence come first, then those that the config makes
        possible, then what nothing speaks for.
    """
    judged = [
        _degenerate_boxes(dump["images"]),
        _learning_rate(cfg, dump["learning_rates"], len(dump["images"])),
        _weights(cfg, model),
        _preprocessing(cfg, batch),
        *([(1.0, _AMP)] if cfg.SOLVER.AMP.ENABLED else []),
    ]
    return [text for _, text in sorted(judged, key=lambda pair: -pair[0])]


_AMP = (
    "mixed precision: a number larger than float16 can hold. Type: SOLVER.AMP.ENABLED False to see "
    "whether it stays finite"
)


def _degenerate_boxes(images: Sequence[Mapping[str, Any]]) -> tuple[float, str]:
    bad: list[str] = []
    total = 0
    for image in images:
        height, width = image["network_size"]
        for box in image.get("gt_boxes", torch.zeros(0, 4)):
            total += 1
            x1, y1, x2, y2 = box.tolist()
            sides = min(x2 - x1, y2 - y1)
            inside = x1 > -1 and y1 > -1 and x2 < width + 1 and y2 < height + 1
            if not (sides >= _SMALL_SIDE and inside):  # "not", so that nan is bad
                where = ", ".join(f"{v:.1f}" for v in (x1, y1, x2, y2))
                bad.append(f"{image['file_name']} ({where})")
    if not bad:
        return (
            0.1,
            f"degenerate boxes: not seen, all {total} ground-truth boxes of the batch are sound",
        )
    more = f" and {len(bad) - _MANY} more" if len(bad) > _MANY else ""
    return 4.0, (
        f"degenerate ground-truth boxes in this batch (x1, y1, x2, y2 in network pixels): "
        f"{'; '.join(bad[:_MANY])}{more}. Correct the annotation files; in VOC-format sets "
        f"`strict: True` in DATASETS.REGISTER names every bad box"
    )


def _learning_rate(cfg: CfgNode, rates: Sequence[float], images: int) -> tuple[float, str]:
    images *= comm.get_world_size()
    # Biases may have twice the rate of the weights.
    rate = rates[0] if rates else cfg.SOLVER.BASE_LR
    usual = _RATE * max(1.0, images / _IMAGES)
    text = (
        f"the learning rate: {rate:g} with {images} image{'s'[: images != 1]} per iteration; the "
        f"originals' for that batch is {usual:g}. "
    )
    if rate > 1.5 * usual:
        return 3.0, text + f"Type: SOLVER.BASE_LR {usual:g}"
    clip = "" if cfg.SOLVER.CLIP_GRADIENTS.ENABLED else ", or SOLVER.CLIP_GRADIENTS.ENABLED True"
    return 0.5, text + f"Not too high, but try SOLVER.BASE_LR {rate / 10:g}{clip}"


def _weights(cfg: CfgNode, model: nn.Module) -> tuple[float, str]:
    if cfg.MODEL.WEIGHTS:
        return 0.2, (
            f"weights that do not fit: MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS}; look in log.txt for "
            "layers that were not found in it"
        )
    frozen = sum(not p.requires_grad for n, p in model.named_parameters() if "backbone" in n)
    # With FREEZE_AT 0 it was a stage of four-step training that froze them, with good weights.
    if frozen and cfg.MODEL.BACKBONE.FREEZE_AT > 0:
        return 3.5, (
            f"MODEL.WEIGHTS is empty and {frozen} tensors of the backbone are frozen at random "
            "numbers (MODEL.BACKBONE.FREEZE_AT "
            f"{cfg.MODEL.BACKBONE.FREEZE_AT}). Give MODEL.WEIGHTS, or MODEL.BACKBONE.FREEZE_AT 0"
        )
    return 2.0, (
        "MODEL.WEIGHTS is empty: a network that starts from random numbers needs a smaller "
        "learning rate, or SOLVER.CLIP_GRADIENTS.ENABLED True, or ImageNet weights"
    )


def _preprocessing(cfg: CfgNode, batch: Sequence[Mapping[str, Any]]) -> tuple[float, str]:
    mean = torch.tensor(cfg.MODEL.PIXEL_MEAN).reshape(-1, 1, 1)
    std = torch.tensor(cfg.MODEL.PIXEL_STD).reshape(-1, 1, 1)
    largest = max(
        (float(((x["image"].detach().cpu().float() - mean) / std).abs().max()) for x in batch),
        default=0.0,
    )
    keys = (
        f"MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)}, MODEL.PIXEL_STD "
        f"{list(cfg.MODEL.PIXEL_STD)}, INPUT.FORMAT {cfg.INPUT.FORMAT}"
    )
    if not largest <= _LARGE_INPUT:
        return 3.2, (
            f"preprocessing: the network's input reaches {largest:.0f}, far above what any weights "
            f"expect ({keys}). Pixels are 0 to 255, and so must mean and deviation be"
        )
    return 0.3, f"preprocessing that does not belong to the weights: {keys}"

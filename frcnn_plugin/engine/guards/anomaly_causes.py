"""Why a loss may not be finite, judged from the batch, the weights and the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

# All originals fine-tune with this rate, on one or two images per iteration (paper section 3.1.3);
# for larger batches it grows in proportion, the rule that Detectron2 follows as well.
_RATE, _IMAGES = 1e-3, 2
# Network inputs are at most about 150 with Caffe's preprocessing, 3 with torchvision's. Pixels that
# were divided by a deviation meant for 0..1 are above 1000.
_LARGE_INPUT = 300.0
_SMALL_SIDE = 1.0  # network pixels: a smaller box is degenerate
_MANY = 3  # boxes that a message lists


def likely_causes(
    cfg: CfgNode, model: nn.Module, batch: Sequence[Mapping[str, Any]], dump: Mapping[str, Any]
) -> list[str]:
    """The causes, likeliest first, each with what to do.

    Args:
        cfg: config of the run.
        model: unwrapped.
        batch: the images, as the model gets them.
        dump: see :func:`~frcnn_plugin.engine.guards.anomaly.build_dump`.

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
            if not (sides >= _SMALL_SIDE and inside):  # `not` so that nan lands here
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
    # Frozen by a step of four-step training, not by the config, if FREEZE_AT is 0.
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

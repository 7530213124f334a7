"""A rough estimate of the memory that training, or testing, takes.

Bytes = weights x 4 (all) + gradients and momentum x 8 (what trains) + activations, where

    activations = sum over layers from the first that trains of their outputs x 4
                  (pooling: x 12, as it notes where each maximum was)
                + twice the largest output (its gradient, and the convolution's scratch space)
                + RoIs x (pooled features x 8 + 6 x FC_DIM x 4) x 2

for the largest images of the data sets after resizing, times the images of a process. Nothing is
computed for it: the backbone runs on the meta device, which knows shapes only. Libraries come on
top: about 0.5 GiB per process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ..four_step.stages import build_stages
from .environment import gpu_memory
from .finding import Finding, ok, warning
from .planned_run import PlannedRun

_GIB = 2**30
_FLOAT = 4
_LIBRARIES = 0.5 * _GIB


def check_memory(run: PlannedRun) -> Iterator[Finding]:
    """Compare the estimate with what is free on the device."""
    cfg = run.model_cfg
    width, height = largest_image(run)
    images = 1 if run.eval_only else images_at_once(run)
    need = estimate(run.model, cfg, (width, height), images, training=not run.eval_only)
    text = f"about {need / _GIB:.1f} GiB per process for {images} x {width}x{height} pixels"
    free: int | None
    if run.cfg.MODEL.DEVICE.startswith("cuda"):
        free, where = gpu_memory(0, touch=run.may_touch_gpus)[0], "of GPU memory are free"
    else:
        free, where = free_ram(), "of RAM are free"
        need *= run.processes_here
    if free is None:
        yield ok("memory", text)
    elif need <= free:
        yield ok("memory", f"{text}; {free / _GIB:.1f} GiB {where}")
    else:
        yield warning(
            "memory",
            f"{text}{_times(run)}, but only {free / _GIB:.1f} GiB {where}",
            f"If memory runs out, lower {_keys(run)}",
        )


def estimate(
    model: nn.Module, cfg: CfgNode, size: tuple[int, int], images: int, *, training: bool
) -> float:
    """Bytes that one process takes, by the formula above.

    Args:
        model: on the meta device.
        cfg: its config.
        size: width and height of the network's input, in pixels.
        images: that pass the network together.
        training: gradients, momentum and activations are kept.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fixed = sum(p.numel() for p in model.parameters()) * _FLOAT
    kept, largest, channels = _activations(model, size, images)
    if not training:
        rois = cfg.MODEL.RPN.POST_NMS_TOPK_TEST * images
        return _LIBRARIES + fixed + 2 * largest + _head(cfg, rois, channels) / 2
    rois = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE * images
    fixed += 2 * trained * _FLOAT
    return _LIBRARIES + fixed + kept + 2 * largest + _head(cfg, rois, channels)


def largest_image(run: PlannedRun) -> tuple[int, int]:
    """Width and height of the largest network input; the limits if no data set is known."""
    node = run.cfg.INPUT
    short = node.MIN_SIZE_TEST if run.eval_only else max(node.MIN_SIZE_TRAIN)
    long = node.MAX_SIZE_TEST if run.eval_only else node.MAX_SIZE_TRAIN
    sizes = {
        (d["width"], d["height"])
        for name in (run.test if run.eval_only else run.train)
        for d in run.dicts(name)
        if "width" in d and "height" in d
    }
    if not sizes:
        return long, short
    scaled = []
    for width, height in sizes:
        scale = min(short / min(width, height), long / max(width, height))
        scaled.append((round(width * scale), round(height * scale)))
    return max(scaled, key=lambda s: s[0] * s[1])


def images_at_once(run: PlannedRun) -> int:
    """Images of a process whose activations are there together; one by one does not change it."""
    cfg = run.scaled
    if cfg.FOUR_STEP.ENABLED:
        return max(stage.images for stage in build_stages(cfg))
    return max(1, cfg.SOLVER.IMS_PER_BATCH // run.num_processes)


def free_ram() -> int | None:
    """Bytes of RAM that programs can take without swapping; None if the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (OSError, ValueError):
        return None


def _activations(model: Any, size: tuple[int, int], images: int) -> tuple[float, float, int]:
    """Bytes of the outputs kept for the backward pass and of the largest; channels of the last."""
    layers: list[tuple[nn.Module, torch.Tensor]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            layers.append((module, output))

    leaves = [m for m in model.backbone.modules() if not any(m.children())]
    hooks = [m.register_forward_hook(note) for m in leaves if not getattr(m, "inplace", False)]
    try:
        with torch.no_grad():
            out = model.backbone(torch.empty(images, 3, size[1], size[0], device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    kept, trains = 0.0, False
    for module, output in layers:
        trains |= any(p.requires_grad for p in module.parameters(recurse=False))
        if trains:
            # Pooling keeps 64-bit positions.
            each = _FLOAT * 3 if isinstance(module, nn.MaxPool2d) else _FLOAT
            kept += output.numel() * each
    largest = max(output.numel() for _, output in layers) * _FLOAT
    return kept, largest, next(iter(out.values())).shape[1]


def _head(cfg: CfgNode, rois: int, channels: int) -> float:
    """Bytes of a head with two fully connected layers, gradients included."""
    if cfg.MODEL.PAPER_RCNN.PHASE == "rpn":
        return 0.0
    pooled = channels * cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION**2
    return rois * (pooled * 8 + 6 * cfg.MODEL.ROI_BOX_HEAD.FC_DIM * _FLOAT) * 2.0


def _times(run: PlannedRun) -> str:
    return f" ({run.processes_here} processes)" if run.processes_here > 1 else ""


def _keys(run: PlannedRun) -> str:
    node = run.cfg.INPUT
    if run.eval_only:
        keys: Sequence[str] = [f"INPUT.MIN_SIZE_TEST (now {node.MIN_SIZE_TEST})"]
    else:
        keys = [
            f"INPUT.MIN_SIZE_TRAIN (now {tuple(node.MIN_SIZE_TRAIN)})",
            "FOUR_STEP.IMS_PER_BATCH" if run.cfg.FOUR_STEP.ENABLED else "SOLVER.IMS_PER_BATCH",
        ]
    return " or ".join(keys) + (" or --num-gpus" if run.processes_here > 1 else "")

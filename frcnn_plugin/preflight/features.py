"""Features that steps 3 and 4 keep on disk."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.data.transforms import ResizeShortestEdge

from ..four_step.features import GB, STEPS, check_feature_cache, features_root
from ..four_step.stages import Stage, build_stages
from .disk import periodic_checkpoints, stage_files
from .finding import Finding, error, ok, warning
from .output import nearest_folder
from .planned_run import PlannedRun

_FLOAT = 4  # bytes
_KEY = "FOUR_STEP.FEATURE_CACHE_GB"


def check_features(run: PlannedRun) -> Iterator[Finding]:
    """What can be said of ``FOUR_STEP.FEATURE_CACHE_GB`` without the model and the images."""
    if run.eval_only:
        return
    check_feature_cache(run.cfg)
    stages = _stages(run)
    padded = [s for s in stages if s.images > 1 and not run.cfg.MODEL.PAPER_RCNN.ONE_BY_ONE]
    for stage in padded:
        yield warning(
            "schedule",
            f"{_KEY} {run.cfg.FOUR_STEP.FEATURE_CACHE_GB:g} has no effect in step {stage.number}: "
            f"{stage.images} images per batch are padded to one size, and their features are those "
            "of the batch",
            "Add MODEL.PAPER_RCNN.ONE_BY_ONE True, with which they pass one by one, unpadded",
        )


def check_features_disk(run: PlannedRun) -> Iterator[Finding]:
    """Compare the limit with what is free, beside all else that the run writes."""
    if run.eval_only or not _stages(run):
        return
    folder = nearest_folder(Path(run.cfg.OUTPUT_DIR))
    before = sum(f.stat().st_size for f in features_root(run.cfg).rglob("*") if f.is_file())
    free = shutil.disk_usage(folder).free + before
    others = sum(periodic_checkpoints(run)) + stage_files(run)
    limit = run.cfg.FOUR_STEP.FEATURE_CACHE_GB
    text = (
        f"{_KEY} is {limit:g}, {free / GB:.1f} GB are free in {folder} and the rest of the run "
        f"writes up to {others / GB:.1f} GB"
    )
    if limit * GB + others > free:
        most = max(0.0, math.floor(9 * (free - others) / GB) / 10)
        yield error("disk", text, f"Type {_KEY} {most}, free some, or choose another OUTPUT_DIR")
        return
    images, size = feature_bytes(run)
    if images:
        text += f"; features of {images:,} images, mirrored ones included, take {size / GB:.1f} GB"
    yield ok("disk", text)


def feature_bytes(run: PlannedRun) -> tuple[int, float]:
    """Training images, their mirrored copies included, and the bytes of their features.

    For one size of images, the largest of ``INPUT.MIN_SIZE_TRAIN``. Sets that are not quick to have
    are left out.
    """
    node = run.cfg.INPUT
    sizes: list[tuple[int, int]] = []
    for name in run.train:
        sizes += [(d["height"], d["width"]) for d in run.dicts(name)]
    shapes: Any = run.model.backbone.output_shape()  # type: ignore[operator, union-attr]
    total = 0
    for height, width in sizes:
        h, w = ResizeShortestEdge.get_output_shape(
            height, width, max(node.MIN_SIZE_TRAIN), node.MAX_SIZE_TRAIN
        )
        for shape in shapes.values():
            total += shape.channels * -(-h // shape.stride) * -(-w // shape.stride)
    return 2 * len(sizes), 2.0 * total * _FLOAT


def _stages(run: PlannedRun) -> list[Stage]:
    """The steps that keep features."""
    node = run.cfg.FOUR_STEP
    if not (node.ENABLED and node.FEATURE_CACHE_GB):
        return []
    return [s for s in build_stages(run.cfg) if s.number in STEPS]

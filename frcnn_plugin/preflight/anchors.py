"""Anchors against objects: what the best of them could find, without a network.

An object is learnt from the anchors that overlap it most; where even these overlap it little, the
region proposal network has to guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.structures import Boxes, BoxMode, pairwise_iou

from ..modeling.backbone.caffe_backbone import backbone_feature_sizes
from ..modeling.box_ops import inside_image
from .data_sets import evenly
from .finding import Finding, Subject
from .planned_run import PlannedRun, muted
from .rules import typed

_DATA = Subject("data")
_KEY = "MODEL.ANCHOR_GENERATOR.SIZES"
_IMAGES = 200  # that are looked at, about 5 ms each
_FEW_IMAGES = 20  # for a suggestion that is tried for each typical size
_FEW_OBJECTS = 10  # of a class: too few to judge
_LOW = 1 / 3  # share of a class with a good anchor, below which a warning is due
_SAME_SIZE = 1.25  # the factor up to which images are about as large
_TYPICAL = (16, 32, 64, 128, 256, 512)  # sizes of which a suggestion is made
_SMALL = 32  # pixels, two cells: smaller objects are hard to learn
_RARE = 0.02  # share of the objects for which no size is suggested


@dataclass(frozen=True)
class Overlaps:
    """What anchors make of a sample of training images.

    Attributes:
        best: (N,) the highest IoU of each object with an anchor that is trained on.
        classes: (N,) class of each object.
        sides: (N,) square root of each object's area, network pixels.
        empty: images without an anchor that is trained on.
        images: images looked at.
    """

    best: np.ndarray
    classes: np.ndarray
    sides: np.ndarray
    empty: int
    images: int

    def share(self, iou: float) -> float:
        """Return the share of the objects with an anchor of at least this IoU."""
        return float((self.best >= iou).mean()) if len(self.best) else 0.0


def check_anchors(run: PlannedRun) -> Iterator[Finding]:
    """Measure how well the anchors fit the training objects at the size that is trained on."""
    if run.eval_only:
        return
    yield from _check_test_size(run)
    model = run.cfg.MODEL
    has_rpn = (
        model.META_ARCHITECTURE in ("PaperRCNN", "GeneralizedRCNN", "ProposalNetwork")
        and model.PROPOSAL_GENERATOR.NAME in ("PaperRPN", "HyperRPN", "RPN")
        and model.ANCHOR_GENERATOR.NAME != "RotatedAnchorGenerator"
        and (run.cfg.FOUR_STEP.ENABLED or model.PAPER_RCNN.PHASE != "fast_rcnn")
    )
    for name in dict.fromkeys(run.train if has_rpn else ()):
        records = [d for d in run.dicts(name) if "width" in d and any(_objects(d))]
        if records:
            yield from _check_set(run, name, evenly(records, _IMAGES))


def _check_test_size(run: PlannedRun) -> Iterator[Finding]:
    sizes, test = run.cfg.INPUT, run.cfg.INPUT.MIN_SIZE_TEST
    low, high = min(sizes.MIN_SIZE_TRAIN), max(sizes.MIN_SIZE_TRAIN)
    if low and test and not low / _SAME_SIZE <= test <= high * _SAME_SIZE:
        yield _DATA.warning(
            f"INPUT.MIN_SIZE_TRAIN is {tuple(sizes.MIN_SIZE_TRAIN)} and INPUT.MIN_SIZE_TEST "
            f"{test}: objects are tested at another size than they are trained at",
            f"Type INPUT.MIN_SIZE_TEST {high} INPUT.MAX_SIZE_TEST {sizes.MAX_SIZE_TRAIN}",
        )


def _check_set(run: PlannedRun, name: str, records: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    found = overlaps(run, records)
    size = f"INPUT.MIN_SIZE_TRAIN {tuple(run.cfg.INPUT.MIN_SIZE_TRAIN)}"
    sizes = f"{_KEY} {list(run.cfg.MODEL.ANCHOR_GENERATOR.SIZES)}"
    if found.empty:
        yield (_DATA.error if found.empty == found.images else _DATA.warning)(
            f"{name}: no anchor lies inside {found.empty} of {found.images} images, from which the "
            f"region proposal network then learns nothing ({sizes}, {size})",
            "Lower the former, or raise the latter" + _fitting(run, evenly(records, _FEW_IMAGES)),
        )
    if not len(found.best) or found.empty == found.images:
        return
    names = MetadataCatalog.get(name).get("thing_classes") or ()
    low = []
    for number in np.unique(found.classes):
        best = found.best[found.classes == number]
        if len(best) >= _FEW_OBJECTS and (best >= 0.5).mean() < _LOW:
            low.append(f"{names[number] if number < len(names) else number} "
                       f"{100 * (best >= 0.5).mean():.0f} %")  # fmt: skip
    text = (
        f"{name}: {100 * found.share(0.5):.0f} % of the objects have an anchor of IoU 0.5 or more, "
        f"{100 * found.share(0.7):.0f} % of 0.7 or more ({found.images} images)"
    )
    enough = len(found.best) >= _FEW_OBJECTS
    if not low and not (enough and found.share(0.5) < _LOW):
        yield _DATA.ok(text)
        return
    yield _DATA.warning(
        f"{text}{', of some classes fewer: ' + ', '.join(low) if low else ''}. The side of an "
        f"object is {np.median(found.sides):.0f} px in the median, at {size}, with {sizes}",
        _suggestion(run, records, found),
    )


def _fitting(run: PlannedRun, records: Sequence[dict[str, Any]]) -> str:
    """Name the sizes of which an anchor lies inside most of the images, in a sentence."""
    fitting = []
    for side in _TYPICAL:
        found = overlaps(run, records, _with_sizes(run, [side]))
        fitting += [side] if 2 * found.empty < found.images else []
    return f". Type for example {typed(_KEY, [fitting])}" if fitting else ""


def _with_sizes(run: PlannedRun, sizes: Sequence[float]) -> CfgNode:
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [list(sizes)]
    return cfg


def _suggestion(run: PlannedRun, records: Sequence[dict[str, Any]], found: Overlaps) -> str:
    """Name sizes that fit the objects, if they are better."""
    nearest = np.abs(np.log2(found.sides[:, None] / np.array(_TYPICAL))).argmin(1)
    wanted = [float(side) for i, side in enumerate(_TYPICAL) if (nearest == i).mean() >= _RARE]
    better = overlaps(run, records, _with_sizes(run, wanted))
    advice = []
    if better.share(0.5) > found.share(0.5):
        value = [[int(side) for side in wanted]]
        advice.append(f"Type for example {typed(_KEY, value)} ({100 * better.share(0.5):.0f} %)")
    median = np.median(found.sides)
    if median < _SMALL or median > _TYPICAL[-1]:
        change = "Raise" if median < _SMALL else "Lower"
        advice.append(f"{change} INPUT.MIN_SIZE_TRAIN and INPUT.MIN_SIZE_TEST")
    return ". ".join(advice) or "Look at them: frcnn visualize --mode matches"


def overlaps(
    run: PlannedRun, records: Sequence[dict[str, Any]], cfg: CfgNode | None = None
) -> Overlaps:
    """Compare the objects of images with the anchors that training would match them with.

    Args:
        run: gives the backbone's strides.
        records: images with annotations and sizes.
        cfg: with other anchors than the run's.
    """
    cfg = cfg or run.cfg
    anchors_of, border = _anchors(run, cfg), cfg.MODEL.RPN.BOUNDARY_THRESH
    best: list[float] = []
    classes: list[int] = []
    sides: list[float] = []
    empty = 0
    for record in records:
        size = trained_size(cfg, record["height"], record["width"])
        anchors = anchors_of(size)
        anchors = anchors[inside_image(anchors, size, border)]
        objects = _objects(record)
        boxes = torch.tensor(
            [
                BoxMode.convert(
                    list(o["bbox"]), o.get("bbox_mode", BoxMode.XYXY_ABS), BoxMode.XYXY_ABS
                )
                for o in objects
            ]
        ).reshape(-1, 4) * (size[0] / record["height"])
        iou = pairwise_iou(Boxes(boxes), Boxes(anchors))
        best += iou.max(dim=1).values.tolist() if len(anchors) else [0.0] * len(objects)
        classes += [o["category_id"] for o in objects]
        sides += Boxes(boxes).area().sqrt().tolist()
        empty += not len(anchors)
    return Overlaps(
        np.array(best), np.array(classes, dtype=int), np.array(sides), empty, len(records)
    )


def _objects(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [o for o in record.get("annotations", ()) if not o.get("iscrowd", 0)]


def trained_size(cfg: CfgNode, height: int, width: int) -> tuple[int, int]:
    """Return height and width that an image is trained at; of several sizes, the middle one."""
    sizes = sorted(cfg.INPUT.MIN_SIZE_TRAIN)
    short = int(sizes[len(sizes) // 2])
    if short == 0:
        return height, width
    new: tuple[int, int] = ResizeShortestEdge.get_output_shape(
        height, width, short, cfg.INPUT.MAX_SIZE_TRAIN
    )
    return new


def _anchors(run: PlannedRun, cfg: CfgNode) -> Any:
    """Return a function that gives the anchors of a network input of some size."""
    backbone: Any = run.model.backbone
    names = cfg.MODEL.RPN.IN_FEATURES
    shapes = backbone.output_shape()
    sizes_of = backbone_feature_sizes(backbone, names, len(cfg.MODEL.PIXEL_MEAN))
    with muted("detectron2"):
        generator = build_anchor_generator(cfg, [shapes[name] for name in names])

    @lru_cache(maxsize=64)
    def anchors(size: tuple[int, int]) -> torch.Tensor:
        maps = [torch.empty(1, 1, *cells) for cells in sizes_of(*size)]
        return Boxes.cat(generator(maps)).tensor

    return anchors

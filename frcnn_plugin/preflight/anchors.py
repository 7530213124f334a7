"""Anchors against objects: what the best of them could find, without a network.

An object is learnt from the anchors that overlap it most; where even these overlap it little, the
region proposal network has to guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling.anchor_generator import build_anchor_generator

from ..data.datasets.arguments import objects_that_count
from .data_sets import evenly, xyxy_of
from .finding import Finding, Subject
from .planned_run import PlannedRun, muted
from .rules import typed

_DATA = Subject("data")
_KEY, _RATIOS_KEY = "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"
_IMAGES = 200  # that are looked at, less than a millisecond each
_FEW_OBJECTS = 10  # of a class: too few to judge
_LOW = 1 / 3  # share of a class with a good anchor, below which a warning is due
_MOST = 0.9  # share of all objects from which other anchors are not worth a word
_GAIN = 0.05  # of the cover, for which one more size is suggested
_SAME_SIZE = 1.25  # the factor up to which images are about as large
# What a suggestion is made of: steps so coarse that a few more images do not change it.
_SIZES = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_RATIOS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
_SMALL = 32  # pixels, two cells: smaller objects are hard to learn
_RARE = 0.02  # share of the objects for which no ratio is suggested


@dataclass(frozen=True)
class Overlaps:
    """What anchors make of a sample of training images."""

    best: np.ndarray  # (N,) the highest IoU of each object with an anchor that is trained on
    classes: np.ndarray  # (N,) class of each object
    sizes: np.ndarray  # (N, 2) width and height of each object, network pixels
    empty: int  # images without an anchor that is trained on
    images: int  # images looked at

    def share(self, iou: float) -> float:
        """Return the share of the objects with an anchor of at least this IoU."""
        return float((self.best >= iou).mean()) if len(self.best) else 0.0

    def by_class(self) -> dict[int, np.ndarray]:
        """Return the best IoUs of each class with enough objects to judge."""
        groups = {int(n): self.best[self.classes == n] for n in np.unique(self.classes)}
        return {n: best for n, best in groups.items() if len(best) >= _FEW_OBJECTS}

    def cover(self) -> float:
        """Return the mean of the shares at IoU 0.5 and 0.7; each class counts alike, as in AP."""
        groups = list(self.by_class().values()) or [self.best]
        return float(np.mean([((g >= 0.5) / 2 + (g >= 0.7) / 2).mean() for g in groups]))


def check_anchors(run: PlannedRun) -> Iterator[Finding]:
    """Measure how well the anchors fit the training objects at the size that is trained on."""
    if run.eval_only or run.failed:
        return
    yield from _check_test_size(run)
    model = run.cfg.MODEL
    has_rpn = (
        model.META_ARCHITECTURE in ("PaperRCNN", "GeneralizedRCNN", "ProposalNetwork")
        and model.PROPOSAL_GENERATOR.NAME in ("PaperRPN", "HyperRPN", "RPN")
        and model.ANCHOR_GENERATOR.NAME != "RotatedAnchorGenerator"
        and (run.cfg.FOUR_STEP.ENABLED or model.PAPER_RCNN.PHASE != "fast_rcnn")
    )
    try:
        has_rpn = bool(has_rpn and run.model)
    except Exception:  # check_weights says what is wrong
        return
    for name in dict.fromkeys(run.train if has_rpn else ()):
        records = [d for d in run.dicts(name) if "width" in d and objects_that_count(d)]
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
            "Lower the former, or raise the latter" + _fitting(run, records),
        )
    if not len(found.best) or found.empty == found.images:
        return
    names = MetadataCatalog.get(name).get("thing_classes") or ()
    low = [
        f"{100 * part:.0f} % of {names[number] if number < len(names) else number}"
        for number, best in found.by_class().items()
        if (part := (best >= 0.5).mean()) < _LOW
    ]
    text = (
        f"{name}: {100 * found.share(0.5):.0f} % of the objects have an anchor of IoU 0.5 or more, "
        f"{100 * found.share(0.7):.0f} % of 0.7 or more ({found.images} images)"
    )
    share = found.share(0.5) if len(found.best) >= _FEW_OBJECTS else 1.0
    advice = _suggestion(run, records, found) if low or share < _MOST else ""
    if not low and share >= _LOW:
        yield _DATA.ok(f"{text}. {advice}" if advice else text)
        return
    side = float(np.median(np.sqrt(found.sizes.prod(1))))
    if not _SMALL <= side <= _SIZES[-1]:
        change = "Raise" if side < _SMALL else "Lower"
        advice += f"{'. ' if advice else ''}{change} INPUT.MIN_SIZE_TRAIN and INPUT.MIN_SIZE_TEST"
    if 0 < len(low) < len(found.by_class()):
        text += f", but at 0.5 only {', '.join(low)}"
    yield _DATA.warning(
        f"{text}. The side of an object is {side:.0f} px in the median, at {size}, with {sizes}",
        advice or "Look at them: frcnn visualize --mode matches",
    )


def _fitting(run: PlannedRun, records: Sequence[dict[str, Any]]) -> str:
    """Name the sizes of which an anchor lies inside most of the images, in a sentence."""
    each = {side: overlaps(run, records, _with_anchors(run, [side])) for side in _SIZES[::2]}
    fitting = [side for side, found in each.items() if 2 * found.empty < found.images]
    return f". Type for example {typed(_KEY, [fitting])}" if fitting else ""


def _with_anchors(
    run: PlannedRun, sizes: Sequence[float], ratios: Sequence[float] | None = None
) -> CfgNode:
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [list(sizes)]
    if ratios:
        cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [list(ratios)]
    return cfg


def _suggestion(run: PlannedRun, records: Sequence[dict[str, Any]], found: Overlaps) -> str:
    """Name anchors that cover clearly more objects; "" if there are none, or for a pyramid."""
    if len(run.cfg.MODEL.RPN.IN_FEATURES) > 1:
        return ""  # whose sizes belong to its maps
    sizes, better = _fitted(run, records)
    overrides = typed(_KEY, [sizes])
    if better.share(0.5) < _MOST:  # then it is not the sizes
        logs = np.diff(np.log(np.maximum(found.sizes, 1)))  # of height / width
        nearest = np.abs(logs - np.log(_RATIOS)).argmin(1)
        ratios = [ratio for i, ratio in enumerate(_RATIOS) if (nearest == i).mean() >= _RARE]
        sizes, shaped = _fitted(run, records, ratios)
        if shaped.cover() >= better.cover() + _GAIN:
            better, overrides = shaped, f"{typed(_KEY, [sizes])} {typed(_RATIOS_KEY, [ratios])}"
    if better.cover() < found.cover() + _GAIN:
        return ""
    return (
        f"Type for example {overrides} to cover more objects ({100 * better.share(0.5):.0f} % and "
        f"{100 * better.share(0.7):.0f} %); whether AP rises, a trial shows (docs/custom_data.md)"
    )


def _fitted(
    run: PlannedRun, records: Sequence[dict[str, Any]], ratios: Sequence[float] | None = None
) -> tuple[list[int], Overlaps]:
    """Choose sizes one by one, each that which covers most beside the others, while it helps."""
    each = {side: overlaps(run, records, _with_anchors(run, [side], ratios)) for side in _SIZES}
    chosen: list[int] = []
    best = replace(each[_SIZES[0]], best=0 * each[_SIZES[0]].best)
    while True:
        tried = {s: replace(best, best=np.maximum(best.best, o.best)) for s, o in each.items()}
        side = max(tried, key=lambda side: tried[side].cover())
        if tried[side].cover() < best.cover() + _GAIN:
            return sorted(chosen), best
        chosen.append(side)
        best = tried[side]


def overlaps(
    run: PlannedRun, records: Sequence[dict[str, Any]], cfg: CfgNode | None = None
) -> Overlaps:
    """Compare the objects of images with the anchors that training would match them with.

    These are the anchors of ``cfg``, if it is given, at the strides of the run's backbone.
    """
    cfg = cfg or run.cfg
    grids_of, border = _grids(run, cfg), cfg.MODEL.RPN.BOUNDARY_THRESH
    best, classes, sizes, empty = [np.zeros(0)], [0][:0], [np.zeros((0, 2))], 0
    for record in records:
        size = trained_size(cfg, record["height"], record["width"])
        objects = objects_that_count(record)
        boxes = xyxy_of(objects) * (size[0] / record["height"])
        classes += [o["category_id"] for o in objects]
        sizes.append(boxes[:, 2:] - boxes[:, :2])
        best.append(np.zeros(len(objects)))
        inside = False
        for columns, rows in grids_of(size):
            wide, in_columns = _longest(boxes[:, 0::2], columns, size[1], border)
            high, in_rows = _longest(boxes[:, 1::2], rows, size[0], border)
            areas = np.diff(columns[0])[:, 0] * np.diff(rows[0])[:, 0]
            common = wide * high
            union = areas + sizes[-1].prod(1)[:, None] - common
            best[-1] = np.maximum(best[-1], (common / union).max(1))
            inside |= bool((in_columns & in_rows).any())
        empty += not inside
    each = np.concatenate(best), np.array(classes, dtype=int), np.concatenate(sizes)
    return Overlaps(*each, empty, len(records))


def _longest(
    objects: np.ndarray, anchors: np.ndarray, limit: int, border: float
) -> tuple[np.ndarray, Any]:
    """Return how much of objects (N, 2) anchors (places, A, 2) inside the image reach at most.

    Both are ends along one axis; the image goes from 0 to `limit`. The answer is (N, A) in pixels,
    0 without an anchor inside (see :func:`.inside_image`), and (A,) whether there is one.
    """
    low = np.maximum(objects[:, None, None, 0], anchors[..., 0])
    high = np.minimum(objects[:, None, None, 1], anchors[..., 1])
    inside = (anchors[..., 0] >= -border) & (anchors[..., 1] <= limit + border) | (border < 0)
    return (np.clip(high - low, 0, None) * inside).max(1), inside.any(0)


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


def _grids(run: PlannedRun, cfg: CfgNode) -> Any:
    """Return a function that gives the anchors of a network input of some size.

    The anchors of a cell are repeated in columns and rows, so that what they have in common with a
    box is best along each axis for itself. It returns, for each feature map, left and right ends
    (columns, A, 2) and upper and lower ends (rows, A, 2), in pixels.
    """
    backbone: Any = run.model.backbone
    shapes = backbone.output_shape()
    with muted("detectron2"):
        generator = build_anchor_generator(cfg, [shapes[n] for n in cfg.MODEL.RPN.IN_FEATURES])

    @lru_cache(maxsize=64)
    def grids(size: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
        cells = run.map_sizes(*size)
        anchors = generator([torch.empty(1, 1, *of_map) for of_map in cells])
        tables = [b.tensor.reshape(*c, -1, 4).numpy() for b, c in zip(anchors, cells, strict=True)]
        return [(t[0, :, :, 0::2], t[:, 0, :, 1::2]) for t in tables]

    return grids

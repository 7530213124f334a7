"""Recall of proposals: how much of the ground truth is covered, by IoU and number of proposals.

Measured, printed, drawn as in the paper's figure 4, and kept as JSON. Boxes are continuous XYXY.

Shape shorthand: C numbers of proposals, G objects, P proposals of an image, T IoU thresholds.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...atomic_files import optional_output, reading_json, write_json
from ...data.proposals.files import Proposals
from ..average_precision import FloatArray, IntArray, paired_iou
from ..ground_truth import GroundTruth

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

COUNTS = (50, 100, 300, 1000, 2000)  # proposals per image
# Finer than the metric's .50:.05:.95, for plots; hundredths divided, so that 0.55 is 0.55.
CURVE_IOUS = tuple(percent / 100.0 for percent in range(50, 101))
_METRIC_IOUS = tuple(percent / 100.0 for percent in range(50, 100, 5))
_TABLE_IOUS = (0.5, 0.6, 0.7, 0.8, 0.9)
_PAPER_COUNTS = (300, 1000, 2000)
_MOST_PANELS = 4


@dataclass(frozen=True)
class RecallCurves:
    """Recall of one set of proposals on one data set.

    Attributes:
        dataset: name of the data set.
        num_images: images, with or without objects.
        num_objects: objects to be found, at least 1.
        mean_proposals: proposals per image.
        ious: (T,) IoU thresholds, `CURVE_IOUS`.
        recall: numbers of proposals -> (T,) recall in [0, 1] of that many best-scored ones.
    """

    dataset: str
    num_images: int
    num_objects: int
    mean_proposals: float
    ious: list[float]
    recall: dict[int, list[float]]

    def at(self, count: int, iou: float) -> float:
        """Return the recall in [0, 1] of the best `count` proposals at one of `ious`."""
        return self.recall[count][self.ious.index(iou)]

    def average_recall(self, count: int) -> float:
        """Return the mean recall in [0, 1] over the IoU thresholds .50:.05:.95."""
        return float(np.mean([self.at(count, iou) for iou in _METRIC_IOUS]))

    def metrics(self) -> dict[str, float]:
        """Return ``{"AR@300": ..., "R@0.5@300": ..., "R@0.7@300": ...}`` per number; percent."""
        results = {}
        for count in self.recall:
            results[f"AR@{count}"] = 100 * self.average_recall(count)
            results |= {f"R@{iou}@{count}": 100 * self.at(count, iou) for iou in (0.5, 0.7)}
        return results

    def table(self) -> str:
        """Lay out a line per number of proposals."""
        lines = [
            f"{self.dataset}: proposal recall (%), one proposal per object, difficult and crowd "
            f"objects not counted; {self.num_images} images, {self.num_objects} objects, "
            f"{self.mean_proposals:.1f} proposals per image",
            "proposals       AR" + "".join(f"  {f'R@{iou}':>7}" for iou in _TABLE_IOUS),
        ]
        for count in self.recall:
            cells = [self.average_recall(count), *(self.at(count, iou) for iou in _TABLE_IOUS)]
            lines.append(f"{count:>9}" + "".join(f"  {100 * cell:>7.2f}" for cell in cells))
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file, whole or not at all."""
        write_json(path, asdict(self))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> RecallCurves:
        """Read what `save` wrote; a UserError names a missing, damaged or foreign file."""
        with reading_json(path, "recall curves") as content:
            content["recall"] = {int(count): row for count, row in content["recall"].items()}
            return RecallCurves(**content)


def measure_recall(
    proposals: Proposals, truth: GroundTruth, counts: Sequence[int], dataset_name: str
) -> RecallCurves | None:
    """Measure the recall of the best proposals of every image, for several `counts` of them.

    An image that has fewer contributes what it has. The proposals are of the images of `truth`, in
    the same order; its ignored objects are left out.

    Returns:
        The curves; None if there is no object to be found.
    """
    if proposals.ids != truth.image_ids:
        raise ValueError("proposals must be in the order of the ground truth")
    counts = sorted(set(counts))
    objects = np.flatnonzero(~truth.ignored)
    if len(objects) == 0:
        return None
    pair_iou, pair_gt, pair_rank, pair_box = _overlapping_pairs(proposals, truth, objects)
    recall = {}
    for count in counts:
        chosen = np.flatnonzero(pair_rank < count)
        covered = match_one_to_one(pair_iou[chosen], pair_gt[chosen], pair_box[chosen])
        above = np.sort(covered)
        # Objects whose IoU reaches the threshold.
        hits = len(above) - np.searchsorted(above, CURVE_IOUS, side="left")
        recall[count] = (hits / len(objects)).tolist()
    return RecallCurves(
        dataset=dataset_name,
        num_images=len(truth.image_ids),
        num_objects=len(objects),
        mean_proposals=float(np.mean([len(boxes) for boxes in proposals.boxes])),
        ious=list(CURVE_IOUS),
        recall=recall,
    )


def match_one_to_one(iou: FloatArray, gt: IntArray, box: IntArray) -> FloatArray:
    """Match objects and proposals greedily: the pair of highest IoU first, each used once.

    Equal IoUs come in the order of py-faster-rcnn's ``evaluate_recall``: first object, then first
    proposal. A pair that comes first for both of its members is final whatever the others are, so
    all such pairs are taken at once and their members removed, until no pair is left.

    Args:
        iou: (K,) IoU of pairs. Pairs that are not listed are never matched.
        gt: (K,) object of each pair.
        box: (K,) proposal of each pair, numbered over all images, best first within an image.

    Returns:
        (M,) IoUs of the matched pairs, in no particular order.
    """
    order = np.lexsort((box, gt, -iou))
    iou, gt, box = iou[order], gt[order], box[order]
    matched = [np.zeros(0)]
    while len(iou):
        first_of_gt, first_of_box = (np.unique(n, return_index=True)[1] for n in (gt, box))
        first = np.intersect1d(first_of_gt, first_of_box, assume_unique=True)
        matched.append(iou[first])
        free = ~(np.isin(gt, gt[first]) | np.isin(box, box[first]))
        iou, gt, box = iou[free], gt[free], box[free]
    return np.concatenate(matched)


def _overlapping_pairs(
    proposals: Proposals, truth: GroundTruth, objects: npt.NDArray[np.intp]
) -> tuple[FloatArray, IntArray, IntArray, IntArray]:
    """Find pairs of a proposal and one of the `objects` of its image whose IoU is on the curves.

    Returns:
        IoU, index of the object, rank of the proposal in its image (0 is best) and its number over
        all images; (K,) each.
    """
    images = truth.images[objects]
    by_image = objects[np.argsort(images, kind="stable")]
    starts = np.searchsorted(truth.images[by_image], np.arange(len(truth.image_ids) + 1))
    none = np.zeros(0, dtype=np.int64)
    parts: list[tuple[FloatArray, IntArray, IntArray, IntArray]] = [(np.zeros(0), none, none, none)]
    offset = 0
    for image, (boxes, logits) in enumerate(zip(proposals.boxes, proposals.logits, strict=True)):
        gt = by_image[starts[image] : starts[image + 1]]
        if len(gt) and len(boxes):
            best_first = np.argsort(-logits, kind="stable")
            ranked = boxes[best_first].astype(np.float64)
            rank = np.repeat(np.arange(len(ranked)), len(gt))
            index = np.tile(gt, len(ranked))
            iou = paired_iou(ranked[rank], truth.boxes[index])
            close = np.flatnonzero(iou >= CURVE_IOUS[0])
            parts.append((iou[close], index[close], rank[close], rank[close] + offset))
        offset += len(boxes)
    iou, index, rank, number = (np.concatenate(column) for column in zip(*parts, strict=True))
    return iou, index, rank, number


def report_recall(
    proposals: Proposals,
    truth: GroundTruth,
    dataset_name: str,
    counts: Sequence[int] = COUNTS,
    stem: Path | None = None,
) -> RecallCurves | None:
    """Do what `measure_recall` does, and log the table, or a warning that there are no objects.

    If a `stem` is given, the curves are written to ``<stem>.json`` and drawn in ``<stem>.png``.
    """
    curves = measure_recall(proposals, truth, counts, dataset_name)
    if curves is None:
        logger.warning(
            "%s: no ground truth (difficult objects not counted) in %d images: recall is not "
            "defined; nothing is reported",
            dataset_name, len(truth.image_ids),
        )  # fmt: skip
        return None
    logger.info("%s", curves.table())
    if stem is not None:
        with optional_output(f"{stem}.json"):
            curves.save(f"{stem}.json")
        with optional_output(f"{stem}.png"):
            draw_recall({dataset_name: curves}).savefig(f"{stem}.png", dpi=150)
        logger.info("%s: recall curves: %s.json and .png", dataset_name, stem)
    return curves


def draw_recall(curves: Mapping[str, RecallCurves]) -> Figure:
    """Draw recall over IoU .5 to 1 at 300, 1000 and 2000 proposals, a panel each.

    Numbers that no curve has are left out; if it has none of the three, its own are drawn. The keys
    (such as "RPN", "SS") are for the legend.
    """
    from matplotlib.figure import Figure  # here: training evaluates, but need not draw

    datasets = list(dict.fromkeys(item.dataset for item in curves.values()))
    available = sorted({count for item in curves.values() for count in item.recall})
    counts = [count for count in _PAPER_COUNTS if count in available] or available[:_MOST_PANELS]
    figure = Figure(figsize=(1 + 3.6 * max(len(counts), 1), 3.8), layout="constrained")
    panels = figure.subplots(1, max(len(counts), 1), sharey=True, squeeze=False)[0]
    for panel, count in zip(panels, counts, strict=False):
        for index, (label, item) in enumerate(curves.items()):
            if count in item.recall:
                # By position: a label keeps its colour where another one is absent.
                panel.plot(item.ious, item.recall[count], label=label, color=f"C{index}", lw=1.8)
        panel.set(title=f"{count} proposals", xlabel="IoU", xlim=(0.5, 1.0), ylim=(0.0, 1.0))
        panel.grid(alpha=0.35)
        if list(curves) != datasets:  # the title says it already
            panel.legend(loc="best", frameon=False)
    panels[0].set_ylabel("recall")
    figure.suptitle(", ".join(datasets))
    return figure

"""What the VOC evaluation says and writes: the table, the server's files."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..atomic_files import write_text
from .average_precision import Metric
from .ground_truth import GroundTruth
from .voc_results import ClassResult, Detections


def format_report(
    title: str,
    class_names: Sequence[str],
    per_class: Sequence[ClassResult],
    metric: Metric,
    results: Mapping[str, float],
) -> str:
    """Lays out the table: the settings, one line per class, the means.

    Args:
        title: the settings line.
        class_names: names of the classes.
        per_class: their results, in the same order.
        metric: the headline.
        results: the means, in percent, as `VOCEvaluator.evaluate` returns them.

    Returns:
        Several lines of text.
    """
    width = max(len("class"), *(len(name) for name in class_names))
    lines = [title]
    lines.append(f"{'class':<{width}}  objects  detections  AP50 11-point  AP50 area")
    for name, result in zip(class_names, per_class, strict=True):
        cells = ["-", "-"]
        if result.aps is not None:
            cells = [f"{100 * result.aps[key][0]:.2f}" for key in ("11point", "area")]
        lines.append(
            f"{name:<{width}}  {result.num_objects:>7}  {result.num_detections:>10}  "
            f"{cells[0]:>13}  {cells[1]:>9}"
        )
    objects = sum(result.num_objects for result in per_class)
    detections = sum(result.num_detections for result in per_class)
    lines.append(
        f"{'mean':<{width}}  {objects:>7}  {detections:>10}  "
        f"{results['AP50-11point']:>13.2f}  {results['AP50-area']:>9.2f}"
    )
    absent = sum(result.aps is None for result in per_class)
    if absent:
        lines.append(f"{absent} classes have no objects here ('-') and are left out of the means")
    lines.append(
        f"Mean AP = {results['AP50'] / 100:.4f} ({metric}, IoU 0.5); "
        f"AP75 {results['AP75']:.2f}, AP at .50:.95 {results['AP']:.2f}"
    )
    return "\n".join(lines)


def write_submission(
    output_dir: str | os.PathLike[str],
    split: str,
    class_names: Sequence[str],
    truth: GroundTruth,
    detections: Detections,
) -> list[Path]:
    """Writes ``comp4_det_<split>_<class>.txt`` files as the VOC server takes them.

    One line per detection: image id, score, and the box with 1-based inclusive coordinates. A file
    appears complete or not at all.

    Args:
        output_dir: folder, created if need be.
        split: name of the image set.
        class_names: one file each; a class without detections gets an empty one.
        truth: for the image ids.
        detections: of all classes.

    Returns:
        The files.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, class_name in enumerate(class_names):
        mine = np.flatnonzero(detections.classes == index)
        lines = []
        for position in mine:
            x1, y1, x2, y2 = detections.boxes[position]
            lines.append(
                f"{truth.image_ids[detections.images[position]]} "
                f"{detections.scores[position]:.8f} "
                f"{x1 + 1:.3f} {y1 + 1:.3f} {x2:.3f} {y2:.3f}\n"
            )
        path = folder / f"comp4_det_{split}_{class_name.replace(os.sep, '_')}.txt"
        write_text(path, "".join(lines))
        paths.append(path)
    return paths

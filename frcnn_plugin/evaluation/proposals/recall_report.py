"""What the recall evaluation says and draws: the table, and curves as in the paper's figure 4."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ...data.proposals.files import Proposals
from ..ground_truth import GroundTruth
from .recall import COUNTS, RecallCurves, measure_recall

logger = logging.getLogger(__name__)

_PAPER_COUNTS = (300, 1000, 2000)
_MOST_PANELS = 4


def report_recall(
    proposals: Proposals,
    truth: GroundTruth,
    dataset_name: str,
    counts: Sequence[int] = COUNTS,
    stem: Path | None = None,
) -> RecallCurves | None:
    """Measures recall and prints it.

    Args:
        proposals: of the images of `truth`, in the same order.
        truth: the objects of the data set.
        dataset_name: its name.
        counts: numbers of proposals per image to measure.
        stem: if given, the curves are written to ``<stem>.json`` and drawn in ``<stem>.png``.

    Returns:
        The curves; None, with a warning, if the set has no objects that count.
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
        curves.save(f"{stem}.json")
        plot = plot_recall({dataset_name: curves}, f"{stem}.png")
        logger.info("%s: recall curves written to %s.json and %s", dataset_name, stem, plot)
    return curves


def plot_recall(curves: Mapping[str, RecallCurves], path: str | os.PathLike[str]) -> Path:
    """Draws recall over IoU .5 to 1 at 300, 1000 and 2000 proposals.

    Numbers that no curve has are left out; if it has none of the three, its own are drawn.

    Args:
        curves: what the legend calls them (such as "RPN", "SS") -> the curves.
        path: picture to write; its suffix says which format.

    Returns:
        The path.
    """
    figure = draw_recall(curves)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def draw_recall(curves: Mapping[str, RecallCurves], title: bool = True) -> Figure:
    """As `plot_recall`, without writing it.

    Args:
        curves: what the legend calls them -> the curves.
        title: names the data set above.
    """
    datasets = list(dict.fromkeys(item.dataset for item in curves.values()))
    available = sorted({count for item in curves.values() for count in item.recall})
    counts = [count for count in _PAPER_COUNTS if count in available] or available[:_MOST_PANELS]
    figure = Figure(figsize=(1 + 3.6 * max(len(counts), 1), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
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
    if title:
        figure.suptitle(", ".join(datasets))
    return figure

#!/usr/bin/env python
"""Draw docs/four_step.png: what trains in each of the four stages, and what is handed on.

python docs/four_step_figure.py [PNG]
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from frcnn_plugin.four_step import STAGES

# What happens to a part in a stage: colours that are apart in grey too, and the words say it again.
TRAINS, FROZEN, IDLE = "#f6a04d", "#a9c9e8", "#ffffff"
INK = "#222222"
FILES = "#fff3b0"
RESULT = "#cfe8cf"

COLUMN = 3.6  # distance between stages
WIDTH, HEIGHT = 2.75, 1.0
LEFT = 2.0  # left edge of stage 1
# Lower edges of the rows.
BACKBONE, RPN, PROPOSALS, ROI, CHECKPOINT = 6.5, 5.0, 3.45, 1.7, 0.0


def box(
    ax: Axes, x: float, y: float, text: str, colour: str, *, w: float = WIDTH, h: float = HEIGHT,
    dashed: bool = False,
) -> None:  # fmt: skip
    """Draw a rounded box with its lower left corner at (x, y)."""
    ax.add_patch(
        FancyBboxPatch(
            (x, y), w, h, boxstyle="round,pad=0,rounding_size=0.12", facecolor=colour,
            edgecolor="#999999" if dashed else INK, linestyle="--" if dashed else "-",
            linewidth=1.3,
        )
    )  # fmt: skip
    ink = "#777777" if dashed else INK
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=12, color=ink)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0) -> None:
    """Draw an arrow; ``bend`` curves it."""
    style = {
        "arrowstyle": "-|>", "color": INK, "linewidth": 1.6, "mutation_scale": 15,
        "shrinkA": 0, "shrinkB": 1, "connectionstyle": f"arc3,rad={bend}",
    }  # fmt: skip
    ax.annotate("", xy=end, xytext=start, arrowprops=style)


def left(stage: int) -> float:
    """Left edge of a stage's column."""
    return LEFT + COLUMN * (stage - 1)


def between(ax: Axes, stage: int, y: float) -> None:
    """Draw the arrow of weights handed from a stage to the next, in the row at ``y``."""
    arrow(ax, (left(stage) + WIDTH, y + HEIGHT / 2), (left(stage + 1), y + HEIGHT / 2))


def draw(ax: Axes) -> None:
    """Draw everything."""
    rows = (
        (BACKBONE, "backbone"), (RPN, "RPN head"), (PROPOSALS, "proposals"), (ROI, "RoI head"),
        (CHECKPOINT, "checkpoint,\nmeasured"),
    )  # fmt: skip
    for y, name in rows:
        ax.text(0, y + HEIGHT / 2, name, fontsize=14, weight="bold", va="center")
    for stage in STAGES:
        x = left(stage.number)
        title = f"stage {stage.number}: {stage.name}"
        ax.text(x + WIDTH / 2, 9.65, title, ha="center", fontsize=15, weight="bold")
        text = f"{stage.checkpoint}.pth\n{'AP' if stage.proposals_of else 'recall'}"
        box(ax, x, CHECKPOINT, text, RESULT if stage.completes else FILES)

    # Initial weights: used twice.
    box(ax, left(1), 8.4, "initial weights (ImageNet)", FILES, w=COLUMN + WIDTH, h=0.8)
    for number in (1, 2):
        middle = left(number) + WIDTH / 2
        arrow(ax, (middle, 8.4), (middle, BACKBONE + HEIGHT))

    box(ax, left(1), BACKBONE, "trains\n(VGG16: conv3_1 on)", TRAINS)
    box(ax, left(2), BACKBONE, "starts again, trains\n(VGG16: conv3_1 on)", TRAINS)
    box(ax, left(3), BACKBONE, "frozen", FROZEN)
    box(ax, left(4), BACKBONE, "frozen", FROZEN)
    between(ax, 2, BACKBONE)
    between(ax, 3, BACKBONE)

    box(ax, left(1), RPN, "new, trains", TRAINS)
    box(ax, left(2), RPN, "not used", IDLE, dashed=True)
    box(ax, left(3), RPN, "new again, trains", TRAINS)
    box(ax, left(4), RPN, "carried along", FROZEN)
    between(ax, 3, RPN)

    box(ax, left(1), ROI, "not used", IDLE, dashed=True)
    box(ax, left(2), ROI, "fc6, fc7: ImageNet,\nlast layers new; trains", TRAINS)
    box(ax, left(3), ROI, "carried along", FROZEN)
    box(ax, left(4), ROI, "trains on (last layers:\ncontinue or restart)", TRAINS)
    between(ax, 2, ROI)
    between(ax, 3, ROI)

    # Proposals: the RPN of a stage writes them, the detector of the next one reads them.
    for number in (1, 3):
        x = left(number)
        box(ax, x, PROPOSALS, f"proposals/stage{number}/", FILES, h=0.8)
        middle = x + WIDTH / 2
        arrow(ax, (middle, RPN), (middle, PROPOSALS + 0.8))
        ax.text(middle + 0.12, RPN - 0.36, "writes", fontsize=12, va="center")
        start, end = (x + WIDTH, PROPOSALS + 0.4), (left(number + 1) + WIDTH / 2, ROI + HEIGHT)
        arrow(ax, start, end, bend=-0.3)
        ax.text(end[0] + 0.12, end[1] + 0.6, "reads", fontsize=12, va="center")

    x = left(4) + WIDTH + 0.8
    text = "detector:\none backbone,\ntwo heads\n\nmodel_final.pth"
    box(ax, x, ROI, text, RESULT, w=2.1, h=BACKBONE + HEIGHT - ROI)
    for y in (BACKBONE, RPN, ROI):
        arrow(ax, (left(4) + WIDTH, y + HEIGHT / 2), (x, y + HEIGHT / 2))

    x = left(1)
    legend = (
        ("trains", TRAINS), ("does not train", FROZEN), ("file", FILES), ("the result", RESULT),
    )  # fmt: skip
    for text, colour in legend:
        box(ax, x, -1.05, "", colour, w=0.5, h=0.45)
        ax.text(x + 0.65, -0.83, text, fontsize=12, va="center")
        x += 1.5 + 0.13 * len(text)


def main(output: str) -> None:
    """Write the picture."""
    figure, ax = plt.subplots(figsize=(15.2, 8.6), dpi=100)
    draw(ax)
    ax.set_xlim(-0.1, left(4) + WIDTH + 3.0)
    ax.set_ylim(-1.2, 10.2)
    ax.set_aspect("auto")
    ax.axis("off")
    figure.tight_layout(pad=0.4)
    figure.savefig(output, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).with_name("four_step.png")))

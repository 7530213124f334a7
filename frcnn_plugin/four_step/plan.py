"""The plan of a four-step run, printed before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from tabulate import tabulate
from torch import nn

from .stages import Stage

_COLUMNS = (
    "step", "trains", "parameters", "frozen", "starts from", "iterations x images",
    "learning rate", "proposals", "checkpoint",
)  # fmt: skip
_WHAT = {1: "RPN", 2: "detector", 3: "RPN", 4: "detector"}


def format_plan(cfg: CfgNode, rows: Sequence[dict[str, str]]) -> str:
    """The plan as a table of several lines.

    Args:
        cfg: config.
        rows: of :func:`plan_rows`.
    """
    total = cfg.SOLVER.MAX_ITER
    title = f"four-step training, {total:,} iterations in all, in {cfg.OUTPUT_DIR}"
    widths = [None, 22, None, None, 26, None, 24, 24, None]
    table = tabulate([list(row.values()) for row in rows], _COLUMNS, maxcolwidths=widths)
    paths = [p for p in (cfg.MODEL.WEIGHTS, cfg.FOUR_STEP.INITIAL_WEIGHTS) if p]
    return "\n".join([title, table, *(f"{Path(p).name}: {p}" for p in paths)])


def plan_rows(cfg: CfgNode, stages: Sequence[Stage], model: nn.Module) -> list[dict[str, str]]:
    """What each step trains, from which weights, how long, at which rates, on which proposals.

    Args:
        cfg: config.
        stages: steps of the run.
        model: unwrapped, with ``requires_grad`` as the config's freezing set it.

    Returns:
        a row per step, column -> text.
    """
    rows = []
    for stage in stages:
        trained = sum(
            p.numel()
            for n, p in model.named_parameters()
            if p.requires_grad and n.split(".", 1)[0] in stage.trains
        )
        frozen = sum(p.numel() for p in model.parameters()) - trained
        rates = [cfg.SOLVER.BASE_LR * cfg.SOLVER.GAMMA**k for k in range(len(stage.drops) + 1)]
        ends = [*stage.drops, stage.iters]
        cells = [
            f"{stage.number} {_WHAT[stage.number]}",
            " + ".join(_parts(stage)),
            f"{trained:,}",
            f"{frozen:,}",
            _start(cfg, stage),
            f"{stage.iters:,} x {stage.images}",
            ", ".join(f"{r:g} to {e:,}" for r, e in zip(rates, ends, strict=True)),
            _proposals(stage),
            f"{stage.checkpoint}.pth",
        ]
        rows.append(dict(zip(_COLUMNS, cells, strict=True)))
    return rows


def _parts(stage: Stage) -> list[str]:
    names = {"backbone": "backbone", "proposal_generator": "RPN head", "roi_heads": "RoI head"}
    return [names[n] for n in stage.trains]


def _start(cfg: CfgNode, stage: Stage) -> str:
    # File names; whole paths would be torn over several lines.
    initial = Path(cfg.MODEL.WEIGHTS).name or "random weights"
    if stage.number == 1:
        return initial
    if stage.number == 2:
        return f"{Path(cfg.FOUR_STEP.INITIAL_WEIGHTS).name or initial} again"
    if stage.number == 3:
        return "step 2; RPN head new"
    new = cfg.FOUR_STEP.PREDICTOR_START == "restart"
    return "step 2; " + ("cls_score, bbox_pred new" if new else "all of the head")


def _proposals(stage: Stage) -> str:
    if stage.phase == "rpn":
        return f"writes proposals/stage{stage.number}"
    return f"reads proposals/stage{stage.number - 1}"

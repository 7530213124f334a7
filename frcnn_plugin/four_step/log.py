"""What four-step training logs: the plan before it starts, then the stage in every line."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from .stages import PREDICTOR, RPN_HEAD, STAGES, ScheduledStage

_LOGGERS = ("detectron2", "fvcore", "frcnn_plugin")


class StageLog(logging.Filter):
    """Put "[stage 2/4]" in front of what the loggers of Detectron2 and of the plugin print.

    It is a filter of their handlers, the only way to change lines that Detectron2's hooks write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stage = 0  # none: lines stay as they are
        self._handlers: list[logging.Handler] = []

    def start(self) -> None:
        """Join all present handlers, which loggers may share."""
        handlers = [h for name in _LOGGERS for h in logging.getLogger(name).handlers]
        self._handlers = list(dict.fromkeys(handlers))
        for handler in self._handlers:
            handler.addFilter(self)

    def stop(self) -> None:
        """Leave the handlers."""
        for handler in self._handlers:
            handler.removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the line; drop none."""
        # Several handlers see the same record.
        if self.stage and not str(record.msg).startswith("[stage "):
            record.msg = f"[stage {self.stage}/{len(STAGES)}] {record.msg}"
        return True


def put_results(storage: Any, number: int, results: Mapping[str, Any]) -> None:
    """Write a stage's results, per test set and task, to the trainer's ``EventStorage``."""
    for dataset, metrics in results.items():
        # As in Detectron2, the key names the set only if there are several.
        prefix = f"stage{number}/" + (f"{dataset}/" if len(results) > 1 else "")
        for task, values in metrics.items():
            for key, value in values.items():
                storage.put_scalar(f"{prefix}{task}/{key}", value, smoothing_hint=False)


_PARTS = {"backbone": "backbone", "proposal_generator": "RPN head", "roi_heads": "RoI head"}
_NEW = {RPN_HEAD: "RPN head new", PREDICTOR: "cls_score, bbox_pred new", "": "all of the head"}


def format_plan(cfg: CfgNode, rows: Sequence[dict[str, str]]) -> str:
    """Format the rows of :func:`plan_rows` as a table of several lines."""
    total = cfg.SOLVER.MAX_ITER
    title = f"four-step training, {total:,} iterations in all, in {cfg.OUTPUT_DIR}"
    widths = [None, 22, None, None, 26, None, 24, 24, None]
    align = ["right" if name in ("parameters", "frozen") else "left" for name in rows[0]]
    cells = [list(row.values()) for row in rows]
    table = tabulate(cells, list(rows[0]), maxcolwidths=widths, colalign=align)
    paths = [p for p in (cfg.MODEL.WEIGHTS, cfg.FOUR_STEP.INITIAL_WEIGHTS) if p]
    lines = [title, table, *(f"{Path(p).name}: {p}" for p in paths)]
    if (world := comm.get_world_size()) > 1:
        node, rate = cfg.FOUR_STEP, cfg.SOLVER.BASE_LR
        iters, drops = (
            str([_divided(n, world) for n in values]).replace(" ", "")
            for values in (node.ITERS, node.DROPS)
        )
        lines.append(
            f"{world} processes: a batch is {world} times as large as these numbers, and the "
            f"learning rate {rate:g} is not changed for it. If it is meant for one process, the "
            f"same training in proportion is SOLVER.BASE_LR {rate * world:g} "
            f"FOUR_STEP.ITERS {iters} FOUR_STEP.DROPS {drops}"
        )
    return "\n".join(lines)


def _divided(number: Any, by: int) -> Any:
    if isinstance(number, int):
        return max(1, number // by)
    return [_divided(n, by) for n in number]


def plan_rows(
    cfg: CfgNode, stages: Sequence[ScheduledStage], model: nn.Module
) -> list[dict[str, str]]:
    """Say what each stage trains, from which weights, how long, at which rates, on what proposals.

    Args:
        cfg: config of the run.
        stages: the run's stages.
        model: unwrapped, with ``requires_grad`` as the config's freezing set it.

    Returns:
        a row per stage, column -> text.
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
        row = {
            "stage": stage.title,
            "trains": " + ".join(_PARTS[name] for name in stage.trains),
            "parameters": f"{trained:,}",
            "frozen": f"{frozen:,}",
            "starts from": _start(cfg, stage),
            "iterations x images": f"{stage.iters:,} x {stage.images}",
            "learning rate": ", ".join(f"{r:g} to {e:,}" for r, e in zip(rates, ends, strict=True)),
            "proposals": f"{'reads' if stage.proposals_of else 'writes'} {stage.proposals}",
            "checkpoint": f"{stage.checkpoint}.pth",
        }
        rows.append(row)
    return rows


def _start(cfg: CfgNode, stage: ScheduledStage) -> str:
    # File names, as the table would break whole paths over several lines.
    initial = Path(cfg.MODEL.WEIGHTS).name or "random weights"
    if stage.restores:
        return f"{Path(cfg.FOUR_STEP.INITIAL_WEIGHTS).name or initial} again"
    if stage.weights_of:
        return f"stage {stage.weights_of}; {_NEW[stage.redraws]}"
    return initial

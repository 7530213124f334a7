"""Folders as runs leave them, written without training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from frcnn_plugin import get_config_file
from frcnn_plugin.config import plugin_cfg
from frcnn_plugin.evaluation.proposals.recall import CURVE_IOUS, RecallCurves
from frcnn_plugin.evaluation.record import BoxRecord, ClassRecord, EvaluationRecord, ImageRecord
from frcnn_plugin.four_step import apply_four_step
from frcnn_plugin.report.recorder import RunRecord, Session

DEMO = get_config_file("demo/vgg16_shapes.yaml")
JOINT = get_config_file("demo/vgg16_shapes_joint.yaml")
# Names that would break a page that does not escape them, or a plot that reads formulas.
BAD_NAME = '<script>alert(1)</script> $x^$ & "猫"'
FOUR_STEP = ["FOUR_STEP.ITERS", [100, 200, 100, 200], "FOUR_STEP.DROPS", [[80], [160], [80], [160]]]
RESULTS = {"AP": 41.25, "AP50": 71.5, "AP75": 43.0, "AP50-11point": 71.5, "AP50-area": 73.25}


def config_text(file: str, *opts: Any) -> str:
    cfg = plugin_cfg()
    cfg.merge_from_file(file)
    cfg.merge_from_list(list(opts))
    apply_four_step(cfg)
    text: str = cfg.dump()
    return text


def training_lines(done: int, detector: Callable[[int], bool]) -> list[str]:
    """A line every 20 iterations; the loss falls by 0.01 with each."""
    lines = []
    for i in range(19, done, 20):
        names = ("loss_cls", "loss_box_reg") if detector(i) else ("loss_rpn_cls", "loss_rpn_loc")
        loss = round(2.0 - i / 1000, 4)
        row = {
            "iteration": i, "lr": 0.01, "time": 0.25, "data_time": 0.05,
            "total_loss": loss, names[0]: loss / 2, names[1]: loss / 2,
        }  # fmt: skip
        lines.append(json.dumps(row))
    return lines


def recall_curves(height: float) -> RecallCurves:
    rows = {count: [height * (1 - iou) * 2 for iou in CURVE_IOUS] for count in (100, 300)}
    return RecallCurves("shapes_test", 40, 90, 300.0, list(CURVE_IOUS), rows)


def evaluation(folder: Path) -> EvaluationRecord:
    picture = folder / "images" / "000001.jpg"
    picture.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((120, 160, 3), 200, dtype=np.uint8)).save(picture)
    boxes = [
        BoxRecord([10, 20, 60, 80], "circle", "found"),
        BoxRecord([90, 20, 150, 80], BAD_NAME, "missed"),
        BoxRecord([0, 0, 20, 20], "circle", "ignored"),
        BoxRecord([11, 21, 61, 81], "circle", "right", 0.91),
        BoxRecord([70, 70, 100, 110], "square", "wrong", 0.62),
    ]
    gone = ImageRecord("000002", str(folder / "gone.jpg"), boxes[1:2])
    return EvaluationRecord(
        dataset="shapes_test",
        metric="11point",
        match=">=",
        num_images=40,
        results={**RESULTS, "AP50/circle": 90.125},
        classes=[
            ClassRecord("circle", 50, 80, {"AP50-11point": 90.125, "AP50-area": 92.5}),
            ClassRecord(BAD_NAME, 40, 9, {"AP50-11point": 52.875, "AP50-area": 54.0}),
            ClassRecord("absent", 0, 3, {}),
        ],
        best=[ImageRecord("000001", str(picture), boxes)],
        worst=[gone],
    )  # fmt: skip


def write_four_step(folder: Path, done: int = 600) -> Path:
    """A four-step run that was killed after `done` iterations, or that finished (600)."""
    folder.mkdir(parents=True, exist_ok=True)
    text = config_text(DEMO, *FOUR_STEP, "SOLVER.BASE_LR", 0.005, "OUTPUT_DIR", str(folder))
    (folder / "config.yaml").write_text(text)
    lines = training_lines(done, lambda i: 100 <= i < 300 or i >= 400)
    ends = {"1": 30.0, "2": 90.0, "3": 120.0, "4": 180.0}
    number = sum(done >= end for end in (100, 300, 400, 600))
    plan = [
        {
            "stage": f"{n} {'RPN' if n % 2 else 'detector'}", "trains": "backbone",
            "parameters": "1,000", "frozen": "0", "starts from": "random weights",
            "iterations x images": "100 x 1", "learning rate": "0.01 to 100",
            "proposals": "writes proposals/stage1", "checkpoint": f"stage{n}_final.pth",
        }
        for n in (1, 2, 3, 4)
    ]  # fmt: skip
    finished = done >= 600
    session = Session(
        started="2026-03-01 10:20 UTC",
        command=["tools/train_net.py", "--config-file", DEMO, "SOLVER.BASE_LR", "0.005"],
        first=0,
        environment={"PyTorch": "2.9.0", "device": "cpu"},
        ends=dict(list(ends.items())[:number]),
        ended=200.0 if finished else None,
        complete=finished,
    )
    RunRecord(text, plan, [session]).save(folder)
    for stage, iteration in ((1, 100), (3, 400)):
        if done > iteration:
            curves = recall_curves(0.9 + stage / 100)
            curves.save(folder / f"proposals/stage{stage}/shapes_test.recall.json")
            values = {f"stage{stage}/proposals/{k}": v for k, v in curves.metrics().items()}
            lines.append(json.dumps({**values, "iteration": iteration}))
    if done > 300:
        values = {f"stage2/bbox/{k}": v - 10 for k, v in RESULTS.items()}
        lines.append(json.dumps({**values, "iteration": 300}))
    if finished:
        values = {f"bbox/{k}": v for k, v in RESULTS.items()}
        lines.append(json.dumps({**values, "iteration": 600}))
        evaluation(folder).save(folder / "inference/shapes_test/evaluation.json")
    (folder / "metrics.json").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished four-step run, only to be read."""
    return write_four_step(tmp_path_factory.mktemp("report") / "run & <more>")

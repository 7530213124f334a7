"""The table of the four stages, and the stages of a run."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from detectron2.config import CfgNode, get_cfg

from frcnn_plugin import add_frcnn_config, get_config_file
from frcnn_plugin.four_step import STAGES, build_stages

FILE = "faster_rcnn_vgg16_voc.yaml"


def load(name: str = FILE, *opts: Any) -> CfgNode:
    cfg = get_cfg()
    add_frcnn_config(cfg)
    cfg.merge_from_file(get_config_file(name))
    cfg.merge_from_list(list(opts))
    return cfg


def test_the_papers_schedule() -> None:
    stages = build_stages(load())
    assert [(s.number, s.phase, s.start, s.end, s.drops, s.images) for s in stages] == [
        (1, "rpn", 0, 80000, (60000,), 1),
        (2, "fast_rcnn", 80000, 120000, (30000,), 2),
        (3, "rpn", 120000, 200000, (60000,), 1),
        (4, "fast_rcnn", 200000, 240000, (30000,), 2),
    ]
    assert [s.trains for s in stages] == [
        ("backbone", "proposal_generator"),
        ("backbone", "roi_heads"),
        ("proposal_generator",),
        ("roi_heads",),
    ]


def test_first_and_last_stage() -> None:
    (second, third) = build_stages(load(FILE, "FOUR_STEP.START_AT", 2,
                                        "FOUR_STEP.STOP_AFTER", 3))  # fmt: skip
    assert (second.number, second.start, third.number, third.start) == (2, 0, 3, 40000)


def test_table() -> None:
    assert [s.title for s in STAGES] == ["1 RPN", "2 detector", "3 RPN", "4 detector"]
    assert [s.checkpoint for s in STAGES] == [f"stage{k}_final" for k in (1, 2, 3, 4)]
    assert [s.proposals for s in STAGES] == [f"proposals/stage{k}" for k in (1, 1, 3, 3)]
    assert [s.previous for s in STAGES] == [None, *STAGES[:3]]
    assert [s.completes for s in STAGES] == [False, False, False, True]
    # Only stage 2 goes back to ImageNet, and only later stages go on from it.
    assert [(s.weights_of, s.restores) for s in STAGES] == [
        (0, False), (0, True), (2, False), (2, False)
    ]  # fmt: skip


def test_what_is_drawn_anew() -> None:
    head, predictor = "proposal_generator.rpn_head", "roi_heads.box_predictor"
    for value, last in (("continue", ""), ("restart", predictor)):
        stages = build_stages(load(FILE, "FOUR_STEP.PREDICTOR_START", value))
        assert [s.redraws for s in stages] == ["", "", head, last]


def test_importing_the_hook_loads_neither_matplotlib_nor_the_trainer() -> None:
    code = (
        "import frcnn_plugin.four_step, sys;"
        "assert 'matplotlib' not in sys.modules and 'frcnn_plugin.engine' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr

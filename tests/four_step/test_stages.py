"""The four stages and the schedule of a run.

Literals: MATLAB's solver files, example E31 (docs/worked_examples.md).
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg

from frcnn_plugin import add_frcnn_config, get_config_file
from frcnn_plugin.errors import UserError
from frcnn_plugin.four_step import (
    STAGES,
    apply_four_step,
    build_four_step_scheduler,
    build_stages,
)

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


def rates(cfg: CfgNode, iterations: list[int]) -> list[float]:
    """The learning rate at some iterations."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_four_step_scheduler(cfg, optimizer)
    return [cfg.SOLVER.BASE_LR * scheduler._multiplier(i / scheduler._max_iter) for i in iterations]


def test_rate_drops_and_starts_again() -> None:
    at = [0, 59999, 60000, 79999, 80000, 109999, 110000, 120000, 179999, 180000, 200000, 230000]
    expected = [1, 1, 0.1, 0.1, 1, 1, 0.1, 1, 1, 0.1, 1, 0.1]
    assert rates(load(), at) == pytest.approx([1e-3 * x for x in expected])


def test_two_drops_e31() -> None:
    """40k100k: it 39999 1e-3, 40000 1e-4, 80000 1e-5."""
    cfg = load(
        "faster_rcnn_vgg16_voc.yaml",
        *("FOUR_STEP.ITERS", [80000, 100000, 80000, 100000]),
        *("FOUR_STEP.DROPS", [[60000], [40000, 80000], [60000], [40000, 80000]]),
    )
    assert rates(cfg, [80000 + 39999, 80000 + 40000, 80000 + 80000]) == pytest.approx(
        [1e-3, 1e-4, 1e-5]
    )


def test_detectron2_s_keys_follow() -> None:
    cfg = load()
    apply_four_step(cfg)
    assert cfg.SOLVER.MAX_ITER == 240000
    assert cfg.SOLVER.STEPS == (60000, 80000, 110000, 120000, 180000, 200000, 230000)


def test_nothing_changes_when_it_is_off() -> None:
    cfg = load("faster_rcnn_vgg16_voc_joint.yaml")
    before = cfg.dump()
    apply_four_step(cfg)
    assert cfg.dump() == before


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["FOUR_STEP.ITERS", [1, 2, 3]], r"FOUR_STEP.ITERS is \[1, 2, 3\]: it needs four entries"),
        (["FOUR_STEP.DROPS", [[80000], [1], [1], [1]]], r"stage 1: FOUR_STEP.DROPS \[80000\]"),
        (["FOUR_STEP.ITERS", [8, 4, 8, 1]], r'FOUR_STEP.DROPS "\[\[6\], \[3\], \[6\], \[\]\]"$'),
        (["FOUR_STEP.DROPS", [[9, 5], [1], [1], [1]]], r"must be growing"),
        (["FOUR_STEP.ITERS", [0, 9, 9, 9]], r"stage 1: .*leave stages out with FOUR_STEP.START_AT"),
        (["FOUR_STEP.START_AT", 3, "FOUR_STEP.STOP_AFTER", 2], r"growing numbers from 1 to 4"),
        (["FOUR_STEP.STOP_AFTER", 5], r"growing numbers from 1 to 4"),
        (["FOUR_STEP.PREDICTOR_START", "new"], r"'new': use one of continue, restart"),
        (["FOUR_STEP.MIRRORED_PROPOSALS", "no"], r"'no': use one of mirror, recompute"),
        (["FOUR_STEP.TARGET_STATISTICS", "no"], r"'no': use one of per_class, fixed"),
        (
            ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"],
            r"needs MODEL.META_ARCHITECTURE PaperRCNN",
        ),
        (["INPUT.MIN_SIZE_TRAIN", (480, 600)], r"must be a single size"),
        (
            ["MODEL.PAPER_RCNN.FREEZE", ["proposal_generator"]],
            r"names 'proposal_generator', but stage 3 draws proposal_generator.rpn_head anew",
        ),
        (["MODEL.PAPER_RCNN.FREEZE", ["proposal_generator.rpn_head.rpn_conv"]], r"stage 3 draws"),
        (
            [
                *("MODEL.PAPER_RCNN.FREEZE", ["roi_heads.box_predictor.cls_score"]),
                *("FOUR_STEP.PREDICTOR_START", "restart"),
            ],
            r"stage 4 draws .* or set FOUR_STEP.PREDICTOR_START continue",
        ),
    ],
)
def test_mistakes(opts: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply_four_step(load("faster_rcnn_vgg16_voc.yaml", *opts))


def test_parts_that_four_steps_can_freeze() -> None:
    frozen = ["roi_heads.box_head", "roi_heads.box_predictor.bbox_pred"]
    apply_four_step(load("faster_rcnn_vgg16_voc.yaml", "MODEL.PAPER_RCNN.FREEZE", frozen))
    first_half = ["FOUR_STEP.STOP_AFTER", 2, "MODEL.PAPER_RCNN.FREEZE", ["proposal_generator"]]
    apply_four_step(load("faster_rcnn_vgg16_voc.yaml", *first_half))


def test_importing_the_hook_loads_neither_matplotlib_nor_the_trainer() -> None:
    code = (
        "import frcnn_plugin.four_step, sys;"
        "assert 'matplotlib' not in sys.modules and 'frcnn_plugin.engine' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr

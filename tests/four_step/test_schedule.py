"""The schedule of a run. Literals: MATLAB's solver files, example E31 (docs/worked_examples.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from frcnn_plugin.errors import UserError
from frcnn_plugin.four_step import apply_four_step, build_four_step_scheduler
from tests.four_step.test_stages import load


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
        (["DATALOADER.MIRRORED_COPIES", False], r"needs DATALOADER.MIRRORED_COPIES True"),
        (["INPUT.MIN_SIZE_TRAIN", (480, 600)], r"must be a single size"),
    ],
)
def test_mistakes(opts: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply_four_step(load("faster_rcnn_vgg16_voc.yaml", *opts))

"""Parts that MODEL.PAPER_RCNN.FREEZE keeps as they are, beside what the stages freeze."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase

from frcnn_plugin.errors import UserError
from tests.four_step.four_step_runs import make_trainer

pytestmark = pytest.mark.usefixtures("with_data")


class WhatMoves(HookBase):
    """Collects, per stage, which parameters have a gradient."""

    def __init__(self) -> None:
        self.by_stage: dict[int, set[str]] = {}

    def after_step(self) -> None:
        names = self.by_stage.setdefault(self.trainer.iter // 4 + 1, set())
        names |= {n for n, p in self.trainer.model.named_parameters() if p.grad is not None}


@pytest.fixture
def weights(tmp_path: Path) -> list[str]:
    """Frozen parts need weights."""
    path = tmp_path / "start.pth"
    torch.save({"model": make_trainer(tmp_path / "start").model.state_dict()}, path)
    return ["MODEL.WEIGHTS", str(path)]


def test_a_frozen_box_head_stays_in_all_four_stages(tmp_path: Path, weights: list[str]) -> None:
    opts = [*weights, "MODEL.PAPER_RCNN.FREEZE", "['roi_heads.box_head', 'backbone.conv1']"]
    trainer = make_trainer(tmp_path, opts)
    in_optimizer = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    parameters = dict(trainer.model.named_parameters())
    assert in_optimizer == len(parameters) - 4 - 4  # two layers each, weight and bias
    before = {name: p.detach().clone() for name, p in parameters.items()}
    moves = WhatMoves()
    trainer.register_hooks([moves])
    trainer.train()
    seen = {stage: {n.rsplit(".", 2)[0] for n in names} for stage, names in moves.by_stage.items()}
    blocks = {f"backbone.conv{i}" for i in (2, 3, 4, 5)}
    assert seen == {
        1: blocks | {"proposal_generator.rpn_head"},
        2: blocks | {"roi_heads.box_predictor"},
        3: {"proposal_generator.rpn_head"},
        4: {"roi_heads.box_predictor"},
    }
    for name, p in trainer.model.named_parameters():
        frozen = name.startswith(("roi_heads.box_head.", "backbone.conv1."))
        assert torch.equal(p.detach(), before[name]) == frozen, name


def test_a_stage_with_nothing_to_train(tmp_path: Path, weights: list[str]) -> None:
    trainer = make_trainer(tmp_path, [*weights, "MODEL.PAPER_RCNN.FREEZE", "['roi_heads']"])
    with pytest.raises(UserError, match=r"FREEZE \['roi_heads'\] leaves nothing for stage 4"):
        trainer.train()

"""HyperNet's training: its layers move while the backbone does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.four_step.four_step_runs import make_trainer
from tests.four_step.test_frozen_parts import WhatMoves
from tests.modeling.test_hypernet import HYPER

pytestmark = pytest.mark.usefixtures("with_data")


def test_what_trains_in_each_stage(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [str(x) for x in HYPER])
    parts = {n.rsplit(".", 1)[0] for n, _ in trainer.model.named_parameters()}
    backbone = {n for n in parts if n.startswith("backbone.")}
    assert {n for n in backbone if n.startswith("backbone.hyper.")} == {
        *(f"backbone.hyper.conv{i}.conv" for i in (1, 3, 5)), "backbone.hyper.conv5.up.deconv",
    }  # fmt: skip
    moves = WhatMoves()
    trainer.register_hooks([moves])
    trainer.train()
    rpn, heads = (
        {n for n in parts if n.startswith(part)} for part in ("proposal_generator.", "roi_heads.")
    )
    seen = {stage: {n.rsplit(".", 1)[0] for n in names} for stage, names in moves.by_stage.items()}
    # In HyperNet's words: steps 2 and 3 from ImageNet weights, 4 and 5 on the layers of step 3.
    assert seen == {1: backbone | rpn, 2: backbone | heads, 3: rpn, 4: heads}

"""Four plain trainings, one after the other, end with the very weights of the hook's one run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.four_step.four_step_oracle import check_same, four_trainings
from tests.four_step.four_step_runs import make_trainer

pytestmark = pytest.mark.usefixtures("with_data")

MATLAB = [*("FOUR_STEP.RPN_TARGET_STATISTICS", "True"), *("FOUR_STEP.PREDICTOR_START", "continue")]
PY = [*("FOUR_STEP.RPN_TARGET_STATISTICS", "False"), *("FOUR_STEP.PREDICTOR_START", "restart")]


@pytest.mark.parametrize("opts", [MATLAB, PY], ids=["matlab", "py"])
def test_one_run_is_four_plain_ones(tmp_path: Path, opts: list[str]) -> None:
    start = four_trainings(tmp_path, whiten=opts is MATLAB, restart=opts is PY)
    run = tmp_path / "run"
    make_trainer(run, [*opts, "MODEL.WEIGHTS", str(tmp_path / "start.pth")]).train()
    check_same(tmp_path, run)
    # The comparison is not one of weights that nothing has changed.
    final = torch.load(run / "model_final.pth", weights_only=True)["model"]
    assert not any(torch.equal(final[k], start[k]) for k in final if k.endswith("weight"))


def test_the_comparison_notices_another_order_of_images(tmp_path: Path) -> None:
    four_trainings(tmp_path, whiten=False, restart=True)
    run = tmp_path / "run"
    opts = [*PY, "MODEL.WEIGHTS", str(tmp_path / "start.pth"), "SEED", "4"]
    make_trainer(run, opts).train()
    with pytest.raises(AssertionError, match="stage 1: "):
        check_same(tmp_path, run)

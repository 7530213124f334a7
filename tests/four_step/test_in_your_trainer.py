"""The example of docs/four_step_in_your_trainer.md runs as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import DefaultTrainer

from frcnn_plugin import get_config_file
from frcnn_plugin.engine import SeedEveryIteration
from frcnn_plugin.four_step.hook import FourStepHook
from tests.four_step.four_step_runs import TINY, Stop, final_weights, tiny_cfg

pytestmark = pytest.mark.usefixtures("with_data")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "four_step_in_your_trainer.md"


@pytest.fixture
def example() -> dict[str, Any]:
    """The names that the example defines."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 20
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def make(example: dict[str, Any], folder: Path) -> Any:
    tiny_cfg(folder)  # registers the data set
    trainer = example["make_trainer"](
        get_config_file("Base-PyEnd2End.yaml"), *TINY, "OUTPUT_DIR", str(folder)
    )
    assert isinstance(trainer, DefaultTrainer)
    assert isinstance(trainer._hooks[0], FourStepHook)
    return trainer


def test_example_trains(example: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = make(example, tmp_path)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert trainer.iter == 16 and trainer.model.phase == "joint"
    for name in ("stage1_final", "stage2_final", "stage3_final", "stage4_final", "model_final"):
        weights = torch.load(tmp_path / f"{name}.pth", weights_only=True)["model"]
        assert all(torch.isfinite(w).all() for w in weights.values())
    assert (tmp_path / "proposals" / "stage3" / "tiny_trainval.pkl").is_file()


def test_example_resumes_exactly_with_seeds(example: dict[str, Any], tmp_path: Path) -> None:
    """As the page says."""
    for name, fails in (("whole", False), ("resumed", True), ("resumed", False)):
        torch.manual_seed(0)
        trainer = make(example, tmp_path / name)
        seeds = SeedEveryIteration(3)
        trainer.register_hooks([seeds])
        trainer._hooks.insert(1, trainer._hooks.pop())
        if fails:
            trainer.register_hooks([Stop(13)])
        trainer.resume_or_load(resume=True)
        if fails:
            with pytest.raises(InterruptedError):
                trainer.train()
        else:
            trainer.train()
    assert trainer.start_iter == 12
    assert final_weights(tmp_path / "whole") == final_weights(tmp_path / "resumed")

"""Parts of the schedule: starting later, stopping earlier, evaluating what a step left.

What is promised, with the same schedule, seed, data and number of processes:

- A run stopped with FOUR_STEP.STOP_AFTER and resumed with a later one ends with the weights of a
  run that was not stopped, bit for bit.
- So does a run with FOUR_STEP.START_AT k from that run's ``stage<k-1>_final.pth``, for k = 2 with
  its ``initial_weights.pth`` as FOUR_STEP.INITIAL_WEIGHTS.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from frcnn_plugin.engine import evaluate_checkpoint
from frcnn_plugin.errors import UserError
from tests.four_step.fixtures import Run
from tests.four_step.four_step_runs import digest_of, final_weights, make_trainer, tiny_cfg

pytestmark = pytest.mark.usefixtures("with_data")


def later(run: Run, step: int, *opts: str) -> list[str]:
    """Overrides of a run that starts with ``step`` from the files of ``run``."""
    result = [
        *run.opts,
        *("FOUR_STEP.START_AT", str(step)),
        *("MODEL.WEIGHTS", str(run.folder / f"stage{step - 1}_final.pth")),
    ]
    if step == 2:
        result += ["FOUR_STEP.INITIAL_WEIGHTS", str(run.folder / "initial_weights.pth")]
    return [*result, *opts]


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_later_start_ends_with_the_same_weights(finished: Run, tmp_path: Path, step: int) -> None:
    make_trainer(tmp_path, later(finished, step)).train()
    for name in [*(f"stage{k}_final.pth" for k in range(step, 5)), "model_final.pth"]:
        ours = torch.load(tmp_path / name, weights_only=True)["model"]
        assert digest_of(ours) == digest_of(finished.weights(name)), name


@pytest.mark.parametrize("step", [1, 2, 3])
def test_stopping_and_going_on_ends_with_the_same_weights(
    finished: Run, tmp_path: Path, step: int
) -> None:
    first = make_trainer(tmp_path, [*finished.opts, "FOUR_STEP.STOP_AFTER", str(step)])
    results = first.train()
    assert first.model.phase == ("fast_rcnn" if step == 2 else "rpn")
    # What the step trained has been evaluated, once and as what it is.
    assert results is not None
    assert next(iter(results)) == ("bbox" if step == 2 else "proposals")
    assert not (tmp_path / f"stage{step + 1}_final.pth").exists()
    assert final_weights(tmp_path) == digest_of(finished.weights(f"stage{step}_final.pth"))
    again = tiny_cfg(tmp_path, [*finished.opts, "MODEL.WEIGHTS", str(tmp_path / "model_final.pth")])
    assert evaluate_checkpoint(again).keys() == results.keys()
    make_trainer(tmp_path, finished.opts, resume=True).train()
    assert final_weights(tmp_path) == final_weights(finished.folder)


def test_resuming_a_finished_run_changes_nothing(finished: Run, tmp_path: Path) -> None:
    opts = later(finished, 4)
    make_trainer(tmp_path, opts).train()
    before = final_weights(tmp_path)
    trainer = make_trainer(tmp_path, opts, resume=True)
    assert trainer.start_iter == trainer.max_iter
    results = trainer.train()
    assert results is not None and "bbox" in results
    assert final_weights(tmp_path) == before


def test_a_random_seed_is_kept(finished: Run, tmp_path: Path) -> None:
    """The order of images goes on where it was."""
    opts = [*finished.opts, *("SEED", "-1"), *("FOUR_STEP.STOP_AFTER", "1")]
    first = make_trainer(tmp_path, opts)
    first.train()
    second = make_trainer(tmp_path, opts, resume=True)
    assert second._hooks[0]._seed == first._hooks[0]._seed
    assert make_trainer(tmp_path / "other", opts)._hooks[0]._seed != first._hooks[0]._seed


def logged(run: Run, prefix: str) -> dict[str, float]:
    """What the run's metrics say about a step."""
    found: dict[str, float] = {}
    for line in (run.folder / "metrics.json").read_text().splitlines():
        entry = json.loads(line)
        found |= {k.removeprefix(prefix): v for k, v in entry.items() if k.startswith(prefix)}
    return found


def evaluated(run: Run, name: str) -> dict[str, Any]:
    return evaluate_checkpoint(
        tiny_cfg(run.root / "none", [*run.opts, "MODEL.WEIGHTS", str(run.folder / name)])
    )


@pytest.mark.parametrize(("step", "task"), [(1, "proposals"), (2, "bbox"), (3, "proposals")])
def test_a_step_s_checkpoint_is_evaluated_as_the_run_did(
    finished: Run, step: int, task: str
) -> None:
    """Recall of an RPN, AP of a detector on the proposals it was made for."""
    results = evaluated(finished, f"stage{step}_final.pth")
    assert list(results) == [task]
    wanted = logged(finished, f"stage{step}/{task}/")
    assert wanted and wanted.keys() == results[task].keys()
    assert results[task] == pytest.approx(wanted, nan_ok=True)


def test_any_other_checkpoint_is_evaluated_as_what_it_is(finished: Run) -> None:
    """Iterations 2 and 14 are in the middle of steps 1 and 4, 5 and 8 in steps 2 and 3."""
    for iteration, task in ((2, "proposals"), (5, "bbox"), (8, "proposals"), (14, "bbox")):
        assert list(evaluated(finished, f"model_{iteration:07d}.pth")) == [task]


def test_the_last_checkpoints_are_evaluated_as_whole_detectors(finished: Run) -> None:
    final = evaluated(finished, "model_final.pth")
    assert list(final) == ["bbox"]
    assert evaluated(finished, "stage4_final.pth")["bbox"] == pytest.approx(
        final["bbox"], nan_ok=True
    )
    assert final["bbox"] == pytest.approx(logged(finished, "bbox/"), nan_ok=True)


def test_evaluation_without_its_proposals(finished: Run, tmp_path: Path) -> None:
    path = tmp_path / "stage2_final.pth"
    path.symlink_to(finished.folder / "stage2_final.pth")
    cfg = tiny_cfg(tmp_path, [*finished.opts, "MODEL.WEIGHTS", str(path)])
    with pytest.raises(UserError, match=r"proposals of stage 1, but .*tiny_test.pkl is missing"):
        evaluate_checkpoint(cfg)


def test_evaluation_of_a_damaged_checkpoint(finished: Run, tmp_path: Path) -> None:
    for name in ("stage1_final.pth", "model_final.pth"):
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes()[:2000])
        cfg = tiny_cfg(tmp_path, [*finished.opts, "MODEL.WEIGHTS", str(tmp_path / name)])
        with pytest.raises(UserError, match=rf"{name} is damaged"):
            evaluate_checkpoint(cfg)

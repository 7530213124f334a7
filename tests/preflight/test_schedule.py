"""Iterations, batch, learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest

from frcnn_plugin import get_config_file
from frcnn_plugin.engine.setup import setup_cfg
from frcnn_plugin.errors import UserError
from frcnn_plugin.preflight import PlannedRun
from frcnn_plugin.preflight.schedule import check_solver, find_preset
from tests.conftest import CONFIGS
from tests.preflight.conftest import only

FOUR_STEPS = get_config_file("demo/vgg16_shapes.yaml")
SHIPPED = sorted(p for p in CONFIGS.rglob("*.yaml") if not p.name.startswith("Base"))


@pytest.mark.parametrize("config", SHIPPED, ids=lambda p: p.name)
def test_shipped_schedules_are_fine(config: Path, restore_catalogs: None) -> None:
    run = PlannedRun(setup_cfg(str(config), ["MODEL.DEVICE", "cpu"]), config_file=str(config))
    (finding,) = check_solver(run)
    assert finding.level == "ok"
    assert "in 1 process, learning rate" in finding.text


def test_steps_after_the_end(find) -> None:
    message = only(find("SOLVER.STEPS", "(800,)", "SOLVER.MAX_ITER", "700"), "schedule")
    assert 'SOLVER.STEPS "(500,)"' in message


def test_steps_that_do_not_grow(find) -> None:
    message = only(find("SOLVER.STEPS", "(900,600)"), "schedule")
    assert 'SOLVER.STEPS (900, 600) must grow. Type SOLVER.STEPS "(600, 900)"' in message


def test_four_lists_of_four(plan) -> None:
    with pytest.raises(UserError, match=r"FOUR_STEP.ITERS is .* needs four entries"):
        plan("FOUR_STEP.ITERS", "[1,2,3]", config=FOUR_STEPS)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.MAX_ITER", "0", "SOLVER.STEPS", "()"], "SOLVER.MAX_ITER is 0: it must be 1 or"),
        (["SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH is 0: it must be 1 or more"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "SOLVER.CHECKPOINT_PERIOD is 0"),
        (["SOLVER.BASE_LR", "0.0"], "SOLVER.BASE_LR is 0.0: it must be positive"),
    ],
)
def test_numbers_out_of_range(find, opts: list[str], message: str) -> None:
    assert message in only(find(*opts), "schedule")


def test_batch_that_processes_cannot_share(find) -> None:
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.IMS_PER_BATCH", "5"]
    findings = [f for f in find(*opts, num_processes=2) if f.level == "error"]
    sentence = only(findings, "schedule")
    assert "5 cannot be divided among 2 processes. Type SOLVER.IMS_PER_BATCH 4" in sentence


def test_batch_that_does_not_fit_the_reference(find) -> None:
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", "4", "SOLVER.IMS_PER_BATCH", "6"]
    sentence = only(find(*opts), "schedule")
    assert "no multiple of SOLVER.REFERENCE_WORLD_SIZE 4" in sentence
    assert "SOLVER.IMS_PER_BATCH 4" in sentence


def test_larger_batch_at_the_same_rate(find) -> None:
    """The demo has 2 images and 0.01; 8 images are 4 times as many."""
    sentence = only(find("SOLVER.IMS_PER_BATCH", "8"), "schedule", "warning")
    assert "a batch is 8 images, 4 times that of vgg16_shapes_joint.yaml" in sentence
    assert "SOLVER.BASE_LR 0.04" in sentence and "divided by 4" in sentence


def test_larger_batch_at_a_scaled_rate(find) -> None:
    assert find("SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.04") == []


def test_processes_scale_the_rate_themselves(plan) -> None:
    """SOLVER.REFERENCE_WORLD_SIZE 1 in Base-PyEnd2End.yaml."""
    (finding,) = check_solver(plan(num_processes=2))
    assert finding.level == "ok"
    assert "600 iterations of 4 images in 2 processes, learning rate 0.02" in finding.text


def test_rate_of_another_network(find) -> None:
    """0.02 is what Detectron2's ResNets with 16 images use; here 5 times the demo's times 4."""
    sentence = only(find("SOLVER.BASE_LR", "0.2"), "schedule", "warning")
    assert "20 times that of" in sentence and "SOLVER.BASE_LR 0.01" in sentence


def test_four_steps_in_several_processes(plan) -> None:
    """Their batches grow with the processes, rate and iterations do not."""
    opts = ["SOLVER.BASE_LR", "0.001", "MODEL.DEVICE", "cpu"]
    run = plan(*opts, config=FOUR_STEPS, num_processes=4)
    (finding,) = check_solver(run)
    assert finding.level == "warning"
    assert "batches 4 times as large" in finding.text
    assert "SOLVER.BASE_LR 0.004" in finding.fix and "divided by 4" in finding.fix


def test_less_than_one_epoch(find) -> None:
    opts = ["SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "()"]
    sentence = only(find(*opts), "schedule", "warning")
    assert "sees 4 images, less than one pass" in sentence and "Raise SOLVER.MAX_ITER" in sentence


def test_less_than_one_epoch_in_four_steps(plan) -> None:
    opts = ["FOUR_STEP.ITERS", "[2,2,2,2]", "FOUR_STEP.DROPS", "[[],[],[],[]]"]
    (finding,) = check_solver(plan(*opts, config=FOUR_STEPS))
    assert "sees 4 images" in finding.text and "Raise FOUR_STEP.ITERS" in finding.fix


def test_evaluating_all_the_time(find) -> None:
    sentence = only(find("TEST.EVAL_PERIOD", "1"), "schedule", "warning")
    assert "(2) than evaluated (3)" in sentence and "TEST.EVAL_PERIOD 120" in sentence


def test_no_checkpoint_before_the_end(find) -> None:
    opts = ["SOLVER.MAX_ITER", "6000", "SOLVER.CHECKPOINT_PERIOD", "6000"]
    sentence = only(find(*opts), "schedule", "warning")
    assert "loses everything" in sentence and "SOLVER.CHECKPOINT_PERIOD 600" in sentence


def test_preset_of_a_users_file(tmp_path: Path) -> None:
    ours = get_config_file("faster_rcnn_vgg16_voc_joint.yaml")
    middle, mine = tmp_path / "middle.yaml", tmp_path / "mine.yaml"
    middle.write_text(f'_BASE_: "{ours}"\nSOLVER: {{BASE_LR: 0.5}}\n')
    mine.write_text('_BASE_: "middle.yaml"\n')
    found = find_preset(str(mine))
    assert found is not None
    assert found[0] == str(Path(ours).resolve()) and found[1].SOLVER.BASE_LR == 0.001
    middle.write_text("VERSION: 2\n")
    assert find_preset(str(mine)) is None
    assert find_preset("") is None

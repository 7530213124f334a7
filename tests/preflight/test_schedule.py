"""Iterations, batch, learning rate."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from frcnn_plugin import get_config_file
from frcnn_plugin.data import SHAPE_CLASSES, register_voc
from frcnn_plugin.engine.setup import setup_cfg
from frcnn_plugin.preflight import PlannedRun, schedule
from frcnn_plugin.preflight.schedule import check_solver, find_preset
from tests.conftest import CONFIGS
from tests.preflight.conftest import only
from tests.small_demo import DEMO

FOUR_STEPS = get_config_file("demo/vgg16_shapes.yaml")
SHIPPED = sorted(p for p in CONFIGS.rglob("*.yaml") if not p.name.startswith("Base"))


@pytest.mark.parametrize("config", SHIPPED, ids=lambda p: p.name)
def test_shipped_schedules_are_fine(config: Path) -> None:
    run = PlannedRun(setup_cfg(str(config), ["MODEL.DEVICE", "cpu"]), config_file=str(config))
    (finding,) = check_solver(run)
    assert finding.level == "ok"
    assert "in 1 process, learning rate" in finding.text


def test_batch_that_processes_cannot_share(find) -> None:
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.IMS_PER_BATCH", "5"]
    findings = [f for f in find(*opts, num_processes=2) if f.level == "error"]
    sentence = only(findings, "schedule")
    assert "5 cannot be divided among 2 processes. Type SOLVER.IMS_PER_BATCH 4" in sentence


def test_steps_that_meet_the_end_when_processes_share_them(find) -> None:
    """Halved, 3 is rounded to 2, which is also half of 4."""
    opts = ["SOLVER.MAX_ITER", "4", "SOLVER.STEPS", "(3,)"]
    assert not [f for f in find(*opts) if f.level == "error"]
    sentence = only([f for f in find(*opts, num_processes=2) if f.level == "error"], "schedule")
    assert "SOLVER.STEPS (3,) meets SOLVER.MAX_ITER 4 when 2 processes share them" in sentence
    assert not [f for f in find("SOLVER.STEPS", "()", num_processes=2) if f.level == "error"]


@pytest.mark.parametrize("norm", ["SyncBN", "nnSyncBN", "naiveSyncBN", "BN"])
def test_statistics_of_all_processes_on_cpus(plan, norm: str) -> None:
    """torch's own class raises there in the first iteration."""
    for processes in (1, 2):
        run = plan("MODEL.PAPER_VGG.NORM", norm, "MODEL.DEVICE", "cpu", num_processes=processes)
        found = [f.text for f in check_solver(run) if f.level == "error"]
        refused = processes == 2 and norm in ("SyncBN", "nnSyncBN")
        assert [f"{norm} needs GPUs to train in 2 processes" in f for f in found] == [
            True
        ] * refused


def test_larger_batch_at_a_scaled_rate(find) -> None:
    assert find("SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.04") == []


def test_processes_scale_the_rate_themselves(plan) -> None:
    """SOLVER.REFERENCE_WORLD_SIZE 1 in Base-Common.yaml."""
    (finding,) = check_solver(plan(num_processes=2))
    assert finding.level == "ok"
    assert (
        "600 iterations of 4 images (480.0 passes over 5) in 2 processes, learning rate 0.02"
        in finding.text
    )


@pytest.mark.parametrize("config", [DEMO, FOUR_STEPS])
def test_images_that_are_missing_are_not_counted(plan, shapes: Path, config: str) -> None:
    shutil.rmtree(shapes / "JPEGImages")
    (finding,) = (f for f in check_solver(plan(config=config)) if f.level == "ok")
    assert "images not counted) in 1 process" in finding.text and "up to" not in finding.text


def test_four_steps_in_several_processes(plan) -> None:
    """Their batches grow with the processes, rate and iterations do not."""
    run = plan("SOLVER.BASE_LR", "0.001", config=FOUR_STEPS, num_processes=4)
    (finding,) = check_solver(run)
    assert finding.level == "warning"
    assert "a batch is 4 times that of one process" in finding.text
    assert "SOLVER.BASE_LR 0.004" in finding.fix and "divided by 4" in finding.fix
    (finding,) = check_solver(plan(config=FOUR_STEPS, num_processes=4))  # 0.015
    assert finding.level == "ok"
    assert "in proportion: SOLVER.BASE_LR 0.06" in finding.text


def test_four_steps_of_a_file_of_their_own(plan) -> None:
    """Without a preset the rate is compared with the paper's."""
    run = plan("SOLVER.BASE_LR", "0.001", config=FOUR_STEPS, num_processes=2)
    run.config_file = ""
    (finding,) = check_solver(run)
    assert finding.level == "warning" and "SOLVER.BASE_LR 0.002" in finding.fix


def test_less_than_one_epoch_in_four_steps(plan) -> None:
    opts = ["FOUR_STEP.ITERS", "[2,2,2,2]", "FOUR_STEP.DROPS", "[[],[],[],[]]"]
    (finding,) = check_solver(plan(*opts, config=FOUR_STEPS))
    assert "sees 4 images" in finding.text and "Raise FOUR_STEP.ITERS" in finding.fix


@pytest.mark.parametrize(
    ("config", "passes", "fix"),
    [
        (DEMO, "training passes 480", 'SOLVER.MAX_ITER 75 SOLVER.STEPS "(56,)"'),
        (
            FOUR_STEPS,
            "a stage passes 400",
            'FOUR_STEP.ITERS "[22, 75, 11, 45]" FOUR_STEP.DROPS "[[16], [52], [8], [30]]"',
        ),
    ],
)
def test_a_small_set_seen_too_often(plan, monkeypatch, config: str, passes: str, fix: str) -> None:
    """Five images with objects; the stage that sees most images counts."""
    monkeypatch.setattr(schedule, "_MANY_PASSES", 100)
    monkeypatch.setattr(schedule, "_FEWEST_ITERS", 10)
    (finding,) = check_solver(plan(config=config))
    assert finding.level == "warning"
    assert f"{passes} times over the 5 images" in finding.text
    assert finding.fix == f"For about 30 passes: {fix}"


def test_no_schedule_too_short_to_learn_is_advised(plan, monkeypatch) -> None:
    """Five images; typing the advice settles the matter."""
    monkeypatch.setattr(schedule, "_MANY_PASSES", 100)
    (finding,) = check_solver(plan("SOLVER.MAX_ITER", "4000", "SOLVER.STEPS", "(2000,)"))
    assert finding.fix == 'For about 400 passes: SOLVER.MAX_ITER 1000 SOLVER.STEPS "(500,)"'
    (finding,) = check_solver(plan("SOLVER.MAX_ITER", "1000", "SOLVER.STEPS", "(500,)"))
    assert finding.level == "ok" and "images (400.0 passes over 5) in" in finding.text


def test_set_that_is_not_the_test_set_chooses(find) -> None:
    register_voc("my_val", "demo_shapes", "test", SHAPE_CLASSES)
    assert find("TEST.EVAL_PERIOD", "100", "DATASETS.TEST", "('my_val',)") == []
    assert find("TEST.EVAL_PERIOD", "100", "DATASETS.TEST", "('my_val','shapes_test')") == []


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

"""Warnings at the start of a run. The tiny set has 6 images, 5 of them with objects."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from frcnn_plugin.engine.run_warnings import dataset_size, short_run, validation_on_training_set
from tests.engine.four_step_runs import make_trainer
from tests.engine.joint_runs import make_joint_trainer


@pytest.mark.parametrize(
    ("iterations", "batch", "warns"), [(2, 2, True), (3, 2, False), (4, 1, True), (5, 1, False)]
)
def test_less_than_one_epoch(tiny_cfg, iterations: int, batch: int, warns: bool) -> None:
    cfg = tiny_cfg("SOLVER.MAX_ITER", iterations, "SOLVER.IMS_PER_BATCH", batch)
    warning = short_run(cfg, 5)
    assert bool(warning) == warns
    if warns:
        assert warning == (
            f"the run trains less than one epoch: SOLVER.MAX_ITER {iterations} x {batch} images "
            "per iteration are 4 images of 5"
        )
    assert short_run(cfg, None) is None


def test_less_than_one_epoch_in_a_step(tiny_cfg) -> None:
    cfg = tiny_cfg("FOUR_STEP.ENABLED", True, "FOUR_STEP.ITERS", [5, 2, 4, 3],
                   "FOUR_STEP.DROPS", [[], [], [], []])  # fmt: skip
    assert short_run(cfg, 5) == (
        "step 2 trains less than one epoch: FOUR_STEP.ITERS 2 x 2 images per iteration are 4 "
        "images of 5; step 3 trains less than one epoch: FOUR_STEP.ITERS 4 x 1 images per "
        "iteration are 4 images of 5"
    )


def test_size_of_an_unknown_loader() -> None:
    assert dataset_size(iter([])) is None
    assert dataset_size([1, 2, 3]) == 3


@pytest.mark.usefixtures("with_data")
@pytest.mark.parametrize("mirrored", ["True", "False"])
def test_a_run_says_so(tmp_path: Path, mirrored: str, caplog: pytest.LogCaptureFixture) -> None:
    opts = ["SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()", "DATALOADER.MIRRORED_COPIES", mirrored]
    make_joint_trainer(tmp_path, opts).train()
    assert "SOLVER.MAX_ITER 1 x 2 images per iteration are 2 images of 5" in caplog.text


@pytest.mark.usefixtures("with_data")
def test_a_long_enough_run_does_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(tmp_path, ["FOUR_STEP.ITERS", "[5,5,5,5]"])
    for hook in trainer._hooks:
        if type(hook).__name__ == "RunWarnings":
            hook.before_train()
            break
    else:
        raise AssertionError("no such hook")
    assert "epoch" not in caplog.text


def test_choosing_on_the_training_set(tiny_cfg, restore_catalogs: None) -> None:
    MetadataCatalog.get("warn_a").set(dirname="/data/my", split="train")
    MetadataCatalog.get("warn_b").set(dirname="/data/my", split="train")
    MetadataCatalog.get("warn_c").set(dirname="/data/my", split="test")

    def warning(train: tuple[str, ...], test: tuple[str, ...], period: int = 5) -> str | None:
        return validation_on_training_set(
            tiny_cfg("DATASETS.TRAIN", train, "DATASETS.TEST", test, "TEST.EVAL_PERIOD", period)
        )

    assert warning(("warn_a",), ("warn_a",)) == (
        "the best checkpoint is chosen on 'warn_a', which is trained on: its AP50 says nothing "
        "about other images. Put another set first in DATASETS.TEST"
    )
    assert "'warn_b' (the same data as 'warn_a')" in (warning(("warn_a",), ("warn_b",)) or "")
    assert warning(("warn_a",), ("warn_c",)) is None
    assert warning(("warn_a",), ("warn_c", "warn_a")) is None  # the first one decides
    assert warning(("warn_a",), ("warn_a",), period=0) is None
    assert warning(("warn_a",), ()) is None
    assert warning(("unknown_a",), ("unknown_b",)) is None

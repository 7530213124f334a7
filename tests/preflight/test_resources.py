"""The disk, and memory: measured peaks beside what is free."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frcnn_plugin import get_config_file
from frcnn_plugin.engine.setup import setup_cfg
from frcnn_plugin.preflight import PlannedRun, resources
from frcnn_plugin.preflight.resources import (
    check_hours,
    check_memory,
    check_workers,
    checkpoint_bytes,
    free_ram,
    number_of_checkpoints,
    proposal_bytes,
)
from tests.conftest import CONFIGS
from tests.preflight.conftest import only

FOUR_STEPS = get_config_file("demo/vgg16_shapes.yaml")
Usage = namedtuple("Usage", "total used free")


# ---- disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "level"), [(0.9, "error"), (1.1, "warning")])
def test_full_disk(find, plan, monkeypatch: pytest.MonkeyPatch, share: float, level: str) -> None:
    """1200 iterations, every tenth and the final one: 121."""
    opts = ["SOLVER.CHECKPOINT_PERIOD", "10", "SOLVER.CHECKPOINTS_KEPT", "0"]
    free = int(share * 121 * checkpoint_bytes(plan(*opts)))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40 - free, free))
    sentence = only(find(*opts), "disk", level)
    assert "(121 checkpoints of up to" in sentence and "are free in" in sentence
    assert sentence.endswith("or lower SOLVER.CHECKPOINTS_KEPT")


@pytest.mark.parametrize(
    ("opts", "config", "number"),
    [
        ([], "demo/vgg16_shapes_joint.yaml", 3),  # two of 600 iterations each, and the final one
        (["SOLVER.CHECKPOINT_PERIOD", "10"], "demo/vgg16_shapes_joint.yaml", 4),
        (["TEST.EVAL_PERIOD", "100"], "demo/vgg16_shapes_joint.yaml", 4),
        (["SOLVER.CHECKPOINT_PERIOD", "9999"], "demo/vgg16_shapes.yaml", 6),
        (
            ["SOLVER.CHECKPOINT_PERIOD", "9999", "TEST.EVAL_PERIOD", "100"],
            "demo/vgg16_shapes.yaml",
            8,
        ),
    ],
)
def test_number_of_checkpoints(plan, opts: list[str], config: str, number: int) -> None:
    """The newest three, the final one, the best; in four stages those of the stages too."""
    assert number_of_checkpoints(plan(*opts, config=get_config_file(config))) == number


def test_sizes(plan) -> None:
    """Weights and momentum, 4 bytes each; 300 boxes of 5 numbers for all images, in two stages."""
    run = plan()
    parameters = sum(p.numel() for p in run.model.parameters())
    assert checkpoint_bytes(run) == parameters * 8
    assert proposal_bytes(run) == 0
    run = plan(config=FOUR_STEPS)
    train = run.size("shapes_trainval")
    assert proposal_bytes(run) == 2 * (train + 3) * 300 * 20
    run = plan("FOUR_STEP.MIRRORED_PROPOSALS", "recompute", config=FOUR_STEPS)
    assert proposal_bytes(run) == 2 * (2 * train + 3) * 300 * 20


# ---- memory ---------------------------------------------------------------------------------

FULL = [
    *("MODEL.PAPER_VGG.CHANNELS", "[64,128,256,512,512]"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "4096"),
    *("MODEL.WEIGHTS", ""),
]


@pytest.fixture
def check(plan):
    """A function that gives the findings of a run of VGG16 at full width."""

    def build(*opts: Any, config: str = "faster_rcnn_vgg16_voc_joint.yaml", **how: Any):
        return list(check_memory(plan(*FULL, *opts, config=get_config_file(config), **how)))

    return build


@pytest.mark.parametrize(
    ("config", "eval_only", "words"),
    [
        ("faster_rcnn_vgg16_voc_joint.yaml", True, "inference of VGG16 took 1.7 GiB"),
        ("faster_rcnn_vgg16_voc_joint.yaml", False, "joint training of VGG16 took 3.0 GiB"),
        ("faster_rcnn_vgg16_voc.yaml", False, "four-step training of VGG16 took 4.2 GiB"),
    ],
)
def test_measured_runs(
    check, monkeypatch: pytest.MonkeyPatch, config: str, eval_only: bool, words: str
) -> None:
    monkeypatch.setattr(resources, "free_ram", lambda: 2**34)
    (finding,) = check(config=config, eval_only=eval_only)
    assert finding.level == "ok" and finding.text.startswith(words)
    assert "600x1000 pixels; 16.0 GiB of RAM are free" in finding.text


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.ROI_BOX_HEAD.FC_DIM", "16"],
        ["MODEL.PAPER_VGG.CHANNELS", "[4,4,8,8,8]"],
        ["INPUT.MIN_SIZE_TRAIN", "(300,)"],
        ["MODEL.PAPER_RCNN.PHASE", "rpn"],
    ],
)
def test_nothing_is_said_about_what_was_not_measured(check, opts: list[str]) -> None:
    assert check(*opts) == []


def test_peaks_are_those_of_the_documentation() -> None:
    text = (CONFIGS.parent / "docs" / "benchmarks.md").read_text()
    for _, peak in resources._MEASURED.values():
        assert f" {peak} " in text


def test_too_little_memory(check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "free_ram", lambda: 2**31)
    message = only(check(), "memory", "warning")
    assert "2.0 GiB of RAM are free for 1 process. If it runs out" in message
    assert check(eval_only=True)[0].level == "ok"
    message = only(check(eval_only=True, num_processes=2), "memory", "warning")
    assert "for 2 processes" in message and "docs/troubleshooting.md" in message


def test_free_memory_is_plausible() -> None:
    free = free_ram()
    assert free is None or 2**24 < free < 2**50


# ---- workers ---------------------------------------------------------------------------------


def test_workers_that_fill_shared_memory(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's 64 MB: VOC's pairs of 600x1000 pixels, each worker two ahead, two in use."""
    run = plan(
        *("DATALOADER.NUM_WORKERS", "8", "INPUT.MIN_SIZE_TRAIN", "(600,)"),
        *("INPUT.MAX_SIZE_TRAIN", "1000", "SOLVER.IMS_PER_BATCH", "2"),
    )
    assert resources.batch_bytes(run) == 2 * 3 * 600 * 1000
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(resources, "_SHM", Path("/"))
    disk = SimpleNamespace(free=64 * 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    sentence = only(list(check_workers(run)), "memory")
    assert "DATALOADER.NUM_WORKERS 8: batches that are waiting take up to 61.8 MiB" in sentence
    assert "--shm-size=1g" in sentence and sentence.endswith("DATALOADER.NUM_WORKERS 7")
    disk.free = 2**30
    assert list(check_workers(run)) == []
    assert list(check_workers(plan("DATALOADER.NUM_WORKERS", "0"))) == []


def test_more_workers_than_cores(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    run = plan("DATALOADER.NUM_WORKERS", "4", num_processes=2)
    sentence = only(list(check_workers(run)), "memory", "warning")
    assert "DATALOADER.NUM_WORKERS 4 in 2 processes on 4 CPU cores" in sentence
    assert sentence.endswith("Type DATALOADER.NUM_WORKERS 2")
    assert list(check_workers(plan("DATALOADER.NUM_WORKERS", "4"))) == []


def test_days_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config = get_config_file("faster_rcnn_vgg16_voc.yaml")
    opts = ["MODEL.DEVICE", "cpu"]
    run = PlannedRun(setup_cfg(config, opts), config_file=config)
    sentence = only(list(check_hours(run)), "schedule", "warning")
    assert "takes about 687 hours, with a checkpoint every 29 " in sentence
    assert sentence.endswith("Train on a GPU, or type SOLVER.CHECKPOINT_PERIOD 300")
    often = PlannedRun(setup_cfg(config, [*opts, "SOLVER.CHECKPOINT_PERIOD", "300"]))
    assert list(check_hours(often)) == []

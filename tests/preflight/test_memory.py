"""Memory: measured peaks beside what is free."""

from __future__ import annotations

from typing import Any

import pytest

from frcnn_plugin import get_config_file
from frcnn_plugin.preflight import memory
from frcnn_plugin.preflight.memory import check_memory, free_ram
from tests.conftest import CONFIGS
from tests.preflight.conftest import only

FULL = [
    *("MODEL.VGG.CHANNELS", "[64,128,256,512,512]"),
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
    monkeypatch.setattr(memory, "free_ram", lambda: 2**34)
    (finding,) = check(config=config, eval_only=eval_only)
    assert finding.level == "ok" and finding.text.startswith(words)
    assert "600x1000 pixels; 16.0 GiB of RAM are free" in finding.text


@pytest.mark.parametrize(
    "opts",
    [
        ["MODEL.ROI_BOX_HEAD.FC_DIM", "16"],
        ["MODEL.VGG.CHANNELS", "[4,4,8,8,8]"],
        ["INPUT.MIN_SIZE_TRAIN", "(300,)"],
        ["MODEL.PAPER_RCNN.PHASE", "rpn"],
    ],
)
def test_nothing_is_said_of_what_was_not_measured(check, opts: list[str]) -> None:
    assert check(*opts) == []


def test_peaks_are_those_of_the_documentation() -> None:
    text = (CONFIGS.parent / "docs" / "benchmarks.md").read_text()
    for _, peak in memory._MEASURED.values():
        assert f" {peak} " in text


def test_too_little_memory(check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_ram", lambda: 2**31)
    message = only(check(), "memory", "warning")
    assert "but only 2.0 GiB of RAM are free for 1 process. If memory runs out" in message
    assert "lower INPUT.MIN_SIZE_TRAIN (now (600,)) or SOLVER.IMS_PER_BATCH" in message
    assert check(eval_only=True)[0].level == "ok"
    message = only(check(eval_only=True, num_processes=2), "memory", "warning")
    assert "for 2 processes" in message and "INPUT.MIN_SIZE_TEST (now 600)" in message
    assert message.endswith("or --num-gpus")


def test_free_memory_is_plausible() -> None:
    free = free_ram()
    assert free is None or 2**24 < free < 2**50

"""Disk space for features of steps 3 and 4, and what their cache refuses."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from frcnn_plugin import get_config_file
from frcnn_plugin.preflight.features import check_features_disk, feature_bytes
from tests.preflight.conftest import only
from tests.preflight.test_output import Usage

FOUR_STEPS = get_config_file("demo/vgg16_shapes.yaml")
GB = 10**9


def kept(*opts: str) -> list[str]:
    return ["MODEL.PAPER_RCNN.ONE_BY_ONE", "True", "FOUR_STEP.FEATURE_CACHE_GB", *opts]


def test_features_that_do_not_fit(find, plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside everything else that the run writes, which is less than a tenth of a GB here."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 * GB, 95 * GB, 5 * GB))
    sentence = only(find(*kept("5.0"), config=FOUR_STEPS), "disk")
    assert "FOUR_STEP.FEATURE_CACHE_GB is 5, 5.0 GB are free in" in sentence
    assert "Type FOUR_STEP.FEATURE_CACHE_GB 4.4, free some, or choose another" in sentence
    assert not find(*kept("4.4"), config=FOUR_STEPS)
    assert not find(*kept("5.0"), *("FOUR_STEP.STOP_AFTER", "2"), config=FOUR_STEPS)
    findings = find(*kept("5.0"), config=FOUR_STEPS, eval_only=True)
    assert not [f for f in findings if f.subject == "disk"]


def test_features_from_before_are_room(
    plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 * GB, 95 * GB, 5 * GB))
    folder = tmp_path / "run" / "features" / "a"
    folder.mkdir(parents=True)
    with (folder / "b.features").open("wb") as file:
        file.truncate(GB)
    opts = [*kept("5.0"), "OUTPUT_DIR", str(tmp_path / "run")]
    (finding,) = check_features_disk(plan(*opts, config=FOUR_STEPS, resume=True))
    assert finding.level == "ok" and "6.0 GB are free" in finding.text


def test_size_of_features(plan) -> None:
    """By hand: six images and their mirror images, 8 channels, a cell for 16 pixels, 4 bytes."""
    run = plan(*kept("5.0"), config=FOUR_STEPS)
    cells = 0
    for record in run.dicts(run.train[0]):
        short, long = sorted((record["height"], record["width"]))
        scale = min(run.cfg.INPUT.MIN_SIZE_TRAIN[0] / short, run.cfg.INPUT.MAX_SIZE_TRAIN / long)
        cells += math.prod(math.ceil(int(side * scale + 0.5) / 16) for side in (short, long))
    assert feature_bytes(run) == (12, 2 * cells * 8 * 4)
    (finding,) = check_features_disk(run)
    assert (
        finding.level == "ok" and "12 images, mirrored ones included, take 0.0 GB" in finding.text
    )


def test_refused_features(find) -> None:
    message = only(find(*kept("5.0")), "schedule")
    assert "FEATURE_CACHE_GB is 5, but FOUR_STEP.ENABLED is False" in message
    message = only(find(*kept("-5.0"), config=FOUR_STEPS), "schedule")
    assert "FEATURE_CACHE_GB is -5: it must be 0.0 (off) or more" in message


def test_features_of_padded_pairs(find) -> None:
    opts = ["FOUR_STEP.FEATURE_CACHE_GB", "0.1", "FOUR_STEP.IMS_PER_BATCH", "[1,2,1,2]"]
    message = only(find(*opts, config=FOUR_STEPS), "schedule", "warning")
    assert "FEATURE_CACHE_GB 0.1 has no effect in step 4: 2 images per batch" in message
    assert "Add MODEL.PAPER_RCNN.ONE_BY_ONE True" in message

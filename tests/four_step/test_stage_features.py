"""Folders of features: for which steps, what is reused, removed or refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from frcnn_plugin.errors import UserError
from frcnn_plugin.four_step.feature_cache import FeatureCache
from frcnn_plugin.four_step.features import StageFeatures, features_digest
from frcnn_plugin.modeling import PaperRCNN
from tests.four_step.test_feature_cache import Compute, ask, image


@pytest.fixture
def cfg(tiny_cfg: Any, tmp_path: Path) -> CfgNode:
    opts = [
        *("FOUR_STEP.ENABLED", True, "FOUR_STEP.FEATURE_CACHE_GB", 1e-5),
        *("MODEL.PAPER_RCNN.ONE_BY_ONE", True),
    ]
    return tiny_cfg(*opts, "OUTPUT_DIR", str(tmp_path / "run"))


@pytest.mark.parametrize(("step", "uses"), [(1, False), (2, False), (3, True), (4, True)])
def test_steps(cfg: CfgNode, one_by_one_model: PaperRCNN, step: int, uses: bool) -> None:
    StageFeatures(cfg).start(step, one_by_one_model)
    assert (one_by_one_model.feature_store is not None) is uses


def test_off(cfg: CfgNode, one_by_one_model: PaperRCNN, tmp_path: Path) -> None:
    cfg.FOUR_STEP.FEATURE_CACHE_GB = 0.0
    features = StageFeatures(cfg)
    features.start(3, one_by_one_model)
    features.stop(one_by_one_model)
    features.forget()
    assert one_by_one_model.feature_store is None and not (tmp_path / "run").exists()


def test_files_from_before(
    cfg: CfgNode, one_by_one_model: PaperRCNN, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They count, and step 4 reads those of step 3; a killed process's remains are removed."""
    root = tmp_path / "run" / "features"
    folder = root / features_digest(cfg, one_by_one_model)
    for other in (root / ("0" * 64), root / "mine", folder):
        other.mkdir(parents=True)
        (other / "x.features").write_bytes(b"1" * 5000)
    (folder / ".y.features.1a.partial").write_bytes(b"1" * 9000)
    compute = Compute()
    for step, expected in ((3, [1, 2, 3, 4, 5, 6, 7, 8]), (4, [1, 2, 3, 4, 5, 6, 7, 9])):
        features = StageFeatures(cfg)
        features.start(step, one_by_one_model)
        assert isinstance(one_by_one_model.feature_store, FeatureCache)
        assert ask(one_by_one_model.feature_store, compute, *map(image, range(8))) == expected
        with caplog.at_level(logging.INFO):
            features.stop(one_by_one_model)
        assert one_by_one_model.feature_store is None
    assert "features of 7 images were read, of 1 computed and of 0 of these kept" in caplog.text
    assert {p.name for p in root.iterdir()} == {folder.name, "mine"}
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 10_000
    features.forget()
    assert [p.name for p in root.iterdir()] == ["mine"]


def test_what_the_folder_depends_on(tiny_cfg: Any, one_by_one_model: PaperRCNN) -> None:
    digest = features_digest(tiny_cfg(), one_by_one_model)
    assert (
        features_digest(tiny_cfg("MODEL.WEIGHTS", "other.pth", "SEED", 9), one_by_one_model)
        == digest
    )
    found = {digest}
    for key, value in (
        ("MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0]),
        ("MODEL.PAPER_RCNN.WINOGRAD", False),
        ("MODEL.PAPER_RCNN.CHANNELS_LAST", False),
        ("MODEL.DEVICE", "cuda"),
        ("SOLVER.AMP.ENABLED", True),
    ):
        found.add(features_digest(tiny_cfg(key, value), one_by_one_model))
    torch.set_float32_matmul_precision("medium")
    found.add(features_digest(tiny_cfg(), one_by_one_model))
    torch.set_float32_matmul_precision("highest")
    with torch.no_grad():
        next(one_by_one_model.backbone.parameters()).view(-1)[0] += 1e-3
    found.add(features_digest(tiny_cfg(), one_by_one_model))
    assert len(found) == 8


def test_a_backbone_that_is_no_function_of_the_image(
    cfg: CfgNode, one_by_one_model: PaperRCNN, caplog: pytest.LogCaptureFixture
) -> None:
    one_by_one_model.backbone.norm = nn.BatchNorm2d(8)
    StageFeatures(cfg).start(3, one_by_one_model)
    assert one_by_one_model.feature_store is None
    assert "features are not kept: backbone.norm gives others" in caplog.text


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["FOUR_STEP.FEATURE_CACHE_GB", -1.0], "FEATURE_CACHE_GB is -1: it must be 0.0 .off. or m"),
        (["FOUR_STEP.FEATURE_CACHE_GB", float("nan")], "is nan: it must be"),
        (["FOUR_STEP.ENABLED", False], "ENABLED is False: .*Add FOUR_STEP.FEATURE_CACHE_GB 0.0"),
        (["INPUT.CROP.ENABLED", True], "at random .*Add INPUT.CROP.ENABLED False, or FOUR_STEP.F"),
        (
            ["INPUT.MIN_SIZE_TRAIN", (90, 99), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"],
            'at random .*Add INPUT.MIN_SIZE_TRAIN_SAMPLING "choice", or FOUR_STEP',
        ),
    ],
)
def test_refused(cfg: CfgNode, opts: list[Any], message: str) -> None:
    StageFeatures(cfg)
    cfg.merge_from_list(opts)
    with pytest.raises(UserError, match=message):
        StageFeatures(cfg)

"""Planned runs on small data sets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine.setup import setup_cfg
from frcnn_plugin.preflight import Finding, PlannedRun, preflight, schedule
from tests.small_demo import DEMO, SMALL


@pytest.fixture(scope="session")
def written_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's data set, six and three images; not to be changed."""
    folder = tmp_path_factory.mktemp("written") / "demo_shapes"
    return write_synthetic_voc(folder, num_trainval=6, num_test=3)


@pytest.fixture
def shapes(tmp_path: Path, written_shapes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    # Six images are too few for the demo's schedule, of which nothing else is wrong.
    monkeypatch.setattr(schedule, "_MANY_PASSES", 10_000)
    return Path(shutil.copytree(written_shapes, tmp_path / "demo_shapes"))


@pytest.fixture
def plan(shapes: Path) -> Callable[..., PlannedRun]:
    """A function that plans a run of the demo with overrides."""

    def build(*opts: Any, config: str = DEMO, **how: Any) -> PlannedRun:
        cfg = setup_cfg(config, [*SMALL, *map(str, opts)])
        return PlannedRun(cfg, config_file=config, opts=[*SMALL, *map(str, opts)], **how)

    return build


@pytest.fixture
def find(plan: Callable[..., PlannedRun]) -> Callable[..., list[Finding]]:
    """A function that gives the findings of such a run that are not "ok"."""

    def build(*opts: Any, **how: Any) -> list[Finding]:
        return [f for f in preflight(plan(*opts, **how)) if f.level != "ok"]

    return build


def only(findings: list[Finding], subject: str, level: str = "error") -> str:
    """The sentence of the one finding that there is."""
    assert [(f.subject, f.level) for f in findings] == [(subject, level)], findings
    return findings[0].sentence

"""The table of values: whole, and never in the way of a config that works."""

from __future__ import annotations

from pathlib import Path

import detectron2
import pytest

from frcnn_plugin.config import plugin_cfg
from frcnn_plugin.engine.same_run import NOT_KEYS
from frcnn_plugin.engine.setup import setup_cfg
from frcnn_plugin.errors import UserError
from frcnn_plugin.preflight import PlannedRun, check_values, stop_on_bad_values
from frcnn_plugin.preflight.ignored_keys import _IGNORED, check_ignored_keys
from frcnn_plugin.preflight.rules import typed, usual, value_of
from frcnn_plugin.preflight.values import ALLOWED
from tests.conftest import CONFIGS

SHIPPED = sorted(CONFIGS.rglob("*.yaml"))
ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"


def test_all_keys_exist() -> None:
    """A key with a typing mistake would guard nothing."""
    listed = [key for _, _, keys in _IGNORED for key in (*keys, *keys.values())]
    named = [word for entry in listed for word in entry.split() if word.count(".")]
    for key in {*ALLOWED, *named}:
        value_of(plugin_cfg(), key)


@pytest.mark.parametrize("config", SHIPPED, ids=lambda path: path.name)
@pytest.mark.parametrize("eval_only", [False, True])
def test_shipped_configs(config: Path, eval_only: bool) -> None:
    run = PlannedRun(setup_cfg(str(config)), config_file=str(config), eval_only=eval_only)
    assert list(check_values(run.cfg, trains=not eval_only)) == []
    assert list(check_ignored_keys(run)) == []


def test_saved_config_of_a_run(tmp_path: Path) -> None:
    """It has all keys, those that four-step training has set among them."""
    cfg = setup_cfg(str(CONFIGS / "demo" / "vgg16_shapes.yaml"))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    run = PlannedRun(setup_cfg(str(tmp_path / "config.yaml")), config_file="")
    run.config_file = str(tmp_path / "config.yaml")
    assert list(check_ignored_keys(run)) == []


@pytest.mark.skipif(not ZOO.is_dir(), reason="this Detectron2 has no model zoo")
def test_configs_of_detectron2() -> None:
    for file in sorted(ZOO.rglob("*.yaml")):
        cfg = plugin_cfg()
        cfg.merge_from_file(str(file))
        assert list(check_values(cfg)) == [], file
    assert list(check_values(plugin_cfg())) == []


def test_examples_are_good() -> None:
    assert list(check_values(usual())) == []


def test_a_value_as_it_is_typed() -> None:
    assert typed("A.B", 0.5) == "A.B 0.5"
    assert typed("A.B", (1, 2)) == 'A.B "(1, 2)"'
    assert typed("A.B", "") == 'A.B ""'


def test_all_errors_at_once() -> None:
    cfg = plugin_cfg()
    cfg.merge_from_list(["MODEL.RPN.NMS_THRESH", 7.0, "TEST.VOC_MATCH", "="])
    with pytest.raises(UserError) as caught:
        stop_on_bad_values(cfg)
    first, second = str(caught.value).split("\nerror: ")
    assert first.startswith("MODEL.RPN.NMS_THRESH is 7.0")
    assert second == "TEST.VOC_MATCH is '=': use one of >=, >"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SOLVER.BASE_RL", "SOLVER.BASE_LR"),
        ("BASE_LR", "SOLVER.BASE_LR"),
        ("SOLVER", "SOLVER."),
        ("training data", "the training data"),
        ("the number of proceses", "the number of processes"),
        ("initial weights", "the file of initial weights"),
        ("qqqq", "a key in full"),
    ],
)
def test_what_may_differ_exists(name: str, meant: str) -> None:
    cfg = plugin_cfg()
    cfg.RESUME_MAY_DIFFER = [name]
    (problem,) = check_values(cfg)
    assert f"there is no key {name!r}; did you mean {meant}" in problem.text
    cfg.RESUME_MAY_DIFFER = ["SOLVER.BASE_LR", *NOT_KEYS]
    assert list(check_values(cfg)) == []


def test_what_training_alone_reads() -> None:
    cfg = plugin_cfg()
    cfg.merge_from_list(["SOLVER.MAX_ITER", 0, "INPUT.MIN_SIZE_TRAIN", (), "SOLVER.GAMMA", 5.0])
    assert len(list(check_values(cfg))) == 3
    assert list(check_values(cfg, trains=False)) == []

"""From a YAML to a config: keys, files, overrides, device."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from frcnn_plugin import get_config_file
from frcnn_plugin.config import REMOVED_KEYS, plugin_cfg
from frcnn_plugin.config_files import merge_overrides
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.errors import UserError

DEMO = get_config_file("demo/vgg16_shapes_joint.yaml")


def problem(*opts: str, config: str = DEMO) -> str:
    with pytest.raises(UserError) as caught:
        setup_cfg(config, opts)
    return str(caught.value)


def test_cpu_is_chosen_without_cuda(caplog: pytest.LogCaptureFixture) -> None:
    cfg = setup_cfg(DEMO)
    if torch.cuda.is_available():
        assert cfg.MODEL.DEVICE == "cuda"
    else:
        assert cfg.MODEL.DEVICE == "cpu"
        assert "there is no CUDA: using the CPU" in caplog.text


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.NOTHING", "1"], "there is no key MODEL.NOTHING; did you mean "),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER"),
        (
            ["SOLVER.MAX_ITER"],
            "SOLVER.MAX_ITER has no value, it is the last word: overrides are pairs, KEY VALUE",
        ),
    ],
)
def test_overrides(opts: list[str], message: str) -> None:
    assert message in problem(*opts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  NOTHING: 1\n", r"{path}, line 2: there is no key MODEL\.NOTHING"),
        ("MODEL: [\n", "{path}, line 2 is not YAML: while parsing "),
        ("_BASE_: nothing.yaml\n", r"{path}, line 1: _BASE_: no config file '.*nothing\.yaml"),
    ],
)
def test_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    assert re.match(message.format(path=re.escape(str(path))), problem(config=str(path)))


def test_missing_config_file() -> None:
    assert "no config file 'configs/nothing.yaml'; give " in problem(config="configs/nothing.yaml")


def test_removed_keys_in_a_file_are_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a config.yaml that an earlier version saved; other keys of the file count."""
    assert "FOUR_STEP.FEATURE_CACHE_GB" in REMOVED_KEYS
    saved = yaml.safe_load(setup_cfg(DEMO, ["SEED", "12"]).dump())
    for section, name in (key.split(".") for key in REMOVED_KEYS):
        saved[section][name] = 0.0
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    cfg = setup_cfg(str(tmp_path / "config.yaml"))
    assert cfg.SEED == 12
    assert cfg.FOUR_STEP == setup_cfg(DEMO).FOUR_STEP
    assert all(f"(ignoring): {key}" in caplog.text for key in REMOVED_KEYS)


@pytest.mark.parametrize(("value", "told"), [("60", True), ("60.5", False), ("many", False)])
def test_whole_numbers_where_a_key_has_a_point(value: str, told: bool) -> None:
    try:
        merge_overrides(plugin_cfg(), ["MODEL.RPN.MIN_SIZE_IMAGE", value])
        message = ""
    except UserError as error:
        message = str(error)
    assert ("MODEL.RPN.MIN_SIZE_IMAGE 60: write the number with a point, 60.0" == message) is told
    assert bool(message) is (value != "60.5")


@pytest.mark.usefixtures("restore_catalogs")
def test_as_many_classes_as_the_data_sets_have(tmp_path: Path) -> None:
    """-1; also where only the files say which there are."""
    categories = [{"id": 4, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 9, "name": "cow"}]
    content = {"images": [], "annotations": [], "categories": categories}
    (tmp_path / "set.json").write_text(json.dumps(content))
    entry = {"name": "three", "json": str(tmp_path / "set.json"), "images": str(tmp_path)}
    one = ["MODEL.ROI_HEADS.NUM_CLASSES", "-1"]
    sets = ["DATASETS.REGISTER", str([entry]), "DATASETS.TRAIN", "('three',)"]
    assert setup_cfg("", [*sets, *one]).MODEL.ROI_HEADS.NUM_CLASSES == 3
    with pytest.raises(UserError, match="'thre' is not registered; did you mean three"):
        setup_cfg("", [*one, "DATASETS.TRAIN", "('thre',)"])
    with pytest.raises(UserError, match="TRAIN and TEST, which are empty: give the number"):
        setup_cfg("", [*one, "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"])

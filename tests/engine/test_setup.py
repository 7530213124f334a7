"""What stops a run before it starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg

from frcnn_plugin import add_frcnn_config, get_config_file
from frcnn_plugin.config import REMOVED_KEYS
from frcnn_plugin.data import SHAPE_CLASSES, load_voc_instances
from frcnn_plugin.data.proposals.checks import save_proposals
from frcnn_plugin.data.synthetic.generator import write_synthetic_voc
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.engine.setup import merge_overrides
from frcnn_plugin.errors import UserError
from frcnn_plugin.preflight import PlannedRun, stop_on_errors
from tests.conftest import CONFIGS

DEMO = get_config_file("demo/vgg16_shapes_joint.yaml")


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return write_synthetic_voc(tmp_path / "demo_shapes", num_trainval=4, num_test=2)


def problem(*opts: str, config: str = DEMO, eval_only: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        stop_on_errors(PlannedRun(setup_cfg(config, opts), eval_only=eval_only))
    return str(caught.value)


def test_demo_config_passes(shapes: Path) -> None:
    stop_on_errors(PlannedRun(setup_cfg(DEMO)))


def test_cpu_is_chosen_without_cuda(caplog: pytest.LogCaptureFixture) -> None:
    cfg = setup_cfg(DEMO)
    if torch.cuda.is_available():
        assert cfg.MODEL.DEVICE == "cuda"
    else:
        assert cfg.MODEL.DEVICE == "cpu"
        assert "there is no CUDA: using the CPU" in caplog.text


def test_missing_config_file() -> None:
    assert "no config file 'configs/nothing.yaml'" in problem(config="configs/nothing.yaml")


def test_unknown_key() -> None:
    assert problem("MODEL.NOTHING", "1") == "the command line: Non-existent key: MODEL.NOTHING"


def test_unknown_key_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("MODEL:\n  NOTHING: 1\n")
    message = problem(config=str(path))
    assert str(path) in message and "MODEL.NOTHING" in message


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
    node = get_cfg()
    add_frcnn_config(node)
    try:
        merge_overrides(node, ["MODEL.RPN.MIN_SIZE_IMAGE", value])
        message = ""
    except UserError as error:
        message = str(error)
    assert ("MODEL.RPN.MIN_SIZE_IMAGE. Write the number with a point" in message) is told
    assert bool(message) is (value != "60.5")


def test_file_that_is_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("MODEL: [\n")
    message = problem(config=str(path))
    assert f"{path} is no YAML: while parsing" in message and "line 2" in message


def test_missing_base(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("_BASE_: nothing.yaml\n")
    message = problem(config=str(path))
    assert f"{path}: its _BASE_ " in message
    assert "nothing.yaml cannot be read (No such file or directory)" in message


def test_wrong_type() -> None:
    assert "SOLVER.MAX_ITER" in problem("SOLVER.MAX_ITER", "many")


def test_odd_number_of_words() -> None:
    assert "KEY VALUE pairs, but there are 1 words: SOLVER.MAX_ITER" in problem("SOLVER.MAX_ITER")


def test_class_count(shapes: Path) -> None:
    message = problem("MODEL.ROI_HEADS.NUM_CLASSES", "4")
    assert "MODEL.ROI_HEADS.NUM_CLASSES 3" in message
    assert "circle, square, triangle" in message


def test_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    message = problem(
        *("MODEL.BACKBONE.FREEZE_AT", "0"), config=str(CONFIGS / "faster_rcnn_vgg16_voc_joint.yaml")
    )
    assert "VOCtrainval_06-Nov-2007.tar" in message and "make demo" in message
    assert str(tmp_path) in message


def test_unknown_data_set() -> None:
    assert "voc07_trainval" in problem("DATASETS.TRAIN", "('voc07_trainvla',)")


def test_nothing_to_train_on() -> None:
    assert "DATASETS.TRAIN is empty" in problem("DATASETS.TRAIN", "()")


def test_missing_weights(shapes: Path) -> None:
    assert "there is no file 'nothing.pth'" in problem("MODEL.WEIGHTS", "nothing.pth")


def test_frozen_random_layers(shapes: Path) -> None:
    message = problem("MODEL.BACKBONE.FREEZE_AT", "2")
    assert "FREEZE_AT is 2" in message and "MODEL.BACKBONE.FREEZE_AT 0" in message


def test_evaluation_without_weights(shapes: Path) -> None:
    assert "--eval-only needs trained weights" in problem(eval_only=True)


def test_steps_behind_the_end(shapes: Path) -> None:
    message = problem("SOLVER.STEPS", "(800,)", "SOLVER.MAX_ITER", "700")
    assert 'SOLVER.STEPS "(500,)"' in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="AMP works here")
def test_amp_of_a_stock_model_on_the_cpu(shapes: Path) -> None:
    stock = ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]
    message = problem("SOLVER.AMP.ENABLED", "True", *stock)
    assert "GeneralizedRCNN" in message and "SOLVER.AMP.ENABLED False" in message


FAST_RCNN = ["MODEL.LOAD_PROPOSALS", "True", "MODEL.PAPER_RCNN.PHASE", "fast_rcnn"]


def test_missing_proposal_file(shapes: Path) -> None:
    files = ["DATASETS.PROPOSAL_FILES_TRAIN", "('a.pkl',)"]
    message = problem(*FAST_RCNN, *files)
    assert "a.pkl" in message and "tools/dump_proposals.py" in message


def test_too_few_proposal_files(shapes: Path) -> None:
    message = problem(*FAST_RCNN)
    assert "DATASETS.TRAIN has 1 data sets and DATASETS.PROPOSAL_FILES_TRAIN 0 files" in message


def test_proposals_of_another_data_set(shapes: Path, tmp_path: Path) -> None:
    path = tmp_path / "test.pkl"
    test = load_voc_instances(shapes, "test", SHAPE_CLASSES)
    box, logit = np.array([[0, 0, 9, 9]], dtype=np.float32), np.zeros(1, dtype=np.float32)
    save_proposals(path, [d["image_id"] for d in test], [box] * len(test), [logit] * len(test))
    message = problem(*FAST_RCNN, "DATASETS.PROPOSAL_FILES_TRAIN", f"('{path}',)")
    assert str(path) in message and "no entry for image" in message

"""A run is resumed as the run that it was, or says what differs."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from frcnn_plugin.checkpoint.read import Peek, peek
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine.same_run import DATA, check_config, data_digest
from frcnn_plugin.errors import UserError
from tests.engine.joint_runs import JOINT, make_joint_trainer
from tests.four_step.four_step_runs import Stop, tiny_cfg

pytestmark = pytest.mark.usefixtures("with_data")

# What a run does without its network, as far as a resume looks at it.
OPTS = ["DATASETS.TEST", "()", "SOLVER.STEPS", "(3,)"]


@pytest.fixture(scope="module")
def stopped(with_data: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint run of four iterations that stopped after two."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    trainer = make_joint_trainer(folder, OPTS)
    trainer.register_hooks([Stop(1)])
    with pytest.raises(InterruptedError):
        trainer.train()
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def last(run: Path) -> Peek:
    return peek(run / (run / "last_checkpoint").read_text())


def refusal(run: Path, *opts: str) -> str:
    with pytest.raises(UserError) as caught:
        make_joint_trainer(run, [*OPTS, *opts], resume=True)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("SOLVER.BASE_LR", "0.1", "was 0.003 and is 0.1"),
        ("SOLVER.IMS_PER_BATCH", "1", "was 2 and is 1"),
        ("SOLVER.STEPS", "(1,3)", "was [] and is [1]"),  # it had not dropped by then
        ("SOLVER.STEPS", "(2,)", "was [] and is [2]"),  # the next rate is in the checkpoint
        ("SOLVER.CAFFE_MOMENTUM", "False", "was True and is False"),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "was False and is True"),
        ("MODEL.RPN.POSITIVE_FRACTION", "0.25", "was 0.5 and is 0.25"),
        ("MODEL.ROI_BOX_HEAD.DROPOUT", "0.25", "was 0.5 and is 0.25"),
        ("MODEL.PIXEL_MEAN", "[1.0,2.0,3.0]", "and is [1.0, 2.0, 3.0]"),
        ("INPUT.MAX_SIZE_TRAIN", "170", "was 160 and is 170"),
        ("DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False", "was True and is False"),
        ("DATASETS.TRAIN", "('tiny_test',)", "was ['tiny_trainval'] and is ['tiny_test']"),
        ("SEED", "4", "was 3 and is 4"),
        ("FOUR_STEP.ENABLED", "True", "was False and is True"),
    ],
)
def test_what_changes_the_result_is_named(run: Path, key: str, value: str, words: str) -> None:
    message = refusal(run, key, value)
    assert f"{key} was" in message and words in message
    assert key in message.partition('RESUME_MAY_DIFFER "[')[2]


def test_another_number_of_processes(run: Path) -> None:
    cfg = tiny_cfg(run, [*JOINT, *OPTS])
    check_config(cfg, last(run), 1)
    with pytest.raises(UserError, match="the number of processes was 1 and is 2"):
        check_config(cfg, last(run), 2)


@pytest.mark.parametrize(
    "opts",
    [
        ("SOLVER.MAX_ITER", "5"),
        ("SOLVER.STEPS", "(4,)"),
        ("DATALOADER.NUM_WORKERS", "1"),
        ("SOLVER.CHECKPOINT_PERIOD", "2"),
        ("TEST.EVAL_PERIOD", "0"),
        ("TEST.DETECTIONS_PER_IMAGE", "7"),
        ("INPUT.MIN_SIZE_TEST", "80"),
        ("DATASETS.TEST", "('tiny_test',)"),
        ("MODEL.WEIGHTS", "somewhere/else.pth"),
    ],
)
def test_what_changes_no_result_may_change(run: Path, opts: tuple[str, str]) -> None:
    check_config(tiny_cfg(run, [*JOINT, *OPTS, *opts]), last(run), 1)


def test_in_four_steps_what_proposals_are_made_with_counts(run: Path) -> None:
    """Stages 2 and 4 train on what was found at the size of a test image."""
    file = run / (run / "last_checkpoint").read_text()
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["frcnn_plugin"]["config"] = tiny_cfg(run).dump()
    torch.save(checkpoint, file)
    check_config(tiny_cfg(run, ["FOUR_STEP.STOP_AFTER", "2"]), last(run), 1)
    with pytest.raises(UserError, match=r"INPUT.MIN_SIZE_TEST was 96 and is 80"):
        check_config(tiny_cfg(run, ["INPUT.MIN_SIZE_TEST", "80"]), last(run), 1)


def test_going_on_all_the_same(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The new value is then the one that is trained with; what the message says is what to type."""
    change = ["SOLVER.BASE_LR", "0.1", "SOLVER.MOMENTUM", "0.5"]
    option = refusal(run, *change).partition('add RESUME_MAY_DIFFER "')[2].rstrip('"')
    opts = [*OPTS, *change, "RESUME_MAY_DIFFER", option]
    trainer = make_joint_trainer(run, opts, resume=True)
    assert "RESUME_MAY_DIFFER: SOLVER.BASE_LR was 0.003 and is 0.1; SOLVER.MOMENTUM" in caplog.text
    weights, biases = {g["lr"] for g in trainer.optimizer.param_groups[:1]}, trainer.scheduler
    assert weights == {0.1} and biases.base_lrs[0] == 0.1
    assert {g["momentum"] for g in trainer.optimizer.param_groups} == {0.5}
    assert trainer.start_iter == 2 and trainer.optimizer.state  # the momentum itself is kept
    # Nothing but what is named.
    assert "INPUT.MAX_SIZE_TRAIN" in refusal(run, *opts[4:], "INPUT.MAX_SIZE_TRAIN", "170")


# ---- data ---------------------------------------------------------------------------------------


def edit(pattern: str, new: Callable[[re.Match[str]], str]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        """Change the first object of the training set."""
        ids = (root / "ImageSets" / "Main" / "trainval.txt").read_text().split()
        files = [root / "Annotations" / f"{name}.xml" for name in ids]
        file = next(f for f in files if re.search(pattern, f.read_text()))
        file.write_text(re.sub(pattern, new, file.read_text(), count=1))

    return change


def other_order(root: Path) -> None:
    file = root / "ImageSets" / "Main" / "trainval.txt"
    file.write_text("\n".join(reversed(file.read_text().split())))


def one_less(root: Path) -> None:
    file = root / "ImageSets" / "Main" / "trainval.txt"
    file.write_text("\n".join(file.read_text().split()[:-1]))


@pytest.mark.parametrize(
    "change",
    [
        edit(
            "<name>(circle|square|triangle)",
            lambda m: "<name>circle" if m[1] != "circle" else "<name>square",
        ),
        edit(r"<xmax>(\d+)", lambda m: f"<xmax>{int(m[1]) - 1}"),
        edit("<difficult>0", lambda m: "<difficult>1"),
        other_order,
        one_less,
    ],
)
def test_changed_data_are_noticed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    root = tmp_path / "data" / "tiny"
    write_synthetic_voc(root, num_trainval=6, num_test=2)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    cfg = tiny_cfg(run, [*JOINT, *OPTS])
    assert data_digest(cfg) == last(run).content["trainer"]["run"][DATA]  # wherever they lie
    change(root)
    assert "the training data was " in refusal(run)
    option = "['the training data']"
    assert make_joint_trainer(run, [*OPTS, "RESUME_MAY_DIFFER", option], resume=True).start_iter


def test_a_checkpoint_without_the_record(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of an earlier version: not compared, and that is said once."""
    file = run / (run / "last_checkpoint").read_text()
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["trainer"]["run"], checkpoint["frcnn_plugin"]["config"]
    torch.save(checkpoint, file)
    with caplog.at_level(logging.INFO):
        assert make_joint_trainer(run, [*OPTS, "SEED", "4"], resume=True).start_iter == 2
    assert caplog.text.count("does not say on which data: not compared") == 1


def test_resume_where_there_is_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It starts, as clusters always pass --resume; the check before the run has said so."""
    assert make_joint_trainer(tmp_path / "typo", OPTS, resume=True).start_iter == 0
    assert "--resume" not in caplog.text

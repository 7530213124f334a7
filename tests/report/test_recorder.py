"""What a training notes for its report."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.engine import HookBase

from frcnn_plugin.errors import UserError
from frcnn_plugin.report import RunRecorder, write_report
from frcnn_plugin.report.recorder import RunRecord
from tests.four_step.four_step_runs import make_trainer


class Stop(HookBase):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            self.fail()

    def fail(self) -> None:
        raise RuntimeError("stopped by the test")


def run(folder: Path, *opts: str, stop: int | None = None, resume: bool = False) -> RunRecord:
    trainer = make_trainer(folder, opts, resume=resume)
    trainer.register_hooks([RunRecorder(trainer.cfg)])
    if stop is None:
        trainer.train()
    else:
        trainer.register_hooks([Stop(stop)])
        with pytest.raises(RuntimeError, match="stopped by the test"):
            trainer.train()
    record = RunRecord.load(folder)
    assert record is not None
    return record


@pytest.mark.usefixtures("with_data")
def test_stopped_and_resumed(four_step_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages of 4 iterations, a checkpoint after iteration 5, stopped before 7."""
    folder = four_step_root / "recorded"
    first = run(folder, stop=7)
    assert [row["stage"] for row in first.plan] == ["1 RPN", "2 detector", "3 RPN", "4 detector"]
    (session,) = first.sessions
    assert session.environment["device"] == "cpu"
    assert {"frcnn_plugin", "PyTorch", "torchvision", "processes"} <= session.environment.keys()
    assert list(session.ends) == ["1"]
    assert session.ended is not None and not session.complete

    monkeypatch.setattr(sys, "argv", ["frcnn", "train", "--resume"])
    second = run(folder, resume=True)
    assert second.plan == first.plan, "what trains is that of the config, not of stage 2"
    assert second.sessions[0] == session
    resumed = second.sessions[1]
    assert resumed.first == 6 and resumed.complete
    assert resumed.command == ["frcnn", "train", "--resume"]
    assert list(resumed.ends) == ["2", "3", "4"]
    times = [0.0, *resumed.ends.values(), resumed.ended or 0.0]
    assert times == sorted(times) and times[1] > 0

    page = write_report(folder).read_text()
    assert "resumed at iteration 6" in page and ">finished</p>" in page
    for line in (folder / "metrics.json").read_text().splitlines():
        assert json.loads(line)


@pytest.mark.usefixtures("with_data")
def test_run_that_goes_on_beyond_where_it_was_to_stop(four_step_root: Path) -> None:
    folder = four_step_root / "one_step"
    first = run(folder, "FOUR_STEP.STOP_AFTER", "1")
    assert len(first.plan) == 1 and first.sessions[-1].complete
    second = run(folder, "FOUR_STEP.STOP_AFTER", "2", resume=True)
    assert len(second.plan) == 2 and "STOP_AFTER: 2" in second.config


@pytest.mark.usefixtures("with_data")
def test_new_run_in_the_same_folder(four_step_root: Path) -> None:
    folder = four_step_root / "anew"
    run(folder, "FOUR_STEP.STOP_AFTER", "1")
    (folder / "last_checkpoint").unlink()  # --overwrite
    record = run(folder, "FOUR_STEP.STOP_AFTER", "1")
    assert len(record.sessions) == 1


@pytest.mark.usefixtures("with_data")
def test_damaged_record_does_not_stop_a_training(
    four_step_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = four_step_root / "damaged"
    run(folder, "FOUR_STEP.STOP_AFTER", "1")
    (folder / "run.json").write_text('{"plan": ')
    with pytest.raises(UserError, match=r"run.json holds no record of a training .*; remove it"):
        RunRecord.load(folder)
    record = run(folder, "FOUR_STEP.STOP_AFTER", "2", resume=True)
    assert len(record.sessions) == 1 and record.sessions[0].first == 4
    assert "the report will lack the time before this" in caplog.text


@pytest.mark.usefixtures("with_data")
def test_error_before_training_is_not_hidden(
    four_step_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stop, "before_train", Stop.fail)
    trainer = make_trainer(four_step_root / "early")
    trainer.register_hooks([Stop(0), RunRecorder(trainer.cfg)])
    with pytest.raises(RuntimeError, match="stopped by the test"):
        trainer.train()
    assert RunRecord.load(four_step_root / "early") is None


@pytest.mark.usefixtures("with_data")
@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("write_json", OSError(28, "No space left on device"), "[Errno 28] No space left"),
        ("environment", ValueError("odd system"), "ValueError: odd system"),
    ],
)
def test_what_cannot_be_noted_does_not_stop_a_training(
    function: str,
    error: Exception,
    message: str,
    four_step_root: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"frcnn_plugin.report.recorder.{function}", fail)
    trainer = make_trainer(four_step_root / function, ["FOUR_STEP.STOP_AFTER", "1"])
    trainer.register_hooks([RunRecorder(trainer.cfg)])
    trainer.train()
    assert f"run.json is not written: {message}" in caplog.text


def test_importing_the_recorder_loads_nothing_that_draws() -> None:
    """Nor the trainer: your own may use it."""
    code = (
        "import sys, frcnn_plugin.report, frcnn_plugin.evaluation\n"
        "rooms = {'frcnn_plugin.engine', 'frcnn_plugin.visualization', 'matplotlib'}\n"
        "print(rooms & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


FINAL = "training is finished: {}/model_final.pth"
BEST = "  best: {}/model_best.pth (bbox/AP50 35.2 after iteration 10)"
LAST = "  best: {}/model_best.pth (bbox/AP50 35.2 after iteration 16)"
REPORT = "  report: frcnn report '{}'"
PREDICT = "  predict: frcnn predict --weights '{}/%s.pth' IMAGES"


@pytest.mark.usefixtures("with_data")
@pytest.mark.parametrize(
    ("stop_after", "best", "lines"),
    [
        (4, None, [FINAL, REPORT, PREDICT % "model_final"]),
        (4, 9, [FINAL, BEST, REPORT, PREDICT % "model_best"]),
        (4, 16, [FINAL, LAST, REPORT, PREDICT % "model_best"]),  # evaluated when all are done
        (2, None, [FINAL, REPORT]),  # no whole detector
    ],
)
def test_the_end_says_what_to_do_now(
    stop_after: int,
    best: int | None,
    lines: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Words that a shell takes as they are, also with a space in the path."""
    folder = tmp_path / "my run"
    trainer = make_trainer(folder, ["FOUR_STEP.STOP_AFTER", str(stop_after)])
    recorder = RunRecorder(trainer.cfg)
    trainer.register_hooks([recorder])
    if best is not None:
        note = {"metric": "bbox/AP50", "value": 35.23, "iteration": best, "compared": best}
        (folder / "model_best.json").write_text(json.dumps(note))
        (folder / "model_best.pth").touch()
    recorder.before_train()
    trainer.iter = trainer.max_iter
    with caplog.at_level(logging.INFO):
        recorder.after_train()
    assert caplog.messages[-1].splitlines() == [line.format(folder) for line in lines]

"""The output folder: free, writable, or held by a run."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from frcnn_plugin.preflight.output import check_output
from tests.preflight.conftest import only


def leave_run(folder: Path, iteration: int = 99, name: str = "model_0000099.pth") -> Path:
    """What an interrupted run leaves."""
    folder.mkdir(parents=True)
    torch.save({"model": {}, "iteration": iteration}, folder / name)
    (folder / "last_checkpoint").write_text(name)
    return folder


def test_run_in_the_folder(find, tmp_path: Path) -> None:
    folder = leave_run(tmp_path / "run")
    sentence = only(find("OUTPUT_DIR", folder), "output")
    assert "holds a run already:" in sentence
    (folder / "run.lock").touch()
    sentence = only(find("OUTPUT_DIR", folder), "output")
    assert "holds a run already, which may still be going on:" in sentence
    assert "--resume" in sentence and "--overwrite" in sentence
    findings = find("OUTPUT_DIR", folder, overwrite=True)
    assert "is overwritten" in only(findings, "output", "warning")


def test_stale_last_checkpoint(find, tmp_path: Path) -> None:
    folder = leave_run(tmp_path / "run")
    (folder / "last_checkpoint").write_text("model_0000199.pth")
    sentence = only(find("OUTPUT_DIR", folder, resume=True), "weights")
    missing = f"there is no file {folder}/model_0000199.pth. {folder}/last_checkpoint"
    assert missing in sentence
    assert "write the name of another one into it" in sentence and "(model_0000099.pth)" in sentence


@pytest.mark.parametrize(
    ("iteration", "level", "message"),
    [(99, "ok", "at iteration 100 of 1,200"), (1199, "warning", "nothing is left to train")],
)
def test_resuming(plan, tmp_path: Path, iteration: int, level: str, message: str) -> None:
    run = plan("OUTPUT_DIR", leave_run(tmp_path / "run", iteration), resume=True)
    (finding,) = check_output(run)
    assert finding.level == level and message in finding.text


def test_nothing_to_resume(find, tmp_path: Path) -> None:
    sentence = only(find("OUTPUT_DIR", tmp_path / "no", resume=True), "output", "warning")
    assert "training starts at iteration 0" in sentence and "OUTPUT_DIR" in sentence


def test_last_checkpoint_is_lost_or_damaged(find, tmp_path: Path) -> None:
    folder = leave_run(tmp_path / "run")
    (folder / "last_checkpoint").unlink()
    sentence = only(find("OUTPUT_DIR", folder, resume=True), "output", "warning")
    assert f"write model_0000099.pth into {folder / 'last_checkpoint'}" in sentence
    (folder / "last_checkpoint").write_bytes(b"\xff\x00\xfe")
    sentence = only(find("OUTPUT_DIR", folder, resume=True), "weights")
    assert f"no checkpoint named in {folder}/last_checkpoint" in sentence
    assert "(model_0000099.pth)" in sentence
    assert only(find("OUTPUT_DIR", folder, overwrite=True), "output", "warning")


def test_log_of_another_run(find, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").touch()
    assert "metrics.json" in only(find("OUTPUT_DIR", tmp_path / "run"), "output", "warning")


def test_read_only_folder(find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permission bits do not stop root, who may be running the tests.
    def refuse(dir: Any) -> Any:
        assert dir == tmp_path  # where the folder would be made
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    sentence = only(find("OUTPUT_DIR", tmp_path / "a" / "b"), "output")
    assert f"{tmp_path}/a/b cannot be written to (Permission denied)" in sentence
    assert "OUTPUT_DIR /tmp/run" in sentence

"""The output folder and the disk."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from frcnn_plugin.preflight.disk import checkpoint_bytes, checkpoints, stage_files
from frcnn_plugin.preflight.output import check_output, resumed_iteration
from tests.preflight.conftest import only

Usage = namedtuple("Usage", "total used free")


def leave_run(folder: Path, iteration: int = 99, name: str = "model_0000099.pth") -> Path:
    """What an interrupted run leaves."""
    folder.mkdir(parents=True)
    torch.save({"model": {}, "iteration": iteration}, folder / name)
    (folder / "last_checkpoint").write_text(name)
    return folder


def test_run_in_the_folder(find, tmp_path: Path) -> None:
    folder = leave_run(tmp_path / "run")
    sentence = only(find("OUTPUT_DIR", folder), "output")
    assert (
        "holds a run already" in sentence and "--resume" in sentence and "--overwrite" in sentence
    )


def test_overwriting_is_said(find, tmp_path: Path) -> None:
    findings = find("OUTPUT_DIR", leave_run(tmp_path / "run"), overwrite=True)
    assert "is overwritten" in only(findings, "output", "warning")


def test_stale_last_checkpoint(find, tmp_path: Path) -> None:
    folder = leave_run(tmp_path / "run")
    (folder / "last_checkpoint").write_text("model_0000199.pth")
    sentence = only(find("OUTPUT_DIR", folder, resume=True), "weights")
    assert (
        f"there is no checkpoint {folder}/model_0000199.pth. {folder}/last_checkpoint" in sentence
    )
    assert "write the name of another one into it" in sentence and "(model_0000099.pth)" in sentence


def test_resuming_says_where(plan, tmp_path: Path) -> None:
    run = plan("OUTPUT_DIR", leave_run(tmp_path / "run"), resume=True)
    assert resumed_iteration(run) == 100
    (finding,) = check_output(run)
    assert finding.level == "ok" and "at iteration 100 of 1,200" in finding.text


def test_finished_run(find, tmp_path: Path) -> None:
    folder = leave_run(tmp_path / "run", 1199)
    findings = [f for f in find("OUTPUT_DIR", folder, resume=True) if f.subject == "output"]
    assert "nothing is left to train" in only(findings, "output", "warning")


def test_nothing_to_resume(find, tmp_path: Path) -> None:
    sentence = only(find("OUTPUT_DIR", tmp_path / "no", resume=True), "output", "warning")
    assert "training starts at iteration 0" in sentence and "OUTPUT_DIR" in sentence


def test_log_of_another_run(find, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").touch()
    assert "metrics.json" in only(find("OUTPUT_DIR", tmp_path / "run"), "output", "warning")


def test_read_only_folder(find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permission bits do not stop root, which tests may be run as.
    def refuse(dir: Any) -> Any:
        assert dir == tmp_path  # where the folder would be made
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    sentence = only(find("OUTPUT_DIR", tmp_path / "a" / "b"), "output")
    assert f"{tmp_path}/a/b cannot be written to (Permission denied)" in sentence
    assert "OUTPUT_DIR /tmp/run" in sentence


def test_output_below_a_file(find, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in only(find("OUTPUT_DIR", tmp_path / "file" / "run"), "output")


@pytest.mark.parametrize(("part", "level", "kept"), [(0.0, "error", 1), (1 / 0.9, "warning", 106)])
def test_full_disk(
    find, plan, monkeypatch: pytest.MonkeyPatch, part: float, level: str, kept: int
) -> None:
    """1200 iterations, every tenth and the final one: 121; 0.8 / 0.9 of them are 107."""
    opts = ["SOLVER.CHECKPOINT_PERIOD", "10", "SOLVER.CHECKPOINTS_KEPT", "0"]
    free = int(part * sum(checkpoints(plan(*opts))))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40 - free, free))
    sentence = only(find(*opts), "disk", level)
    assert "(121 checkpoints of up to" in sentence and "are free in" in sentence
    assert sentence.endswith(f"or keep fewer: SOLVER.CHECKPOINTS_KEPT {kept}")


def test_kept_checkpoints(plan) -> None:
    """Three, the best and the final one."""
    opts = ["SOLVER.CHECKPOINT_PERIOD", "10"]
    assert len(checkpoints(plan(*opts))) == 4
    assert len(checkpoints(plan(*opts, "TEST.EVAL_PERIOD", "100"))) == 5


def test_sizes_of_checkpoints(plan) -> None:
    """Weights and momentum of all parameters, 4 bytes each; every 600 of 1200 and at the end."""
    run = plan()
    parameters = sum(p.numel() for p in run.model.parameters())
    assert checkpoints(run) == [parameters * 8] * 3
    assert stage_files(run) == 0


def test_a_resumed_run_writes_less(plan, tmp_path: Path) -> None:
    folder = leave_run(tmp_path / "run", 599)
    assert len(checkpoints(plan("OUTPUT_DIR", folder, resume=True))) == 2


def test_sizes_of_four_steps(plan, shapes: Path) -> None:
    run = plan(config=str(Path(__file__).parents[2] / "configs" / "demo" / "vgg16_shapes.yaml"))
    sizes = {
        name: 4 * sum(p.numel() for p in module.parameters())
        for name, module in run.model.named_children()
    }
    weights = sum(sizes.values())
    # Step 1 (iterations 0 to 399) trains backbone and RPN, step 3 (2100 to 2299) the RPN alone.
    assert checkpoint_bytes(run, 0) == weights + sizes["backbone"] + sizes["proposal_generator"]
    assert checkpoint_bytes(run, 2299) == weights + sizes["proposal_generator"]
    # Initial weights; a checkpoint per step, with the momentum of backbone and both heads, twice
    # each; 300 boxes of 5 numbers for the training images and 3 test images, in steps 1 and 3.
    momentum = 2 * (sizes["backbone"] + sizes["proposal_generator"] + sizes["roi_heads"])
    train = run.size("shapes_trainval")
    assert stage_files(run) == 5 * weights + momentum + 2 * (train + 3) * 300 * 20

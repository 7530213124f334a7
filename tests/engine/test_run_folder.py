"""One run at a time in a folder; starting anew removes the old run and nothing else."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from frcnn_plugin import get_config_file
from frcnn_plugin.engine import forget_run, lock_output, run_folder, setup_cfg
from frcnn_plugin.engine.run_folder import LOCK_FILE, check_shared
from frcnn_plugin.errors import UserError

HOLD = """
import sys, time
from frcnn_plugin.engine.run_folder import lock_output
with lock_output(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the folder."""
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_and_told_by_whom(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    for _ in range(2):
        with (
            pytest.raises(
                UserError, match=rf"{tmp_path} is in use by process {holder.pid} on \S+, since 20"
            ) as caught,
            lock_output(tmp_path),
        ):
            pass
        assert "\n" not in str(caught.value)
    holder.kill()  # leaves the file
    holder.wait()
    assert (tmp_path / LOCK_FILE).is_file()
    with lock_output(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"process": ',
        b"[]",
        b"\xff\xfe",
        b'{"host": "elsewhere", "process": 1, "namespace": "pid:[4026531836]"}',
        json.dumps({"host": "gone", "process": os.getppid()}).encode(),
    ],
)
def test_a_file_left_over_is_no_lock(tmp_path: Path, content: bytes) -> None:
    """Whoever wrote it: the kernel knows that nobody has it."""
    (tmp_path / LOCK_FILE).write_bytes(content)
    with lock_output(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def sleep() -> None:
    time.sleep(60)


def test_workers_do_not_keep_the_lock(tmp_path: Path) -> None:
    """Those of a data loader outlive a killed parent for some seconds."""
    with lock_output(tmp_path):
        worker = multiprocessing.get_context("fork").Process(target=sleep)
        worker.start()
    with lock_output(tmp_path):
        pass
    worker.kill()
    worker.join()


@pytest.mark.parametrize(
    ("holder", "refused"),
    [
        ({"host": "elsewhere"}, True),
        ({"namespace": "pid:[1]"}, True),
        ({"process": os.getppid()}, True),
        ({"process": 2**22 + 1}, False),  # above the largest process id
        ({"process": "x"}, False),
        ({}, False),  # this very process
    ],
)
def test_without_locks_the_file_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: dict[str, Any], refused: bool
) -> None:
    with lock_output(tmp_path):
        ours = json.loads((tmp_path / LOCK_FILE).read_text())
    (tmp_path / LOCK_FILE).write_text(json.dumps(ours | holder))

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    if refused:
        with (
            pytest.raises(UserError, match=r"in use by .* remove .*run.lock"),
            lock_output(tmp_path),
        ):
            pass
    else:
        with lock_output(tmp_path):
            pass


def test_a_folder_that_cannot_be_written_is_the_checks_affair(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with lock_output(tmp_path / "file" / "run"):
        pass


def test_half_written_files_are_removed(tmp_path: Path) -> None:
    names = [
        "last_checkpoint.partial", "model_0000003.pth.partial", ".run.json.0123abcd.partial",
        "proposals/stage1/.t.pkl.0123abcd.partial", "inference/t/.evaluation.json.00000000.partial",
    ]  # fmt: skip
    mine = ["my.partial", "notes/.a.0123abcd.partial", "model.pth", "a.partial.txt"]
    for name in [*names, *mine]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    with lock_output(tmp_path):
        pass
    assert files(tmp_path) == set(mine)


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_starting_anew_removes_the_old_run_and_nothing_else(tmp_path: Path) -> None:
    run = [
        "last_checkpoint", "initial_weights.pth", "stage1_final.pth", "model_0000003.pth",
        "model_final.pth", "model_best.pth", "model_best.json", "stage2_best.pth", "metrics.json",
        "run.json", "log.txt", "log.txt.rank1", "events.out.tfevents.1.host.2.0",
        "proposals/stage1/t.pkl", "proposals/stage3/t.recall.png", "inference/t/evaluation.json",
    ]  # fmt: skip
    mine = [
        "notes.txt", "model.pth", "my_model_final.pth", "photos/log.txt", "stage1_final.pth.bak",
        "proposals/mine.pkl", "inference/t/proposals.pkl", "model_12.pth", "weights/model_best.pth",
    ]  # fmt: skip
    named = ["stage2_final.pth", "model_0000009.pth"]
    for name in [*run, *mine, *named]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link.pth").symlink_to("stage2_final.pth")
    cfg = setup_cfg(
        get_config_file("demo/vgg16_shapes.yaml"),
        [
            *("OUTPUT_DIR", str(tmp_path), "MODEL.WEIGHTS", str(tmp_path / "link.pth")),
            *(
                "FOUR_STEP.INITIAL_WEIGHTS",
                str(tmp_path / "inference" / ".." / "model_0000009.pth"),
            ),
        ],
    )
    for _ in range(2):  # the second time there is nothing
        forget_run(cfg)
        assert files(tmp_path) == {*mine, *named, "link.pth"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Without a trace of where it was noticed; alone, a process sees what it has written."""
    check_shared(str(tmp_path / "new"))
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]

    def touch(*args: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written: {os.strerror(code)}"):
        check_shared(str(tmp_path))


def test_without_fcntl_runs_are_not_locked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on Windows."""
    monkeypatch.setitem(sys.modules, "fcntl", None)  # importing it is an ImportError
    assert run_folder.__file__
    name = f"{run_folder.__package__}.without_fcntl"
    spec = importlib.util.spec_from_file_location(name, run_folder.__file__)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.lock_output(tmp_path), module.lock_output(tmp_path):
        assert not list(tmp_path.iterdir())

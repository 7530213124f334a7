"""Worker processes, settings of this one, and what can be said of it."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.multiprocessing import ProcessRaisedException

from frcnn_plugin import process
from frcnn_plugin.cli import __main__ as cli
from frcnn_plugin.cli import train
from frcnn_plugin.cli.__main__ import COMMANDS
from frcnn_plugin.errors import UserError
from frcnn_plugin.process import launch


def add(a: int, b: int) -> int:
    return a + b


def check_ranks(path: str) -> None:
    ranks = comm.all_gather(comm.get_rank())
    if comm.is_main_process():
        with open(path, "w") as file:
            file.write(str(ranks))


def make_a_mistake() -> None:
    raise UserError("MODEL.X is 1: set MODEL.X 2")


def test_single_process_returns_its_result() -> None:
    assert launch(add, 1, args=(2, 3)) == 5


def test_two_processes_meet_and_end(tmp_path) -> None:
    path = tmp_path / "ranks"
    assert launch(check_ranks, 2, args=(str(path),)) is None
    assert path.read_text() == "[0, 1]"


def test_a_mistake_found_by_a_worker_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^MODEL.X is 1: set MODEL.X 2$"):
        launch(make_a_mistake, 2)


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ProcessRaisedException("Traceback ...\nZeroDivisionError: not the user's", 0, 1)

    monkeypatch.setattr(process, "detectron2_launch", fail)
    with pytest.raises(ProcessRaisedException, match="ZeroDivisionError: not the user's"):
        launch(add, 2)


def test_no_process_outlives_an_interrupted_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would write into a folder whose lock is free again."""
    context = multiprocessing.get_context("spawn")
    other, rank = (context.Process(target=time.sleep, args=(60,), daemon=True) for _ in range(2))
    other.start()

    def interrupted(*_: object, **__: object) -> None:
        rank.start()
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "detectron2_launch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch(print, 2)
    assert not rank.is_alive() and other.is_alive()
    other.kill()


def test_importing_changed_nothing() -> None:
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is changed with CUDA")
@pytest.mark.parametrize(
    ("inputs", "used", "precision"),
    [(torch.float64, True, "medium"), (torch.bfloat16, False, "highest")],
    ids=["exact", "rounded as with AMX"],
)
def test_matmul(
    monkeypatch: pytest.MonkeyPatch, inputs: torch.dtype, used: bool, precision: str
) -> None:
    """oneDNN is used if products are exact."""

    def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype == torch.float32:
            a, b = a.to(inputs), b.to(inputs)
            return torch.matmul(a.double(), b.double()).float()
        return torch.matmul(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    assert process.use_faster_matmul() is used
    assert torch.get_float32_matmul_precision() == precision


def test_matmul_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not process.use_faster_matmul()
    assert torch.get_float32_matmul_precision() == "highest"


def test_other_systems_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: object())  # without mallopt, as musl
    assert not process.keep_freed_memory()
    monkeypatch.setattr(process.sys, "platform", "darwin")
    assert not process.keep_freed_memory()


KEPT = """
import numpy
from pathlib import Path
from frcnn_plugin.process import keep_freed_memory
def rss():
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmRSS")) // 1024
def left():
    before = rss()
    block = numpy.ones(100 * 2**20, dtype=numpy.uint8)
    del block
    return rss() - before
by_default = left()
assert keep_freed_memory()
print(by_default, left())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about Linux's C library")
def test_memory_is_kept() -> None:
    """100 MiB are freed: with the setting they stay with the process, here one of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KEPT], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    by_default, kept = map(int, done.stdout.split())
    assert kept > 90 and by_default < 10


def test_environment() -> None:
    """Detectron2's list, a row for each name, with what it does not know."""
    values = process.environment()
    assert {"frcnn_plugin", "Python", "numpy", "PyTorch", "torchvision", "CPU"} <= values.keys()
    assert values["PyTorch"].startswith(torch.__version__) and values["processes"] == "1"
    assert all(isinstance(value, str) for value in values.values())


TABLE = """
-------------  -------------
Python         3.11.7 (main)
GPU 0,1        A GPU
               of two lines
-------------  -------------
PyTorch built with:
  - GCC 13.3
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TABLE, {"Python": "3.11.7 (main)", "GPU 0,1": "A GPU of two lines"}),
        ("Python: 3.11", {}),  # a list in another form is left out
    ],
)
def test_environment_reads_detectron2s_table(
    text: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "collect_env_info", lambda: text)
    values = process.environment()
    ours = {"frcnn_plugin", "system", "CPU", "processes"}
    assert {name: value for name, value in values.items() if name not in ours} == expected


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}
# What SLURM 22.05 sets in a batch script, and in addition in what srun starts.
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
SRUN = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.fixture
def variables(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN | SRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("variables", [TORCHRUN, SRUN, {**SRUN, "MASTER_ADDR": "a"}], indirect=True)
@pytest.mark.parametrize("command", COMMANDS)
def test_only_train_works_under_a_launcher(
    variables: None,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Others would do the same work in each process, and write over each other's files."""
    runs = argparse.Namespace(run=lambda _: print("runs"))
    monkeypatch.setattr(cli, "parse", lambda words: (runs, argparse.Namespace()))
    status = cli.main(command.split())
    out, err = capsys.readouterr()
    if command == "train":
        assert (status, out) == (0, "runs\n")
    else:
        assert (status, out) == (1, "")
        assert err.count("\n") == 1 and "has started 2 processes" in err


@pytest.mark.parametrize(
    "variables",
    [
        {**BATCH, "MASTER_ADDR": "a"},
        # The shell that salloc opens with LaunchParameters=use_interactive_step.
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "MASTER_ADDR": "a"},
        {**SRUN, "SLURM_PROCID": "x", "MASTER_ADDR": "a"},
        {"WORLD_SIZE": "2", "MASTER_ADDR": "a"},  # names that anybody may use
        {**TORCHRUN, "MASTER_ADDR": ""},
    ],
    indirect=True,
)
def test_a_process_that_was_started_alone_is_told_from_others(variables: None) -> None:
    """Under a batch script's variables it would wait for tasks that nobody starts."""
    assert process.join_launcher() == 0
    assert launch(add, 1, args=(2, 3)) == 5


@pytest.mark.parametrize("count", ["", "0", "x", "1"])
def test_odd_variables_of_launchers_are_no_traceback(
    count: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
    monkeypatch.setattr(train, "_prepare", lambda *_: [])
    monkeypatch.setattr(train, "launch", lambda *_, **__: None)
    _, args = cli.parse(["train"])
    train.run(args)
    assert args.resume is (count not in ("", "0"))


@pytest.mark.parametrize("variables", [SRUN], indirect=True)
def test_srun_needs_an_address(variables: None) -> None:
    with pytest.raises(UserError, match="has started 2 processes, but MASTER_ADDR is not set"):
        process.join_launcher()
    with pytest.raises(UserError, match="would do all the work"):
        launch(add, 1, args=(2, 3))


@pytest.mark.parametrize(
    ("variables", "words", "warned"),
    [
        (BATCH, [], True),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, [], True),
        (BATCH, ["--num-gpus", "2"], False),
        ({**BATCH, "SLURM_NTASKS": "1"}, [], False),
        ({}, [], False),
    ],
    indirect=["variables"],
)
def test_tasks_that_nothing_uses_are_told(
    variables: None,
    words: list[str],
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(train, "_prepare", lambda *_: [])
    monkeypatch.setattr(train, "launch", lambda *_, **__: None)
    _, args = cli.parse(["train", *words])
    train.run(args)
    assert ("this SLURM job has 2 tasks" in capsys.readouterr().err) is warned


def is_silent() -> None:
    """Join, as a process whose machine the others cannot reach by gloo."""
    store, *_ = next(dist.rendezvous("env://", 1, 2))
    dist.PrefixStore("", store).set("here1", "")
    time.sleep(20)


def test_processes_that_cannot_reach_each_other_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Gloo does not keep to a limit when it waits for a connection."""
    monkeypatch.setattr(process, "_MEETING", 1)
    for name, value in {**TORCHRUN, "RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    fork = multiprocessing.get_context("fork")
    tasks = [fork.Process(target=work) for work in (process.join_launcher, is_silent)]
    for task in tasks:
        task.start()
    tasks[0].join(15)
    tasks[1].kill()
    assert tasks[0].exitcode == 1
    err = capfd.readouterr().err
    assert "error: process 0 of 2 cannot meet the others at MASTER_ADDR 127.0.0.1, MASTER_P" in err
    assert "no answer in 1 s; if gloo takes the wrong network interface, set GLOO_SOCKET" in err


@pytest.mark.parametrize("address", ["nowhere.invalid", "two words", "[::1", "a..b", "x" * 64])
def test_a_main_machine_that_nobody_knows(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_LOOKUPS", 1)
    for name, value in {**TORCHRUN, "MASTER_ADDR": address}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as raised:
        process.join_launcher()
    line = str(raised.value)
    assert line.startswith(f"process 1 of 2 cannot meet the others at MASTER_ADDR {address}, MAST")
    assert line.endswith(
        "use an IP address, or a name that all machines know; torchrun: --local-addr"
    )


def be_killed() -> None:
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.synchronize()


def test_a_killed_worker_is_one_line() -> None:
    begun = time.monotonic()
    with pytest.raises(
        UserError, match=r"^process 1 has ended \(SIGKILL\), so the others were"
    ) as e:
        launch(be_killed, 2)
    assert "\n" not in str(e.value)
    assert time.monotonic() - begun < 60

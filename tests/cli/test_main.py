"""The frame of the console command `frcnn`: finding a command, help, mistakes, exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import frcnn_command
import frcnn_plugin
from frcnn_plugin.cli import report
from frcnn_plugin.cli.__main__ import COMMANDS, choose, main, parse
from frcnn_plugin.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def leaves(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Status and text of a call that argparse ends."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    output = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, output.out + output.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = leaves(capsys, *command.split(), "--help")
    assert status == 0
    assert text.startswith(f"usage: frcnn {command} ")
    assert f"    frcnn {command} " in text or f"    frcnn {command}\n" in text  # an example
    assert "tools/" not in text


def test_overview_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = leaves(capsys, "--help")
    assert status == 0 and all(f"  {command}  " in text for command in COMMANDS)
    status, text = leaves(capsys)
    assert status == 2 and all(f"  {command}  " in text for command in COMMANDS)
    status, text = leaves(capsys, "weights")
    assert status == 2 and "  weights convert  " in text and "predict" not in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert leaves(capsys, "--version") == (0, f"frcnn_plugin {frcnn_plugin.__version__}\n")


def test_options_may_look_like_commands() -> None:
    assert choose(["weights", "convert", "train"]) == ("weights convert", ["train"])
    _, args = parse(["make-data", "train", "--seed", "3"])
    assert (args.root, args.seed) == ("train", 3)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("trian", "there is no command 'trian'; did you mean `frcnn train`?"),
        ("wieghts convert", "did you mean `frcnn weights`?"),
        ("weights conver", "there is no command 'weights conver'; did you mean `frcnn weights c"),
        ("download", "did you mean `frcnn weights download`?"),
        ("evaluate", "did you mean `frcnn train --eval-only`?"),
        ("convert", "did you mean `frcnn weights convert` or `frcnn proposals convert`?"),
        ("xyz", "there is no command 'xyz'; `frcnn --help` lists the commands"),
        ("--verbose", "unrecognized arguments: --verbose"),
    ],
)
def test_mistyped_commands(words: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = leaves(capsys, *words.split())
    assert status == 2 and hint in text


@pytest.mark.parametrize(
    ("result", "status"), [(None, 0), ({"AP": 1.0}, 0), (0, 0), (1, 1), (Path("report.html"), 0)]
)
def test_an_int_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, result: object, status: int
) -> None:
    monkeypatch.setattr(report, "run", lambda args: result)
    assert main(["report", "folder"]) == status


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("KEY 3: must be 4"), 1, "error: KEY 3: must be 4\n"),
        (UserError("class \x1b[2J\xe9\nerror: b"), 1, "error: class \\x1b[2J\xe9\nerror: b\n"),
        (ImportError("no torch", name="frcnn_plugin"), 1, "error: no torch\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    line: str,
) -> None:
    def run(args: object) -> None:
        raise error

    monkeypatch.setattr(report, "run", run)
    assert main(["report", "folder"]) == status
    assert capsys.readouterr().err == line


def test_faults_of_ours_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: object) -> None:
        import frcnn_plugin.no_such_module  # noqa: F401

    monkeypatch.setattr(report, "run", run)
    with pytest.raises(ImportError, match="no_such_module"):
        main(["report", "folder"])


def test_words_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["frcnn", "--version"])
    with pytest.raises(SystemExit):
        frcnn_command.main()
    assert frcnn_plugin.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "10000"}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_how_threads_wait_is_told_before_torch_is_loaded(
    given: dict[str, str], expected: dict[str, str]
) -> None:
    """By the command only: importing the package leaves the environment as it is."""
    code = """
import os, sys, runpy
def shown():
    return {k: v for k, v in os.environ.items() if k in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
before = shown()
import frcnn_command
assert shown() == before
assert "torch" not in sys.modules
runpy.run_path = lambda path: {"main": lambda argv: print(shown(), "torch" in sys.modules)}
frcnn_command.main([])
"""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in names} | given
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    assert done.stdout.decode() == f"{expected} False\n"


BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')"


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python where torchvision does not match torch, so that importing the package fails."""
    (tmp_path / "torchvision.py").write_text(BROKEN)
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return call


def test_broken_installation_is_one_line(
    broken: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    for words in (["tools/doctor.py"], ["-m", "frcnn_plugin", "train"]):
        words[0] = words[0].replace("tools", str(ROOT / "tools"))
        done = broken(*words)
        assert done.returncode == 1
        assert "torchvision does not match the installed torch" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_output_that_nobody_reads_any_more() -> None:
    """As in `frcnn ... | head`."""
    command = (sys.executable, "-m", "frcnn_plugin", "weights", "download", "--list")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141
    assert not any(word in done.stderr for word in ("BrokenPipe", "Traceback", "Warning"))


def test_help_needs_the_standard_library_only() -> None:
    code = """
import sys, frcnn_command
try:
    frcnn_command.main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
assert not {"torch", "detectron2", "numpy", "frcnn_plugin"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_noise_is_known_by_its_words() -> None:
    """All other warnings are shown, in Python's own form."""
    code = """
import frcnn_command, logging, warnings
for text in ("`torch.jit.script`", "`torch.jit.load`", "`torch.jit.trace`"):
    warnings.warn(f"{text} is deprecated", FutureWarning)
logging.getLogger("torch.fx._symbolic_trace").warning("is_fx_tracing will return true for both fx")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == "<string>:4: FutureWarning: `torch.jit.trace` is deprecated\n"


def test_processes_that_end_together_say_nothing(tmp_path: Path) -> None:
    """Torch and Python tell of it, where a run that was stopped has said all in one line."""
    script = tmp_path / "script.py"
    script.write_text("""
import frcnn_command
import multiprocessing, os, time
import torch.multiprocessing

def work(rank):
    lock = multiprocessing.get_context("spawn").RLock()
    if rank == 1:
        time.sleep(60)
    os._exit(75)

if __name__ == "__main__":
    try:
        torch.multiprocessing.spawn(work, nprocs=2)
    except torch.multiprocessing.ProcessExitedException as error:
        print(error.exit_code)
""")
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("75\n", "")


@pytest.mark.parametrize("words", [("tools/demo.py", "--help"), ("tools/doctor.py",)], ids=str)
def test_commands_start_quietly(words: tuple[str, ...]) -> None:
    """Detectron2 is imported in both."""
    command = (sys.executable, *words)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout and not done.stderr


def test_the_package_leaves_warnings_of_other_projects_alone() -> None:
    code = """
import logging, warnings
import detectron2.engine, torchvision
before = warnings.filters[:], warnings.showwarning, logging.getLogger("py.warnings").handlers[:]
import frcnn_plugin.cli.train, frcnn_plugin.predict
now = warnings.filters[:], warnings.showwarning, logging.getLogger("py.warnings").handlers[:]
assert now == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


def test_every_script_of_old_is_a_command() -> None:
    """What tools/ forwards to."""
    names = {
        "train_net": "train", "make_synthetic_voc": "make-data", "predict": "predict",
        "visualize": "visualize", "doctor": "doctor", "report": "report",
        "convert_weights": "weights convert", "download_weights": "weights download",
        "dump_proposals": "proposals dump", "convert_proposals": "proposals convert",
    }  # fmt: skip
    for script, command in names.items():
        assert command in COMMANDS
        text = (ROOT / "tools" / f"{script}.py").read_text()
        assert ", ".join(f'"{word}"' for word in command.split()) + ", *sys.argv[1:]" in text

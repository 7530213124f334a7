"""`frcnn train` on generated data, as a user runs it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.utils.logger import setup_logger

from frcnn_plugin.cli.__main__ import parse
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.errors import UserError
from frcnn_plugin.report import write_report
from tests.cli.conftest import frcnn
from tests.small_demo import DEMO, SMALL

ROOT = Path(__file__).resolve().parents[2]
OPTS = [
    *SMALL,
    *("SOLVER.STEPS", "(2,)"),
    *("SOLVER.MAX_ITER", "4"),
    *("SOLVER.CHECKPOINT_PERIOD", "2"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_synthetic_voc(root / "demo_shapes", num_trainval=6, num_test=3)
    return root


# Not every version of PyTorch warns when Detectron2 is imported.
WARNED = """
import frcnn_command, runpy, sys, warnings
warnings.warn("`torch.jit.script` is deprecated", FutureWarning)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def train_net(data: Path, *args: str) -> str:
    """Run tools/train_net.py in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", WARNED, str(ROOT / "tools" / "train_net.py"), *args],
        env={**os.environ, "DETECTRON2_DATASETS": str(data), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-3000:]
    return output


@pytest.fixture
def train(
    data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """A function that runs the command from this process; returns all that was printed."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "frcnn_plugin")]
    before = [(log.handlers[:], log.level, log.propagate) for log in loggers]

    def call(*words: str) -> str:
        setup_logger.cache_clear()  # its handlers write to a stream that ended with a test
        frcnn("train", "--config-file", DEMO, *words)
        return "".join(capfd.readouterr())

    yield call
    for log, (handlers, level, propagate) in zip(loggers, before, strict=True):
        log.handlers, log.level, log.propagate = handlers, level, propagate
    setup_logger.cache_clear()


def metrics(run: Path) -> dict[str, float]:
    """The last value of everything that was logged."""
    last: dict[str, float] = {}
    for line in (run / "metrics.json").read_text().splitlines():
        last.update(json.loads(line))
    return last


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    output = train_net(data, "--config-file", DEMO, *OPTS, "OUTPUT_DIR", str(run))
    assert "AP50" in output and "triangle" in output
    (run / "console.txt").write_text(output)
    return run


def test_trains_evaluates_and_writes_checkpoints(trained: Path) -> None:
    for name in ("model_0000001.pth", "model_final.pth", "metrics.json", "config.yaml", "log.txt"):
        assert (trained / name).is_file(), name
    logged = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "bbox/AP50"}
    assert logged <= metrics(trained).keys()


def test_console_is_for_people_and_the_log_has_all(trained: Path) -> None:
    console, log = ((trained / name).read_text() for name in ("console.txt", "log.txt"))
    assert "Warning" not in console and "site-packages" not in console
    assert "FutureWarning" in log
    for page in ("Environment info", "Running with full config", "Model:\n", "copypaste"):
        assert page not in console and page in log, page
    assert console.count("shapes_trainval: 6 images") == 1 < log.count("shapes_trainval: 6 images")
    assert "an iteration takes" not in console  # four of them: there is nothing to tell
    assert console.count("Start inference on 3 batches") == 1
    assert len(console.splitlines()) < 60


def test_leaves_a_report(trained: Path) -> None:
    page = write_report(trained).read_text(encoding="utf-8")
    assert "joint training" in page and ">finished</p>" in page
    assert "Missing or damaged" not in page
    assert f"{metrics(trained)['bbox/AP50']:.1f} %</b>" in page


def test_evaluation_alone(train: Callable[..., str], trained: Path) -> None:
    weights = ("MODEL.WEIGHTS", str(trained / "model_final.pth"))
    output = train("--eval-only", *OPTS, *weights, "OUTPUT_DIR", str(trained / "eval"))
    assert "AP50" in output and "model_final.pth" in output


def test_resume_goes_on_where_it_stopped(train: Callable[..., str], tmp_path: Path) -> None:
    """Two iterations, then two more, against four at once: the same rates and checkpoints."""
    first = [*OPTS, "OUTPUT_DIR", str(tmp_path), "TEST.EVAL_PERIOD", "0"]
    train(*first, "SOLVER.MAX_ITER", "3")
    output = train("--resume", *first)
    assert "Starting training from iteration 3" in output
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert checkpoint["iteration"] == 3
    groups = checkpoint["trainer"]["_trainer"]["optimizer"]["param_groups"]
    # Dropped once; weights, and biases at twice the rate.
    assert {round(g["lr"], 9) for g in groups} == {0.001, 0.002}


def test_two_processes_on_the_cpu(data: Path, tmp_path: Path) -> None:
    processes = ("--config-file", DEMO, "--num-gpus", "2", "--dist-url", "auto")
    longer = ("SOLVER.MAX_ITER", "46", "SOLVER.CHECKPOINT_PERIOD", "46")  # 23 in each process
    output = train_net(data, *processes, *OPTS, *longer, "OUTPUT_DIR", str(tmp_path))
    assert (tmp_path / "model_final.pth").is_file()
    assert "AP50" in output
    assert "terminate called" not in output and "Warning" not in output
    assert output.count("an iteration takes") == 1
    # One image pair per process, the rate doubled (SOLVER.REFERENCE_WORLD_SIZE 1).
    assert metrics(tmp_path)["lr"] == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config-file", "nothing.yaml"], "no config file 'nothing.yaml'"),
        (["--config-file", DEMO, "MODEL.ROI_HEADS.NUM_CLASSES", "4"], "NUM_CLASSES 3"),
        (["--config-file", DEMO, "--eval-only"], "--eval-only needs trained weights"),
    ],
)
def test_a_mistake_is_one_line(
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    tmp_path: Path,
    args: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    monkeypatch.chdir(tmp_path)
    assert message in fails("train", *args)
    assert not list(tmp_path.iterdir())


def test_takes_the_options_of_detectron2_scripts() -> None:
    stock = default_argument_parser().parse_args([])
    _, args = parse(["train"])
    assert {**vars(stock), "opts": []} == {k: v for k, v in vars(args).items() if k != "overwrite"}


HOLD = """
import sys
from frcnn_plugin.engine.run_folder import lock_output
with lock_output(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_another_run_uses(train: Callable[..., str], tmp_path: Path) -> None:
    """Nothing of the other run is touched, not even with --overwrite."""
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout and other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=rf"{tmp_path} is in use by process {other.pid} on"):
            train("--overwrite", *OPTS, "OUTPUT_DIR", str(tmp_path))
        other.communicate()
    assert [p.name for p in tmp_path.iterdir()] == ["last_checkpoint"]

"""A signal saves the iteration and ends the run; resumed, it ends as if never stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from frcnn_plugin import stopping
from frcnn_plugin.engine import lock_output
from frcnn_plugin.evaluation.proposals.evaluator import ProposalCollector
from frcnn_plugin.evaluation.voc import VOCEvaluator
from frcnn_plugin.four_step import weights as stage_weights
from frcnn_plugin.modeling import PaperRCNN
from frcnn_plugin.stopping import Stopped
from tests.engine.test_killed_runs import RUNS as KILLED
from tests.engine.test_killed_runs import content
from tests.four_step.four_step_runs import Stop, make_trainer

pytestmark = pytest.mark.usefixtures("with_data")

# Without periodic checkpoints: what is resumed is what the signal had saved.
OFTEN = ("SOLVER.CHECKPOINT_PERIOD", "100", "DATALOADER.NUM_WORKERS", "1", "TEST.LOSS_PERIOD", "4")
RUNS = {kind: [*opts, *OFTEN] for kind, opts in KILLED.items()}


def ask(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def ask_the_group() -> None:
    """As batch systems do: the processes that load images have the signal, too."""
    os.killpg(0, signal.SIGTERM)
    time.sleep(0.2)  # in which they are gone


def after_call(owner: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
    """Send the signal after the first call whose arguments meet a condition."""
    function, sent = getattr(owner, name), [False]

    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if not sent[0] and when(*args):
            sent[0] = True
            ask()
        return result

    setattr(owner, name, call)


def stage_of_proposals(number: int) -> Callable[..., bool]:
    return lambda collector, *_: f"stage{number}" in str(collector._output_path)


def asks_at(point: str, number: int) -> Callable[[Any], None]:
    """Return what arms a trainer."""

    def arm(trainer: Any) -> None:
        if point in ("iteration", "group", "ctrl-c"):
            sends = {"iteration": ask, "group": ask_the_group}
            trainer.register_hooks([Stop(number, sends.get(point, lambda: ask(signal.SIGINT)))])
        elif point == "evaluation":
            after_call(VOCEvaluator, "process", lambda *_: trainer.iter == number)
        elif point == "proposals":
            after_call(ProposalCollector, "process", stage_of_proposals(number))
        elif point == "surgery":
            after_call(
                stage_weights, "begin_stage", lambda model, stage, *_: stage.number == number
            )
        elif point == "losses":
            after_call(PaperRCNN, "forward", lambda *_: trainer.iter == number)
        else:
            raise ValueError(point)

    return arm


def train(
    folder: Path, opts: list[str], arm: Callable[[Any], Any] = repr, *, resume: bool = False
) -> tuple[int, str]:
    """Train in a forked process; returns its exit status and the line at the end."""
    line = folder.parent / "line"
    line.write_text("")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            torch.set_num_threads(1)
            with lock_output(folder), stopping.listening():
                trainer = make_trainer(folder, opts, resume=resume)
                arm(trainer)
                trainer.train()
            status = 0
        except Stopped as stopped:
            line.write_text(stopped.message)
            status = int(str(stopped.code))
        except Exception:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), line.read_text()


@pytest.fixture(scope="module")
def whole(with_data: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A function that returns what a run leaves that is not stopped."""
    root, known = tmp_path_factory.mktemp("whole"), {}

    def make(kind: str) -> Any:
        if kind not in known:
            assert train(root / kind, RUNS[kind]) == (0, "")
            known[kind] = content(root / kind)
        return known[kind]

    return make


@pytest.mark.parametrize(
    ("kind", "point", "number", "trained", "file"),
    [
        ("joint", "iteration", 0, 1, "model_0000000.pth"),
        ("joint", "group", 1, 2, "model_0000001.pth"),
        ("joint", "ctrl-c", 2, 3, "model_0000002.pth"),
        ("joint", "evaluation", 1, 2, "model_0000001.pth"),
        ("joint", "losses", 3, 4, "model_final.pth"),
        ("joint", "iteration", 3, 4, "model_final.pth"),  # the last one: only evaluation is left
        ("joint", "evaluation", 4, 4, "model_final.pth"),  # that after training
        ("four", "iteration", 0, 1, "model_0000000.pth"),
        ("four", "iteration", 1, 2, "stage1_final.pth"),
        ("four", "proposals", 1, 2, "stage1_final.pth"),
        ("four", "surgery", 2, 3, "model_0000002.pth"),  # after the stage's first iteration
        ("four", "evaluation", 3, 4, "model_0000003.pth"),
        ("four", "evaluation", 6, 6, "stage2_final.pth"),  # before stage 3
        ("four", "proposals", 3, 7, "stage3_final.pth"),
        ("four", "group", 7, 8, "model_0000007.pth"),
        ("four", "evaluation", 9, 9, "stage4_final.pth"),
    ],
)  # fmt: skip
def test_a_signal_saves_and_the_run_goes_on(
    whole: Callable[[str], Any],
    tmp_path: Path,
    kind: str,
    point: str,
    number: int,
    trained: int,
    file: str,
) -> None:
    folder, opts, total = tmp_path / "run", RUNS[kind], {"joint": 4, "four": 9}[kind]
    name = "SIGINT" if point == "ctrl-c" else "SIGTERM"
    assert train(folder, opts, asks_at(point, number)) == (
        75,
        f"stopped by {name}, after iteration {trained} of {total}; --resume goes on in {folder} "
        f"({file})",
    )
    assert train(folder, opts, resume=True) == (0, "")
    resumed, expected = content(folder), whole(kind)
    extra = {file} - expected.keys()
    assert resumed.keys() == expected.keys() | extra
    assert [n for n in expected if resumed[n] != expected[n]] == []


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    """One that follows at once is the same one, sent twice."""

    def twice() -> None:
        for _ in range(3):
            ask()

    def once_more() -> None:
        twice()
        time.sleep(stopping._ONE)
        ask()

    def arm(end: Callable[[], None]) -> Callable[[Any], None]:
        return lambda trainer: trainer.register_hooks([Stop(0, end)])

    status, line = train(tmp_path / "one", RUNS["joint"], arm(twice))
    assert status == 75 and "(model_0000000.pth)" in line
    assert train(tmp_path / "two", RUNS["joint"], arm(once_more)) == (128 + signal.SIGTERM, "")
    assert not list((tmp_path / "two").glob("*.pth"))


def test_nothing_changes_outside_of_training() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with stopping.listening():
        ask()
        assert stopping.asked() == "SIGTERM"
    assert stopping.asked() == ""
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before

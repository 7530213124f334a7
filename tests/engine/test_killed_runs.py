"""A run that was killed while it wrote a file is resumed, and leaves the files of a whole run.

Not only the same weights: every checkpoint, the note about the best one, proposals and detections.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from frcnn_plugin.engine import lock_output
from tests.engine.joint_runs import JOINT
from tests.four_step.four_step_runs import digest_of, kill, make_trainer

pytestmark = pytest.mark.usefixtures("with_data")

SHORT = [
    *("SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.CHECKPOINTS_KEPT", "2", "TEST.EVAL_PERIOD", "2"),
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", "100", "MODEL.RPN.POST_NMS_TOPK_TEST", "10"),
    *("FOUR_STEP.PRE_NMS_TOPK", "100", "FOUR_STEP.POST_NMS_TOPK", "20"),
    *("FOUR_STEP.EVALUATE_STEPS", "True"),
]
RUNS = {
    "joint": [*JOINT, *SHORT],
    "four": [*SHORT, "FOUR_STEP.ITERS", "[2,4,1,2]", "FOUR_STEP.DROPS", "[[],[],[],[]]"],
}
# The file that is about to be moved to its name, or was just moved there, and the how maniest time.
KILLS = [
    ("joint", "model_0000001.pth", 1, "after"),  # saved, but its name is not in last_checkpoint
    ("joint", "last_checkpoint", 1, "after"),  # saved, but not evaluated
    ("joint", "model_best.pth", 1, "before"),
    ("joint", "model_best.pth", 1, "after"),  # which the note beside it does not know
    ("joint", "model_final.pth", 1, "before"),  # a checkpoint of the same iteration exists
    ("joint", "model_final.pth", 1, "after"),
    ("joint", "last_checkpoint", 2, "after"),  # one more than is kept
    ("joint", "last_checkpoint", 3, "after"),  # finished, but not evaluated
    ("four", "stage1_final.pth", 1, "before"),
    ("four", "stage2_best.json", 1, "before"),
    ("four", "stage2_final.pth", 1, "before"),
    ("four", "stage4_final.pth", 1, "after"),
]


def train(folder: Path, opts: list[str], *, resume: bool, arm: Callable[[], None] = int) -> int:
    """Train in a forked process, with the lock of a run; returns the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            with lock_output(folder):
                trainer = make_trainer(folder, opts, resume=resume)
                arm()
                trainer.train()
            status = 0
        except Exception:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def kill_at(name: str, number: int, when: str) -> Callable[[], None]:
    def arm() -> None:
        move, calls = os.replace, [0]

        def move_or_die(source: Any, target: Any) -> None:
            calls[0] += Path(target).name == name
            due = calls[0] == number and Path(target).name == name
            if due and when == "before":
                kill()
            move(source, target)
            if due:
                kill()

        os.replace = move_or_die  # type: ignore[assignment]

    return arm


# Times, and names of folders, differ. So does the environment.
DIFFERENT = ("log.txt", "events.out", "metrics.json", "run.json", "config.yaml", "evaluation.json")


def content(folder: Path) -> dict[str, Any]:
    """What is in all files, and that there are those whose content differs."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if path.name.startswith(DIFFERENT[:2]):  # one per session
            continue
        if path.suffix == ".pth":
            state = torch.load(path, weights_only=True)
            state.get("frcnn_plugin", {}).pop("config", None)
            found[name] = (digest_of(tensors(state)), plain(state))
        else:
            found[name] = path.name in DIFFERENT or path.suffix == ".png" or path.read_bytes()
    return found


def tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else ()
    return {k: v for key, x in items for k, v in tensors(x, f"{name}/{key}").items()}


def plain(value: Any) -> Any:
    """Everything else."""
    if isinstance(value, dict):
        return {key: plain(x) for key, x in value.items()}
    return None if isinstance(value, torch.Tensor) else value


@pytest.fixture(scope="module")
def whole(with_data: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A function that returns what a run leaves that is not killed."""
    root, known = tmp_path_factory.mktemp("whole"), {}

    def make(kind: str) -> Any:
        if kind not in known:
            train(root / kind, RUNS[kind], resume=False)
            known[kind] = content(root / kind)
        return known[kind]

    return make


@pytest.mark.parametrize(("kind", "name", "number", "when"), KILLS)
def test_all_files_are_those_of_a_whole_run(
    whole: Callable[[str], Any], tmp_path: Path, kind: str, name: str, number: int, when: str
) -> None:
    folder, opts = tmp_path / "run", RUNS[kind]
    assert train(folder, opts, resume=False, arm=kill_at(name, number, when)) == signal.SIGKILL
    assert train(folder, opts, resume=True) == 0
    resumed, expected = content(folder), whole(kind)
    assert resumed.keys() == expected.keys()
    assert [n for n in expected if resumed[n] != expected[n]] == []
    assert "model_final.pth" in expected and (kind == "joint" or "stage2_best.pth" in expected)

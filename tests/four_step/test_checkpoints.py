"""Where a four-step run starts and stops, what it may resume or refuses, and its checkpoints.

What is promised, with the same schedule, seed, data and number of processes:

- A run stopped with FOUR_STEP.STOP_AFTER and resumed with a later one ends with the weights of a
  run that was not stopped, bit for bit.
- So does a run with FOUR_STEP.START_AT k from that run's ``stage<k-1>_final.pth``, for k = 2 with
  its ``initial_weights.pth`` as FOUR_STEP.INITIAL_WEIGHTS.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from frcnn_plugin.engine import evaluate_checkpoint, forget_run
from frcnn_plugin.errors import UserError
from frcnn_plugin.four_step.checkpoints import check_same, schedule_state
from frcnn_plugin.four_step.evaluation import stage_of
from frcnn_plugin.preflight import PlannedRun, stop_on_errors
from tests.four_step.fixtures import Run
from tests.four_step.four_step_runs import Stop, digest_of, final_weights, make_trainer, tiny_cfg

pytestmark = pytest.mark.usefixtures("with_data")


# ---- parts of the schedule ----------------------------------------------------------------------


@pytest.mark.parametrize("stage", [2, 3, 4])
def test_a_later_start_ends_with_the_same_weights(
    finished: Run, tmp_path: Path, stage: int
) -> None:
    make_trainer(tmp_path, finished.later(stage)).train()
    for name in [*(f"stage{k}_final.pth" for k in range(stage, 5)), "model_final.pth"]:
        ours = torch.load(tmp_path / name, weights_only=True)["model"]
        assert digest_of(ours) == digest_of(finished.weights(name)), name


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stopping_and_going_on_ends_with_the_same_weights(
    finished: Run, tmp_path: Path, stage: int
) -> None:
    first = make_trainer(tmp_path, [*finished.opts, "FOUR_STEP.STOP_AFTER", str(stage)])
    results = first.train()
    assert first.model.phase == ("fast_rcnn" if stage == 2 else "rpn")
    # What the stage trained has been evaluated, once and as what it is.
    assert results is not None
    assert next(iter(results)) == ("bbox" if stage == 2 else "proposals")
    assert not (tmp_path / f"stage{stage + 1}_final.pth").exists()
    assert final_weights(tmp_path) == digest_of(finished.weights(f"stage{stage}_final.pth"))
    again = tiny_cfg(tmp_path, [*finished.opts, "MODEL.WEIGHTS", str(tmp_path / "model_final.pth")])
    assert evaluate_checkpoint(again).keys() == results.keys()
    make_trainer(tmp_path, finished.opts, resume=True).train()
    assert final_weights(tmp_path) == final_weights(finished.folder)


def test_resuming_a_finished_run_changes_nothing(finished: Run, tmp_path: Path) -> None:
    opts = finished.later(4)
    make_trainer(tmp_path, opts).train()
    before = final_weights(tmp_path)
    trainer = make_trainer(tmp_path, opts, resume=True)
    assert trainer.start_iter == trainer.max_iter
    results = trainer.train()
    assert results is not None and "bbox" in results
    assert final_weights(tmp_path) == before


def test_a_random_seed_is_kept(finished: Run, tmp_path: Path) -> None:
    """The order of images continues where it was."""
    opts = [*finished.opts, *("SEED", "-1"), *("FOUR_STEP.STOP_AFTER", "1")]
    first = make_trainer(tmp_path, opts)
    first.train()
    second = make_trainer(tmp_path, opts, resume=True)
    assert second._hooks[0]._seed == first._hooks[0]._seed
    assert make_trainer(tmp_path / "other", opts)._hooks[0]._seed != first._hooks[0]._seed


# ---- what is refused, and in which words --------------------------------------------------------


def stop_at(folder: Path, opts: list[str], iteration: int) -> None:
    trainer = make_trainer(folder, opts)
    trainer.register_hooks([Stop(iteration)])
    with pytest.raises(InterruptedError):
        trainer.train()


@pytest.fixture(scope="module")
def stopped(finished: Run, with_data: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped in the middle of stage 4, after its checkpoint of iteration 14."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stop_at(folder, finished.opts, 14)
    return folder


@pytest.fixture
def copy(stopped: Path, finished: Run, tmp_path: Path) -> Callable[..., str]:
    """A function that resumes a copy of it, changed, and returns the error's text."""

    def resume(*opts: str, change: Callable[[Path], None] = lambda folder: None) -> str:
        shutil.copytree(stopped, tmp_path / "run")
        change(tmp_path / "run")
        with pytest.raises(UserError) as caught:
            make_trainer(tmp_path / "run", [*finished.opts, *opts], resume=True).train()
        return str(caught.value)

    return resume


@pytest.mark.parametrize("last", ["model_0000014.pth", "stage3_final.pth"])
def test_an_error_in_the_middle_can_be_resumed(
    stopped: Path, finished: Run, tmp_path: Path, last: str
) -> None:
    """Also from an older checkpoint, as the message about a damaged one advises."""
    shutil.copytree(stopped, tmp_path / "run")
    (tmp_path / "run" / "last_checkpoint").write_text(last)
    make_trainer(tmp_path / "run", finished.opts, resume=True).train()
    assert final_weights(tmp_path / "run") == final_weights(finished.folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("FOUR_STEP.ITERS", "[4,4,4,5]", "was [4, 4, 4, 4] and is [4, 4, 4, 5]"),
        ("FOUR_STEP.IMS_PER_BATCH", "[1,2,1,1]", "was [1, 2, 1, 2] and is [1, 2, 1, 1]"),
        ("SOLVER.BASE_LR", "0.1", "was 0.003 and is 0.1"),
        ("SEED", "4", "was 3 and is 4"),
    ],
)
def test_another_schedule(copy: Callable[..., str], key: str, value: str, words: str) -> None:
    message = copy(key, value)
    assert message.startswith("this run began with other values: ")
    assert f"{key} {words}" in message and message.count(" was ") == 1
    assert "another OUTPUT_DIR" in message


def test_another_number_of_processes(finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_cfg(finished.folder, finished.opts)
    before = schedule_state(cfg)
    check_same(before, schedule_state(cfg))
    monkeypatch.setattr("frcnn_plugin.four_step.checkpoints.comm.get_world_size", lambda: 2)
    with pytest.raises(UserError, match="values: the number of processes was 1 and is 2"):
        check_same(before, schedule_state(cfg))


def last_file(folder: Path) -> Path:
    return folder / (folder / "last_checkpoint").read_text()


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


PROPOSALS = Path("proposals") / "stage3" / "tiny_trainval.pkl"
CHANGED = ["tiny_trainval.pkl has changed since stage 4 began"]
NO_CHECKPOINT = ["there is no file ", "model_0000014.pth. "]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folder: (folder / PROPOSALS).unlink(),
            [
                "stage3/tiny_trainval.pkl is missing, but stage 4 began to train on it",
                "with FOUR_STEP.START_AT 4 MODEL.WEIGHTS ",
                "stage3_final.pth",
            ],
        ),
        (lambda folder: damage(folder / PROPOSALS), CHANGED),
        # A good file of the same data set, but not the one that the stage began with.
        (
            lambda folder: shutil.copy(
                folder / "proposals" / "stage1" / "tiny_trainval.pkl", folder / PROPOSALS
            ),
            CHANGED,
        ),
        (
            lambda folder: damage(last_file(folder)),
            [
                "model_0000014.pth is damaged, or no checkpoint",
                "last_checkpoint names the file",
                "stage3_final.pth",
            ],
        ),
        (lambda folder: last_file(folder).unlink(), NO_CHECKPOINT),
        # As Detectron2's own writer leaves it when it is killed.
        (
            lambda folder: (folder / "last_checkpoint").write_text(""),
            ["there is no checkpoint named in", "last_checkpoint names the file"],
        ),
    ],
    ids=["no proposals", "damaged", "other ones", "damaged checkpoint", "none", "empty name"],
)
def test_lost_or_damaged_files(
    copy: Callable[..., str], change: Callable[[Path], None], words: list[str]
) -> None:
    message = copy(change=change)
    assert [w for w in words if w not in message] == [], message
    assert "INITIAL_WEIGHTS" not in message


def test_what_to_type_after_losing_proposals_of_stage_1(finished: Run, tmp_path: Path) -> None:
    """The message's overrides give the weights of a run that lost nothing."""
    folder = tmp_path / "run"
    stop_at(folder, finished.opts, 5)
    (folder / "proposals" / "stage1" / "tiny_trainval.pkl").unlink()
    with pytest.raises(UserError) as caught:
        make_trainer(folder, finished.opts, resume=True).train()
    words = str(caught.value).partition("with ")[2].split()
    assert words[::2] == ["FOUR_STEP.START_AT", "MODEL.WEIGHTS", "FOUR_STEP.INITIAL_WEIGHTS"]
    make_trainer(tmp_path / "new", [*finished.opts, *words]).train()
    assert final_weights(tmp_path / "new") == final_weights(finished.folder)


def test_a_fresh_run_in_a_used_folder(finished: Run) -> None:
    cfg = tiny_cfg(finished.folder, finished.opts)
    with pytest.raises(UserError, match=r"holds a run already: .*--resume.*--overwrite"):
        stop_on_errors(PlannedRun(cfg))
    stop_on_errors(PlannedRun(cfg, resume=True))
    stop_on_errors(PlannedRun(cfg, overwrite=True))


def test_overwriting_forgets_the_old_run(stopped: Path, finished: Run, tmp_path: Path) -> None:
    """Also if the new one is killed before its first checkpoint."""
    shutil.copytree(stopped, tmp_path / "run")
    cfg = tiny_cfg(tmp_path / "run", finished.opts)
    forget_run(cfg)
    forget_run(cfg)  # nothing to forget
    assert make_trainer(tmp_path / "run", finished.opts, resume=True).start_iter == 0


def test_lost_initial_weights(finished: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stop_at(folder, finished.opts, 2)
    (folder / "initial_weights.pth").unlink()
    with pytest.raises(
        UserError, match=r"there is no file .*initial_weights.pth. .*INITIAL_WEIGHTS"
    ):
        make_trainer(folder, finished.opts, resume=True).train()


@pytest.mark.parametrize("given", [True, False])
def test_other_initial_weights(
    finished: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, given: bool
) -> None:
    """They would only count from stage 2 on: hours later, and nobody would notice."""
    folder, name = tmp_path / "run", "backbone.conv3.conv3_1.weight"
    stop_at(folder, finished.opts, 2)
    weights = finished.weights("initial_weights.pth")
    weights[name] = weights[name] + 1
    other = tmp_path / "other.pth" if given else folder / "initial_weights.pth"
    torch.save({"model": weights}, other)
    opts = [*finished.opts, *(("FOUR_STEP.INITIAL_WEIGHTS", str(other)) if given else ())]
    with pytest.raises(UserError, match="the file of initial weights was ") as caught:
        make_trainer(folder, opts, resume=True).train()
    option = str(caught.value).partition('add RESUME_MAY_DIFFER "')[2].rstrip('"')
    trainer = make_trainer(folder, [*opts, "RESUME_MAY_DIFFER", option], resume=True)
    trainer.register_hooks([Stop(3)])
    with pytest.raises(InterruptedError):
        trainer.train()
    assert "RESUME_MAY_DIFFER: the file of initial weights was" in caplog.text


def test_initial_weights_of_another_network(finished: Run, tmp_path: Path) -> None:
    weights = finished.weights("initial_weights.pth")
    del weights["roi_heads.box_predictor.cls_score.bias"]
    weights[name := "backbone.conv3.conv3_1.weight"] = torch.zeros(1)
    torch.save({"model": weights}, tmp_path / "other.pth")
    opts = finished.later(2, "FOUR_STEP.INITIAL_WEIGHTS", str(tmp_path / "other.pth"))
    with pytest.raises(UserError, match=r"other.pth lacks 2 of the \d+ weights") as caught:
        make_trainer(tmp_path / "run", opts).train()
    assert name in str(caught.value) and "cls_score.bias" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"no weights at all"])
def test_damaged_initial_weights(finished: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(content)
    opts = finished.later(2, "FOUR_STEP.INITIAL_WEIGHTS", str(tmp_path / "bad.pth"))
    with pytest.raises(UserError, match=r"bad.pth is damaged, or .*FOUR_STEP.INITIAL_WEIGHTS"):
        make_trainer(tmp_path / "run", opts).train()


@pytest.mark.parametrize(
    ("stage", "weights", "message"),
    [
        (3, "", "add MODEL.WEIGHTS path/to/stage2_final"),
        (2, "imagenet.pth", "add FOUR_STEP.INITIAL_WEIGHTS path/to/initial_weights.pth"),
        (3, "finished/stage1_final.pth", "from the end of stage 1: give stage2_final.pth"),
    ],
)
def test_a_later_start_without_its_weights(
    finished: Run, tmp_path: Path, stage: int, weights: str, message: str
) -> None:
    path = str(finished.root / weights) if weights else ""
    opts = [*finished.opts, "FOUR_STEP.START_AT", str(stage), "MODEL.WEIGHTS", path]
    with pytest.raises(UserError) as caught:
        make_trainer(tmp_path, opts)
    assert message in str(caught.value)


def test_more_images_per_batch_than_the_data_set_has(tmp_path: Path) -> None:
    """They come from several epochs."""
    trainer = make_trainer(
        tmp_path, ["FOUR_STEP.IMS_PER_BATCH", "[1,30,1,2]", "FOUR_STEP.STOP_AFTER", "2"]
    )
    trainer.train()
    assert (tmp_path / "model_final.pth").is_file()


# ---- evaluation of a checkpoint ------------------------------------------------------------------


def logged(run: Run, prefix: str) -> dict[str, float]:
    """What the run's metrics say about a stage."""
    found: dict[str, float] = {}
    for line in (run.folder / "metrics.json").read_text().splitlines():
        entry = json.loads(line)
        found |= {k.removeprefix(prefix): v for k, v in entry.items() if k.startswith(prefix)}
    return found


def evaluated(run: Run, name: str) -> dict[str, Any]:
    return evaluate_checkpoint(
        tiny_cfg(run.root / "none", [*run.opts, "MODEL.WEIGHTS", str(run.folder / name)])
    )


@pytest.mark.parametrize(("stage", "task"), [(1, "proposals"), (2, "bbox"), (3, "proposals")])
def test_a_stage_s_checkpoint_is_evaluated_as_the_run_did(
    finished: Run, stage: int, task: str
) -> None:
    """Recall of an RPN, AP of a detector on the proposals it was made for."""
    results = evaluated(finished, f"stage{stage}_final.pth")
    assert list(results) == [task]
    wanted = logged(finished, f"stage{stage}/{task}/")
    assert wanted and wanted.keys() == results[task].keys()
    assert results[task] == pytest.approx(wanted, nan_ok=True)


def test_any_other_checkpoint_is_evaluated_as_what_it_is(finished: Run) -> None:
    """Iterations 2 and 14 are in the middle of stages 1 and 4, 5 and 8 in stages 2 and 3."""
    for iteration, task in ((2, "proposals"), (5, "bbox"), (8, "proposals"), (14, "bbox")):
        assert list(evaluated(finished, f"model_{iteration:07d}.pth")) == [task]


def test_stage_of_a_checkpoint(finished: Run, tmp_path: Path) -> None:
    """As it says itself; whole detectors, other files and missing ones are of none."""
    for number in (1, 2, 3):
        copy = shutil.copy(finished.folder / f"stage{number}_final.pth", tmp_path / "renamed.pth")
        stage = stage_of(copy)
        assert stage is not None and stage.number == number
    for name in ("stage4_final.pth", "model_final.pth", "initial_weights.pth", "no.pth"):
        assert stage_of(finished.folder / name) is None


def test_the_last_checkpoints_are_evaluated_as_whole_detectors(finished: Run) -> None:
    final = evaluated(finished, "model_final.pth")
    assert list(final) == ["bbox"]
    assert evaluated(finished, "stage4_final.pth")["bbox"] == pytest.approx(
        final["bbox"], nan_ok=True
    )
    assert final["bbox"] == pytest.approx(logged(finished, "bbox/"), nan_ok=True)


def test_evaluation_without_its_proposals(finished: Run, tmp_path: Path) -> None:
    path = tmp_path / "stage2_final.pth"
    path.symlink_to(finished.folder / "stage2_final.pth")
    cfg = tiny_cfg(tmp_path, [*finished.opts, "MODEL.WEIGHTS", str(path)])
    with pytest.raises(UserError, match=r"proposals of stage 1, but .*tiny_test.pkl is missing"):
        evaluate_checkpoint(cfg)


def test_evaluation_of_a_damaged_checkpoint(finished: Run, tmp_path: Path) -> None:
    for name in ("stage1_final.pth", "model_final.pth"):
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes()[:2000])
        cfg = tiny_cfg(tmp_path, [*finished.opts, "MODEL.WEIGHTS", str(tmp_path / name)])
        with pytest.raises(UserError, match=rf"{name} is damaged"):
            evaluate_checkpoint(cfg)

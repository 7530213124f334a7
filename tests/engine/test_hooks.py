"""Hooks. Momentum: example E17 (docs/worked_examples.md). AP50: invented, so the best is known."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase, SimpleTrainer, hooks

from frcnn_plugin.engine import CaffeMomentum, PaperTrainer
from frcnn_plugin.engine import hooks as our_hooks
from frcnn_plugin.four_step.stages import apply_four_step, build_stages
from frcnn_plugin.modeling import PaperRCNN
from tests.engine.joint_runs import make_joint_trainer
from tests.four_step.four_step_runs import make_trainer

pytestmark = pytest.mark.usefixtures("with_data")


class Linear(torch.nn.Module):
    """Loss = w, so the gradient is constantly 1."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(()))

    def forward(self, data: object) -> dict[str, torch.Tensor]:
        return {"loss": self.w * 1.0}


class Steps(HookBase):
    """Records how far the weight moved in each iteration."""

    def __init__(self, model: Linear) -> None:
        self.model = model
        self.last = 0.0
        self.moves: list[float] = []

    def after_step(self) -> None:
        now = self.model.w.item()
        self.moves.append(self.last - now)
        self.last = now


def moves(caffe: bool) -> list[float]:
    model = Linear().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [200], 0.1)
    trainer = SimpleTrainer(model, [None], optimizer)
    steps = Steps(model)
    trainer.register_hooks(
        [steps, hooks.LRScheduler(optimizer, scheduler), *([CaffeMomentum(optimizer)] * caffe)]
    )
    trainer._data_loader_iter_obj = iter([None] * 300)
    trainer.train(0, 203)
    return steps.moves[199:203]


@pytest.mark.parametrize(
    ("caffe", "expected"),
    [(True, [0.01, 0.0091, 0.00829, 0.007561]), (False, [0.01, 0.001, 0.001, 0.001])],
)
def test_momentum_across_a_drop_e17(caffe: bool, expected: list[float]) -> None:
    assert moves(caffe) == pytest.approx(expected, abs=1e-6)


# ---- which checkpoints stay -----------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick_iterations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss that costs nothing, except where the weights matter."""

    def losses(model: PaperRCNN, _: Any) -> dict[str, torch.Tensor]:
        return {"loss": 0 * next(p for p in model.parameters() if p.requires_grad).sum()}

    if "real" not in request.fixturenames:
        monkeypatch.setattr(PaperRCNN, "_losses", losses)


class Stop(HookBase):
    """Ends a run after an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise InterruptedError


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.pth")}


def run(
    folder: Path, opts: Sequence[str], *, resume: bool = False, stop: int | None = None
) -> PaperTrainer:
    trainer = make_joint_trainer(folder, opts, resume=resume)
    if stop is None:
        trainer.train()
    else:
        trainer.register_hooks([Stop(stop)])
        with pytest.raises(InterruptedError):
            trainer.train()
    return trainer


NO_TEST = ["DATASETS.TEST", "()"]


@pytest.mark.parametrize(("kept", "expected"), [("3", {1, 2, 3}), ("1", {3}), ("0", {0, 1, 2, 3})])
def test_the_newest_stay(tmp_path: Path, kept: str, expected: set[int]) -> None:
    run(tmp_path, [*NO_TEST, "SOLVER.CHECKPOINTS_KEPT", kept])
    assert files(tmp_path) == {f"model_{i:07d}.pth" for i in expected} | {"model_final.pth"}


def test_a_resumed_run_prunes_what_it_finds(tmp_path: Path) -> None:
    opts = [*NO_TEST, "SOLVER.CHECKPOINTS_KEPT", "2"]
    run(tmp_path, opts, stop=1)
    assert files(tmp_path) == {"model_0000000.pth", "model_0000001.pth"}
    run(tmp_path, opts, resume=True)
    assert files(tmp_path) == {"model_0000002.pth", "model_0000003.pth", "model_final.pth"}


def test_files_of_the_stages_stay(tmp_path: Path) -> None:
    make_trainer(
        tmp_path, ["SOLVER.CHECKPOINT_PERIOD", "1", "SOLVER.CHECKPOINTS_KEPT", "1", *NO_TEST]
    ).train()
    stages = {f"stage{number}_final.pth" for number in (1, 2, 3, 4)}
    assert files(tmp_path) == stages | {
        "initial_weights.pth", "model_0000015.pth", "model_final.pth",
    }  # fmt: skip


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the next evaluations will find."""
    upcoming: list[dict[str, Any]] = []

    def test(cls: Any, cfg: Any, model: Any, evaluators: Any = None) -> dict[str, Any]:
        return upcoming.pop(0)

    monkeypatch.setattr(PaperTrainer, "test", classmethod(test))
    return upcoming


def ap50(*values: float) -> list[dict[str, Any]]:
    return [{"bbox": {"AP50": value}} for value in values]


EVERY = ["TEST.EVAL_PERIOD", "1", "SOLVER.CHECKPOINTS_KEPT", "1"]


def best(folder: Path, name: str = "model_best") -> tuple[float, int, int]:
    """Value and iteration that are written down, and the iteration of the weights."""
    noted = json.loads((folder / f"{name}.json").read_text())
    state = torch.load(folder / f"{name}.pth", weights_only=False)
    return noted["value"], noted["iteration"], state["iteration"]


def test_the_best_stays(
    tmp_path: Path, scores: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Detectron2 says what it did."""
    scores += ap50(10.0, 30.0, float("nan"), 20.0)
    with caplog.at_level(logging.INFO, "detectron2"):
        run(tmp_path, EVERY)
    assert "Saved best model as latest eval score for bbox/AP50 is 30.0" in caplog.text
    assert "is 20.00000, not better than best score 30.0" in caplog.text
    assert best(tmp_path) == (30.0, 1, 1)
    assert files(tmp_path) == {"model_0000003.pth", "model_best.pth", "model_final.pth"}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert not scores


def test_no_worse_result_replaces_it_after_a_resume(
    tmp_path: Path, scores: list[dict[str, Any]]
) -> None:
    """The periodic checkpoint is older than the evaluation that the best is from."""
    scores += ap50(10.0, 30.0)
    run(tmp_path, EVERY, stop=1)
    assert best(tmp_path) == (30.0, 1, 1)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    scores += ap50(20.0, 25.0)
    run(tmp_path, EVERY, resume=True)
    assert best(tmp_path) == (30.0, 1, 1)


def test_a_new_run_forgets_the_best_of_the_old_one(
    tmp_path: Path, scores: list[dict[str, Any]]
) -> None:
    scores += ap50(90.0, 80.0)
    run(tmp_path, EVERY, stop=1)
    (tmp_path / "last_checkpoint").unlink()  # --overwrite
    scores += ap50(1.0, 2.0, 3.0, 2.0)
    run(tmp_path, EVERY)
    assert best(tmp_path) == (3.0, 2, 2)


def test_a_damaged_note(
    tmp_path: Path, scores: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    scores += ap50(10.0, 30.0)
    run(tmp_path, EVERY, stop=1)
    (tmp_path / "model_best.json").write_text("{")
    scores += ap50(30.0, 20.0, 25.0)  # the first is that of the last evaluation, made again
    run(tmp_path, EVERY, resume=True)
    assert "model_best.json holds no best result (" in caplog.text
    assert best(tmp_path) == (30.0, 1, 1) and not scores


def test_the_first_of_several_sets_decides(tmp_path: Path, scores: list[dict[str, Any]]) -> None:
    sets = ["DATASETS.TEST", "('tiny_test', 'tiny_trainval')"]
    scores += [
        {"tiny_test": {"bbox": {"AP50": a}}, "tiny_trainval": {"bbox": {"AP50": b}}}
        for a, b in ((1.0, 9.0), (2.0, 8.0), (3.0, 7.0), (2.0, 9.0))
    ]
    run(tmp_path, [*EVERY, *sets])
    assert best(tmp_path) == (3.0, 2, 2)


@pytest.mark.parametrize(
    "opts",
    [["TEST.EVAL_PERIOD", "0"], [*EVERY, *NO_TEST], [*EVERY, "MODEL.PAPER_RCNN.PHASE", "rpn"]],
)
def test_without_a_metric_there_is_no_best(
    tmp_path: Path, scores: list[dict[str, Any]], opts: list[str]
) -> None:
    scores += [{}] * 4
    run(tmp_path, opts)
    assert "model_best.pth" not in files(tmp_path)


def test_in_four_stages_the_detectors_have_a_best(
    tmp_path: Path, scores: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages 2 and 4, the detectors, are evaluated after each of their three iterations."""
    phases: list[str] = []
    upcoming = [50.0, 40.0, 30.0, 20.0, 35.0]

    def test(cls: Any, cfg: Any, model: Any, evaluators: Any = None) -> dict[str, Any]:
        phases.append(getattr(model, "module", model).phase)
        return {"bbox": {"AP50": upcoming.pop(0)}}

    monkeypatch.setattr(PaperTrainer, "test", classmethod(test))
    trainer = make_trainer(
        tmp_path, ["TEST.EVAL_PERIOD", "1", "FOUR_STEP.EVALUATE_STEPS", "True",
                   "FOUR_STEP.ITERS", "[2,3,2,3]", "FOUR_STEP.DROPS", "[[],[],[],[]]"]
    )  # fmt: skip
    upcoming.insert(2, 45.0)  # the end of stage 2
    trainer.train()
    assert phases == ["fast_rcnn"] * 3 + ["joint"] * 3
    assert best(tmp_path, "stage2_best") == (50.0, 2, 2)
    assert best(tmp_path) == (35.0, 10, 10)  # the finished detector
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert lines[-1]["bbox/AP50"] == 35.0


@pytest.mark.parametrize("real", [True])
def test_evaluation_in_the_middle_changes_nothing(tmp_path: Path, real: bool) -> None:
    """Real evaluations: the weights at the end are those of a run without."""
    weights = []
    for name, period in (("with", "1"), ("without", "0")):
        opts = [
            *("FOUR_STEP.ITERS", "[1,2,1,2]", "FOUR_STEP.DROPS", "[[],[],[],[]]"),
            *("MODEL.RPN.PRE_NMS_TOPK_TEST", "200", "MODEL.RPN.POST_NMS_TOPK_TEST", "20"),
            *("FOUR_STEP.PRE_NMS_TOPK", "200", "SOLVER.CHECKPOINT_PERIOD", "9"),
            *("FOUR_STEP.STOP_AFTER", "2"),
        ]
        make_trainer(tmp_path / name, [*opts, "TEST.EVAL_PERIOD", period]).train()
        weights.append(torch.load(tmp_path / name / "model_final.pth", weights_only=True)["model"])
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


# ---- time to go -----------------------------------------------------------------------------


@pytest.fixture
def say(
    tiny_cfg: Callable[..., CfgNode],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    restore_catalogs: None,
) -> Callable[..., tuple[int, str]]:
    """A function that runs TimeToGo by a clock of its own: after which iteration it says what.

    (0, "") if it says nothing.
    """
    for name, images in (("time_train", 100), ("time_test", 50)):
        DatasetCatalog.register(name, lambda images=images: [{}] * images)

    def run(seconds: float, *opts: Any, first: int = 0) -> tuple[int, str]:
        sets = "DATASETS.TRAIN", ("time_train",), "DATASETS.TEST", ("time_test",)
        cfg = tiny_cfg(*sets, "SOLVER.IMS_PER_BATCH", 2, *opts)
        apply_four_step(cfg)
        stages = build_stages(cfg) if cfg.FOUR_STEP.ENABLED else ()
        clock = [0.0]
        monkeypatch.setattr(our_hooks, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
        hook = our_hooks.TimeToGo(cfg, stages)
        hook.trainer = SimpleNamespace(iter=first, max_iter=cfg.SOLVER.MAX_ITER)
        caplog.clear()
        hook.before_train()
        said = []
        with caplog.at_level(logging.INFO, our_hooks.__name__):
            for hook.trainer.iter in range(first, cfg.SOLVER.MAX_ITER):
                hook.before_step()
                clock[0] += seconds
                hook.after_step()
                said += [hook.trainer.iter + 1] * (len(caplog.messages) - len(said))
        return next(zip(said, caplog.messages, strict=True), (0, ""))

    return run


@pytest.mark.parametrize(
    ("seconds", "iterations", "after"),
    [(1, 90, 20), (14, 90, 3), (29, 90, 2), (700, 90, 1)],
)
def test_the_run_is_estimated_within_a_minute(
    say: Callable[..., tuple[int, str]], seconds: float, iterations: int, after: int
) -> None:
    said, message = say(seconds, "SOLVER.MAX_ITER", iterations)
    assert said == after
    assert message.startswith(f"an iteration takes {seconds:.2f} s; the run will end in about ")


@pytest.mark.parametrize(("seconds", "iterations"), [(1, 19), (1, 20), (9, 1), (31, 1)])
def test_a_run_that_is_over_is_not_estimated(
    say: Callable[..., tuple[int, str]], seconds: float, iterations: int
) -> None:
    assert say(seconds, "SOLVER.MAX_ITER", iterations) == (0, "")


def test_evaluations_count(say: Callable[..., tuple[int, str]]) -> None:
    """80 iterations of 1 s; at 30, 60, 90 and the end, 50 images of 0.48 x half a second."""
    opts = "SOLVER.MAX_ITER", 100, "TEST.EVAL_PERIOD", 30
    _, message = say(1, *opts)
    assert "end in about 0:02:08, on " in message
    assert "80 iterations: 0:01:20; 200 images to be evaluated or get proposals: 0:00:48" in message
    # Resumed: 10 iterations, and the evaluation at 90 is still to come after that iteration.
    _, message = say(31, *opts, first=89)
    assert "10 iterations: 0:05:10; 100 images " in message


def test_stages_differ(say: Callable[..., tuple[int, str]]) -> None:
    """By the table of docs/benchmarks.md; images per iteration 1, 2, 1, 2."""
    opts = (
        *("FOUR_STEP.ENABLED", True, "FOUR_STEP.ITERS", [40, 100, 100, 100]),
        *("FOUR_STEP.DROPS", [[], [], [], []], "FOUR_STEP.IMS_PER_BATCH", [1, 2, 1, 2]),
    )
    said, message = say(0.76, *opts)
    assert said == 20
    # 20 x 0.76 + 100 x 2 x 0.96 + 100 x 0.36 + 100 x 2 x 0.48 s.
    assert "320 iterations: 0:05:39; " in message
    # Proposals of 100 + 50 images twice, evaluations of 50 after stages 2 and 4, 0.48 s each.
    assert "400 images to be evaluated or get proposals: 0:03:12, all from the speed" in message
    # In stage 4 what came before no longer counts; nor do training images.
    _, message = say(0.96, *opts, first=240)
    assert "80 iterations: 0:01:17; 50 images " in message
    # Iterations of another stage are none of its own.
    assert say(0.76, *opts, "FOUR_STEP.ITERS", [10, 100, 100, 100])[0] == 30

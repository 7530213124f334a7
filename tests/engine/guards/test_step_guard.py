"""A loss that is not finite: the run stops with a dump and a message. Numbers: as constructed."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from frcnn_plugin.engine.guards.step_guard import StepGuard, likely_causes
from frcnn_plugin.errors import UserError
from frcnn_plugin.host import inner_trainer
from frcnn_plugin.process import launch
from tests.conftest import make_input
from tests.engine.joint_runs import make_joint_trainer
from tests.four_step.four_step_runs import make_trainer

pytestmark = pytest.mark.usefixtures("with_data")
CAUSE = "Likeliest causes, in this order:\n  1. the learning rate: 1e+08 with "


class Poison(HookBase):
    """Writes nan into a gradient at an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_backward(self) -> None:
        if self.trainer.iter == self.iteration:
            next(self.trainer.model.backbone.parameters()).grad[0] = math.nan


def stop(train: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        train()
    return str(caught.value)


def test_a_learning_rate_that_is_much_too_high(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_joint_trainer(tmp_path, ["SOLVER.BASE_LR", "1e8"])
    with caplog.at_level(logging.INFO):
        message = stop(trainer.train)
    assert message.startswith("the loss became nan at iteration 1 (loss_cls nan, ")
    assert (
        f"{CAUSE}2 images per iteration; the originals' for that batch is 0.001. Type:" in message
    )
    assert "  2. MODEL.WEIGHTS is empty: a network that starts from random numbers" in message
    assert "The last checkpoint is model_0000000.pth. With corrected data continue" in message
    # Detectron2 logs what ends a run with a traceback.
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert record.getMessage() == f"training stopped: {message}" and record.exc_info is None

    dump = torch.load(tmp_path / "nan_dump_1.pth", weights_only=True)
    assert str(tmp_path / "nan_dump_1.pth") in message
    assert {p.name for p in tmp_path.glob("*nan_dump*")} == {"nan_dump_1.pth"}
    assert (dump["iteration"], dump["rank"], dump["phase"]) == (1, 0, "joint")
    assert len(dump["images"]) == 2
    for image in dump["images"]:
        assert Path(image["file_name"]).is_file()
        height, width = image["network_size"]
        assert max(height, width) <= 160 and min(height, width) <= 96
        assert image["gt_boxes"].shape == (len(image["gt_classes"]), 4)
        assert image["height"] > 0 and image["image_id"] == Path(image["file_name"]).stem
    assert set(dump["losses"]) == set(dump["previous_losses"])
    assert math.isnan(dump["losses"]["loss_cls"])
    assert math.isfinite(dump["previous_losses"]["loss_cls"])
    assert dump["learning_rates"] == [1e8, 2e8]
    assert set(dump["gradient_norms"]) == {"backbone", "proposal_generator", "roi_heads"}
    assert dump["non_finite_weights"] == []


@pytest.mark.parametrize(("start", "phase"), [(0, "rpn"), (4, "fast_rcnn")])
def test_within_four_steps(tmp_path: Path, start: int, phase: str) -> None:
    """The rate is raised when the stage begins, as the schedule would."""
    trainer = make_trainer(tmp_path)

    class Raise(HookBase):
        def before_step(self) -> None:
            if self.trainer.iter == start:
                for group in self.trainer.optimizer.param_groups:
                    group["lr"] = 1e8

    trainer.register_hooks([Raise()])
    message = stop(trainer.train)
    dump = torch.load(tmp_path / f"nan_dump_{start + 1}.pth", weights_only=True)
    assert dump["phase"] == phase and f"at iteration {start + 1} (" in message
    assert ("loss_rpn_cls" in dump["losses"]) == (phase == "rpn")


def test_a_finite_loss_with_gradients_that_are_not(tmp_path: Path) -> None:
    trainer = make_joint_trainer(tmp_path, ["SOLVER.BASE_LR", "1e-4"])
    inner_trainer(trainer).register_hooks([Poison(1)])
    message = stop(trainer.train)
    assert message.startswith("the loss became nan at iteration 2")
    assert "1 weights of backbone were nan or infinite after iteration 1, whose loss was" in message
    assert "but whose gradients were not" in message
    assert "model_0000001.pth already has the bad weights: continue from an earlier one" in message
    dump = torch.load(tmp_path / "nan_dump_2.pth", weights_only=True)
    assert dump["non_finite_weights"] == ["backbone.conv1.conv1_1.weight"]


def test_weights_that_are_bad_from_the_start(tmp_path: Path) -> None:
    trainer = make_joint_trainer(tmp_path)
    torch.nn.init.constant_(trainer.model.roi_heads.box_head.fc6.weight, math.inf)
    message = stop(trainer.train)
    assert (
        "roi_heads were nan or infinite before the first iteration: look at MODEL.WEIGHTS"
        in message
    )


def test_numbers_that_detectron2_refuses_before_there_is_a_loss(tmp_path: Path) -> None:
    """Its own RPN raises; there are no gradients of this iteration."""
    trainer = make_joint_trainer(tmp_path)
    forward = trainer.model.backbone.forward

    def fail_at_2(x: torch.Tensor) -> Any:
        if trainer.iter == 2:
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Diverged.")
        return forward(x)

    trainer.model.backbone.forward = fail_at_2
    message = stop(trainer.train)
    assert message.startswith(
        "training diverged at iteration 2: Predicted boxes or scores contain Inf/NaN. Diverged."
    )
    dump = torch.load(tmp_path / "nan_dump_2.pth", weights_only=True)
    assert dump["losses"] == {} and dump["previous_losses"]
    assert dump["gradient_norms"] == {}
    assert len(dump["images"]) == 2


class OneLoss(torch.nn.Module):
    """A loss of the user's choice, with a gradient."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.values = values

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {"loss": self.values.pop(0) * self.weight}


def run_guarded(tiny_cfg: Any, folder: Path, values: list[float], trainer_class: type) -> None:
    model = OneLoss(list(values))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batches = [[make_input(32, 48, [[0, 0, 8, 8]])]] * len(values)
    trainer = trainer_class(model, batches, optimizer)
    guard = StepGuard(tiny_cfg("OUTPUT_DIR", str(folder)), model)
    trainer.register_hooks([guard])
    with guard.explaining():
        trainer.train(0, len(values))


@pytest.mark.parametrize(("value", "word"), [(math.inf, "infinite"), (math.nan, "nan")])
def test_in_any_trainer(tiny_cfg, tmp_path: Path, value: float, word: str) -> None:
    message = stop(lambda: run_guarded(tiny_cfg, tmp_path, [1.0, 1e30, value], SimpleTrainer))
    assert message.startswith(f"the loss became {word} at iteration 2 (loss {value:.4g})")
    run_guarded(tiny_cfg, tmp_path, [1.0, 1e30], SimpleTrainer)  # large is not infinite


def test_a_copy_of_the_model_is_not_watched(tiny_cfg, tmp_path: Path) -> None:
    model = OneLoss([1.0, 2.0])
    guard = StepGuard(tiny_cfg(), model)
    copied = copy.deepcopy(model)
    del guard
    with EventStorage(0):
        assert copied([make_input(8, 8, [])])["loss"].item() == 1.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_mixed_precision(tiny_cfg, tmp_path: Path) -> None:
    """A gradient that overflows is the scaler's; a loss that does is ours."""

    class Cuda(OneLoss):
        def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            return {"loss": self.values.pop(0) * self.weight.half().float()}

    def run(values: list[float]) -> None:
        model = Cuda(values).cuda()
        batches = [[make_input(32, 48, [])]] * len(values)
        trainer = AMPTrainer(model, batches, torch.optim.SGD(model.parameters(), lr=1e-9))
        guard = StepGuard(tiny_cfg("SOLVER.AMP.ENABLED", True, "OUTPUT_DIR", str(tmp_path)), model)
        trainer.register_hooks([guard])
        trainer.train(0, len(values))

    run([1.0, 1e30, 1.0])  # 65536 x 1e30 does not fit into float16: skipped
    message = stop(lambda: run([1.0, math.inf]))
    assert "mixed precision: a number larger than float16 can hold" in message


def train_with_one_bad_rank(folder: str) -> None:
    """In two processes: rank 1 alone sees a bad loss at iteration 1."""
    torch.set_num_threads(1)
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", "0", "SOLVER.CHECKPOINT_PERIOD", "9"]
    trainer = make_joint_trainer(Path(folder), opts)
    losses = trainer._guard._model._losses

    def bad(batch: Any) -> dict[str, torch.Tensor]:
        found = losses(batch)
        if trainer.iter == 1 and comm.get_rank() == 1:
            found["loss_cls"] = found["loss_cls"] * math.nan
        return found

    trainer._guard._model._losses = bad
    message = stop(trainer.train)
    (Path(folder) / f"rank{comm.get_rank()}.txt").write_text(message)
    comm.synchronize()


def test_every_process_stops(tmp_path: Path) -> None:
    launch(train_with_one_bad_rank, 2, args=(str(tmp_path),))
    messages = {(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)}
    assert len(messages) == 1
    assert messages.pop().startswith("the loss became nan at iteration 1 (loss_cls nan, ")
    dump = torch.load(tmp_path / "nan_dump_1.pth", weights_only=True)
    assert dump["rank"] == 1 and len(dump["images"]) == 1


# ---- causes ---------------------------------------------------------------------------------


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)


@pytest.fixture
def causes(tiny_cfg):
    def judge(*opts: Any, boxes=((0.0, 0.0, 20.0, 20.0),), images: int = 1, frozen=False):
        cfg = tiny_cfg("MODEL.WEIGHTS", "vgg16.pth", *opts)
        model = Net()
        model.backbone.requires_grad_(not frozen)
        batch = [make_input(60, 80, [list(box) for box in boxes])] * images
        rate = cfg.SOLVER.BASE_LR
        return likely_causes(cfg, model, batch, [rate, 2 * rate])

    return judge


def test_nothing_speaks_for_any(causes) -> None:
    found = causes(images=2)
    assert found[0].startswith(
        "the learning rate: 0.001 with 2 images per iteration; the originals' for that batch is "
        "0.001. Not too high, but try SOLVER.BASE_LR 0.0001, or SOLVER.CLIP_GRADIENTS.ENABLED True"
    )
    assert found[1].startswith("weights that do not fit: MODEL.WEIGHTS is vgg16.pth, the prepro")
    assert len(found) == 2
    assert causes(boxes=[])[0].startswith("the learning rate")


@pytest.mark.parametrize(
    "box",
    [
        (5.0, 5.0, 5.0, 20.0),
        (5.0, 20.0, 30.0, 5.0),
        (5.0, 5.0, 5.5, 20.0),
        (math.nan, 0.0, 9.0, 9.0),
        (0.0, 0.0, 65535.0, 9.0),
        (-40.0, 0.0, 9.0, 9.0),
    ],
)
def test_degenerate_boxes_come_first(causes, box) -> None:
    found = causes("SOLVER.BASE_LR", 1.0, boxes=[(0.0, 0.0, 20.0, 20.0), box])
    assert found[0].startswith("degenerate ground-truth boxes in this batch")
    assert f"0.jpg ({', '.join(f'{v:.1f}' for v in box)})" in found[0]
    assert found[0].count("0.jpg") == 1
    assert found[1].startswith("the learning rate: 1 with 1 image per iteration")


@pytest.mark.parametrize(("images", "usual"), [(2, 0.001), (4, 0.002), (16, 0.008)])
def test_the_rate_for_the_batch(causes, images: int, usual: float) -> None:
    """0.001 for up to two images, in proportion beyond."""
    assert causes("SOLVER.BASE_LR", 0.02, images=images)[0] == (
        f"the learning rate: 0.02 with {images} images per iteration; the originals' for that "
        f"batch is {usual}. Type: SOLVER.BASE_LR {usual}"
    )
    assert "Not too high" in causes("SOLVER.BASE_LR", usual, images=images)[0]


def test_a_random_frozen_backbone(causes) -> None:
    opts = ["MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", 2]
    assert causes(*opts, frozen=True)[0] == (
        "MODEL.WEIGHTS is empty and 2 tensors of the backbone are frozen at random numbers "
        "(MODEL.BACKBONE.FREEZE_AT 2). Give MODEL.WEIGHTS, or MODEL.BACKBONE.FREEZE_AT 0"
    )
    assert "starts from random numbers" in causes("MODEL.WEIGHTS", "")[0]


def test_preprocessing_for_pixels_of_0_to_1(causes) -> None:
    """255 / 0.2 = 1275."""
    opts = ["MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0], "MODEL.PIXEL_STD", [0.2, 0.2, 0.2]]
    assert causes(*opts)[0].startswith("preprocessing: the network's input reaches 1275, far above")


def test_mixed_precision_is_named(causes) -> None:
    assert causes("SOLVER.AMP.ENABLED", True)[0].startswith("mixed precision: a number larger")

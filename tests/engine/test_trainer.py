"""Optimizer, schedule, evaluators. Literals: examples E31 to E33 (docs/worked_examples.md)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.solver import build_lr_scheduler

from frcnn_plugin.data import register_voc
from frcnn_plugin.engine import PaperTrainer
from frcnn_plugin.errors import UserError
from frcnn_plugin.evaluation.coco import RecordingCOCOEvaluator
from frcnn_plugin.evaluation.proposals.evaluator import ProposalEvaluator
from frcnn_plugin.evaluation.voc import VOCEvaluator
from frcnn_plugin.four_step.proposals import StageProposals
from frcnn_plugin.four_step.stages import STAGES
from frcnn_plugin.host import replace_metadata


class Unit(torch.nn.Module):
    """One weight and one bias, both 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.bias = torch.nn.Parameter(torch.ones(()))


@pytest.mark.parametrize(("bias_decay", "bias_step"), [(None, 0.001001), (0.0, 0.001)])
def test_first_step_e32(tiny_cfg, bias_decay: float | None, bias_step: float) -> None:
    """Gradient .5, lr .001, decay .0005: bias at twice the rate, decayed or not."""
    model = Unit().double()
    cfg = tiny_cfg("SOLVER.WEIGHT_DECAY_BIAS", bias_decay)
    optimizer = PaperTrainer.build_optimizer(cfg, model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    assert 1 - model.weight.item() == pytest.approx(0.0005005, abs=1e-10)
    assert 1 - model.bias.item() == pytest.approx(bias_step, abs=1e-10)


def test_fused_sgd_is_used_and_equals_the_plain_one(tiny_cfg) -> None:
    def train(fused: bool) -> list[float]:
        torch.manual_seed(0)
        model = torch.nn.Linear(7, 5)
        optimizer = PaperTrainer.build_optimizer(tiny_cfg(), model)
        assert all(group["fused"] for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["fused"] = fused
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(3, 7)).square().sum().backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()

    assert train(True) == pytest.approx(train(False), rel=1e-5)


def test_amp_on_the_cpu_needs_no_scaler(tiny_cfg, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectron2's AMPTrainer refuses to run without CUDA."""
    monkeypatch.setattr(PaperTrainer, "build_train_loader", classmethod(lambda cls, cfg: [[]]))
    trainer = PaperTrainer(tiny_cfg("SOLVER.AMP.ENABLED", True))
    assert type(trainer._trainer) is SimpleTrainer
    assert trainer.model.amp_on_cpu


def test_gradients_of_two_images_are_averaged_e33() -> None:
    """iter_size 2 with gradients .4 and .8: .6, by the mean of two losses."""
    w = torch.zeros((), requires_grad=True)
    torch.stack([0.4 * w, 0.8 * w]).mean().backward()
    assert w.grad is not None and w.grad.item() == pytest.approx(0.6)


def test_joint_schedule_e31(tiny_cfg) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    scheduler = build_lr_scheduler(tiny_cfg(), optimizer)
    rate = [1e-3 * scheduler._multiplier(i / 70000) for i in (0, 49999, 50000, 69999)]
    assert rate == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize(
    ("evaluator_type", "phase", "kind"),
    [
        ("voc", "joint", VOCEvaluator),
        ("voc", "rpn", ProposalEvaluator),
        ("coco", "joint", RecordingCOCOEvaluator),
    ],
)
@pytest.mark.usefixtures("restore_catalogs")
def test_evaluators(tiny_cfg, tmp_path, evaluator_type: str, phase: str, kind: type) -> None:
    register_voc("evaluated", str(tmp_path), "test", ["cat"])
    if evaluator_type == "coco":
        json_file = tmp_path / "instances.json"
        json_file.write_text('{"images": [], "annotations": [], "categories": []}')
        replace_metadata("evaluated", evaluator_type="coco", json_file=str(json_file))
    cfg = tiny_cfg("MODEL.PAPER_RCNN.PHASE", phase, "OUTPUT_DIR", str(tmp_path))
    assert type(PaperTrainer.build_evaluator(cfg, "evaluated")) is kind


@pytest.mark.parametrize("name", ["../up", "a/b", "a_b", "n" * 300])
@pytest.mark.usefixtures("restore_catalogs")
def test_results_and_proposals_stay_in_their_folders(tiny_cfg, tmp_path, name: str) -> None:
    register_voc(name, str(tmp_path), "test", ["cat"])
    cfg = tiny_cfg("OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", (name,))
    folder = Path(PaperTrainer.build_evaluator(cfg, name)._output_dir)
    assert folder.parent == tmp_path / "inference"
    proposals = StageProposals(cfg, STAGES[0])
    files = {Path(proposals.path(text)) for text in (name, "a/b", "a_b")}
    assert len(files) == len({name, "a/b", "a_b"})
    assert {file.parent for file in files} == {proposals.folder}
    assert proposals.test_files == [proposals.path(name)]


def test_batch_that_cannot_be_divided(tiny_cfg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frcnn_plugin.engine.trainer.comm.get_world_size", lambda: 2)
    with pytest.raises(UserError, match=r"IMS_PER_BATCH 3 cannot be divided among 2 processes"):
        PaperTrainer.build_train_loader(tiny_cfg("SOLVER.IMS_PER_BATCH", 3))


def test_stages_without_a_test_set(tiny_cfg) -> None:
    """There is nothing to evaluate after stage 2."""
    trainer = object.__new__(PaperTrainer)
    trainer.cfg = tiny_cfg("DATASETS.TEST", ())
    model = SimpleNamespace(set_phase=lambda phase: None)
    assert trainer.test_on_proposals(model, []) == {}

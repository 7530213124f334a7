"""What each of the four stages does, seen from outside (paper section 3.2)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import get_detection_dataset_dicts
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage

from frcnn_plugin.checkpoint.conversion import without_statistics
from frcnn_plugin.data.proposals.files import check_proposals
from frcnn_plugin.engine import PaperTrainer
from frcnn_plugin.four_step import weights as stage_weights
from frcnn_plugin.four_step.log import format_plan
from frcnn_plugin.modeling.target_statistics import TargetStatistics, fold_target_statistics
from tests.four_step.fixtures import Run
from tests.four_step.four_step_runs import make_trainer, tiny_cfg

pytestmark = pytest.mark.usefixtures("with_data")

TRAINS = {
    1: ("backbone.", "proposal_generator."),
    2: ("backbone.", "roi_heads."),
    3: ("proposal_generator.",),
    4: ("roi_heads.",),
}
FROZEN = ("backbone.conv1", "backbone.conv2")


def test_only_the_stage_s_parts_move(finished: Run) -> None:
    names = [n for n in finished.weights("model_final.pth") if not n.startswith(FROZEN)]
    assert any(n.startswith("backbone.") for n in names)
    for stage, parts in TRAINS.items():
        expected = {n for n in names if n.startswith(parts)}
        assert finished.recorder.trainable[stage] == expected
        moved = finished.recorder.moved[stage]
        assert moved <= expected
        # A bias may stay at 0, a weight decays at least.
        assert {n for n in expected if n.endswith("weight")} <= moved


def test_phases_and_batches(finished: Run) -> None:
    assert finished.recorder.batches == {
        1: {("rpn", 1, False)},
        2: {("fast_rcnn", 2, True)},
        3: {("rpn", 1, False)},
        4: {("fast_rcnn", 2, True)},
    }


def test_momentum_and_rate_start_again(finished: Run) -> None:
    assert finished.recorder.momentum == dict.fromkeys(TRAINS, 0)
    assert finished.recorder.rates == pytest.approx([3e-3, 3e-3, 3e-4, 3e-4] * 4)


def test_no_work_that_the_stage_does_not_need(finished: Run) -> None:
    """RPN stages select no proposals; stages 3 and 4 do not go back through the convolutions."""
    assert finished.recorder.selected == {}
    assert finished.recorder.conv_gradient == {1: True, 2: True, 3: False, 4: False}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], *prefixes: str) -> bool:
    names = [n for n in a if n.startswith(prefixes) and "target_statistics" not in n]
    assert names
    return all(torch.equal(a[n], b[n]) for n in names)


def test_stage_2_starts_from_the_initial_weights(finished: Run) -> None:
    initial, entered = finished.weights("initial_weights.pth"), finished.recorder.entered[2]
    given = torch.load(finished.root / "imagenet.pth", weights_only=True)["model"]
    assert same(given, initial, "backbone.", "roi_heads.")
    assert same(initial, entered, "backbone.", "roi_heads.")
    assert not same(initial, finished.weights("stage1_final.pth"), "backbone.conv5")


def test_stage_3_keeps_the_convolutions_and_draws_an_rpn_head(finished: Run) -> None:
    entered = finished.recorder.entered[3]
    assert same(finished.weights("stage2_final.pth"), entered, "backbone.", "roi_heads.")
    for name in ("rpn_conv", "rpn_cls_score", "rpn_bbox_pred"):
        weight = entered[f"proposal_generator.rpn_head.{name}.weight"]
        assert weight.std().item() == pytest.approx(0.01, rel=0.15)
        assert entered[f"proposal_generator.rpn_head.{name}.bias"].abs().max() == 0
        for other in ("initial_weights.pth", "stage1_final.pth", "stage2_final.pth"):
            before = finished.weights(other)[f"proposal_generator.rpn_head.{name}.weight"]
            assert (weight - before).abs().mean() > 0.005, (name, other)


def test_stage_4_goes_on_with_the_same_function(finished: Run) -> None:
    """With new target statistics, as in MATLAB."""
    entered = finished.recorder.entered
    key = "roi_heads.box_predictor.target_statistics.mean"
    assert not torch.equal(entered[2][key], entered[4][key])
    assert same(finished.weights("stage3_final.pth"), entered[4], "backbone.", "proposal_generator")
    before = outputs(finished, finished.weights("stage2_final.pth"))
    now = outputs(finished, entered[4])
    torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-5)


def make_model(run: Run, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = PaperTrainer.build_model(tiny_cfg(run.root / "none", run.opts))
    model.load_state_dict(weights)
    return model


def outputs(run: Run, weights: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and deltas, as Detectron2 decodes them, of a predictor with these weights."""
    model = make_model(run, weights)
    x = torch.rand(20, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores, deltas = model.roi_heads.box_predictor(x)
        return scores, model.roi_heads.box_predictor.target_statistics.denormalise(deltas)


def test_stage_4_restarts_the_predictor(finished: Run) -> None:
    """As in py-faster-rcnn."""
    opts = finished.later(4, "FOUR_STEP.PREDICTOR_START", "restart")
    trainer = make_trainer(finished.root / "restart", opts)
    model, hook = trainer.model, trainer._hooks[0]
    trainer.storage = EventStorage()
    hook.before_train()
    hook.before_step()
    hook._log.stop()
    predictor, before = model.roi_heads.box_predictor, finished.weights("stage3_final.pth")
    assert same(before, model.state_dict(), "backbone.", "roi_heads.box_head", "proposal_generator")
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.25)
        assert layer.bias.abs().max() == 0
    assert predictor.target_statistics.active


def test_statistics_are_there_in_training_and_folded_in_files(finished: Run) -> None:
    for stage, part in ((1, "proposal_generator"), (2, "roi_heads.box_predictor"),
                       (3, "proposal_generator"), (4, "roi_heads.box_predictor")):  # fmt: skip
        entered = without_statistics(finished.recorder.entered[stage])
        keys = {k for k in entered if "target_statistics" in k}
        assert keys == {f"{part}.target_statistics.mean", f"{part}.target_statistics.std"}
    files = [*(f"stage{k}_final.pth" for k in TRAINS), "model_final.pth", "initial_weights.pth"]
    for name in files:
        assert not [k for k in finished.weights(name) if "target_statistics" in k], name


def test_folding_at_the_end_changes_no_box(finished: Run) -> None:
    """Weights with statistics and folded weights are one function."""
    model = make_model(finished, finished.recorder.entered[4])
    before = outputs(finished, model.state_dict())
    fold_target_statistics(model)
    assert not any(m.active for m in model.modules() if isinstance(m, TargetStatistics))
    torch.testing.assert_close(outputs(finished, model.state_dict()), before, rtol=1e-4, atol=1e-5)


def test_the_end_of_stage_4_is_the_whole_model(finished: Run) -> None:
    assert same(finished.weights("model_final.pth"), finished.weights("stage4_final.pth"), "")
    assert finished.recorder._model.phase == "joint"


def test_metrics_name_the_stage(finished: Run) -> None:
    stages = {}
    found = set()
    for line in (finished.folder / "metrics.json").read_text().splitlines():
        entry = json.loads(line)
        found |= entry.keys()
        if "stage" in entry:
            stages[entry["iteration"]] = entry["stage"]
    assert [stages[i] for i in range(15)] == [1 + i // 4 for i in range(15)]
    for stage, key in ((1, "proposals"), (2, "bbox/AP50"), (3, "proposals")):
        assert any(k.startswith(f"stage{stage}/{key}") for k in found), sorted(found)
    assert "bbox/AP50" in found  # of the whole, at the end


def test_every_line_names_the_stage(finished: Run) -> None:
    lines = finished.recorder.lines
    first = next(i for i, line in enumerate(lines) if "stage 1 of 4 begins" in line)
    last = next(i for i, line in enumerate(lines) if "share their convolutions" in line)
    during = lines[first : last + 1]
    assert len(during) > 30
    assert [line for line in during if not line.startswith("[stage ")] == []
    numbers = [int(line[len("[stage ")]) for line in during]
    assert numbers == sorted(numbers) and set(numbers) == {1, 2, 3, 4}
    assert not lines[0].startswith("[stage ") and not lines[-1].startswith("[stage ")
    assert not any(line.count("[stage ") > 1 for line in lines)
    # A result is that of the stage in front of it.
    for stage, words in ((1, "proposal recall"), (2, "mean AP50"), (3, "proposal recall")):
        assert any(line.startswith(f"[stage {stage}/4]") and words in line for line in during)


def test_losses_of_another_stage_are_not_printed(finished: Run) -> None:
    rpn = {"loss_rpn_cls", "loss_rpn_loc", "total_loss"}
    head = {"loss_cls", "loss_box_reg", "total_loss"}
    assert finished.recorder.losses == {1: rpn, 2: head, 3: rpn, 4: head}
    printed = [x for x in finished.recorder.lines if "total_loss:" in x]
    assert len(printed) >= 14
    for line in printed:
        assert ("loss_rpn_cls:" in line) == line.startswith(("[stage 1/4]", "[stage 3/4]")), line
        assert ("loss_box_reg:" in line) == line.startswith(("[stage 2/4]", "[stage 4/4]")), line


def test_proposal_files(finished: Run) -> None:
    for stage in (1, 3):
        for name in ("tiny_trainval", "tiny_test"):
            dicts = get_detection_dataset_dicts(name, filter_empty=False)
            path = finished.folder / "proposals" / f"stage{stage}" / f"{name}.pkl"
            proposals = check_proposals(path, dicts, name)
            assert proposals.ids == [d["image_id"] for d in dicts]
            assert max(map(len, proposals.logits)) <= 100
    assert not list(finished.folder.rglob("*.partial"))


def test_shared_convolutions_are_confirmed(finished: Run) -> None:
    (line,) = [x for x in finished.recorder.lines if "share their convolutions" in x]
    digest = line.rpartition(" ")[2]
    for name in ("stage2_final.pth", "stage3_final.pth", "model_final.pth"):
        model = make_model(finished, finished.weights(name))
        assert stage_weights.digest(model.backbone) == digest, name


def test_convolutions_that_change_in_stage_4_are_noticed(finished: Run, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, finished.opts)
    trainer._hooks[0]._shared_convolutions = "another"
    with pytest.raises(RuntimeError, match="the convolutions changed in stage 3 or 4"):
        trainer._hooks[0]._check_shared(trainer.model)


def test_plan(finished: Run) -> None:
    plan = next(x for x in finished.recorder.lines if x.startswith("four-step training, "))
    assert "16 iterations in all" in plan
    sizes = {n: v.numel() for n, v in finished.weights("model_final.pth").items()}
    for stage, trainable in finished.recorder.trainable.items():
        trained = sum(sizes[n] for n in trainable)
        (row,) = [x for x in plan.splitlines() if x.startswith(f"{stage} ")]
        assert f" {trained:,} " in row and f" {sum(sizes.values()) - trained:,} " in row
        assert f"stage{stage}_final.pth" in row and "4 x" in row
    path = str(finished.root / "imagenet.pth")
    for text in ("imagenet.pth again", path, "RPN head new", "writes", "reads", "0.003 to 2"):
        assert text in plan, plan


class Seen(HookBase):
    """The images of each stage."""

    def __init__(self) -> None:
        self.files: dict[int, set[str]] = {}

    def after_step(self) -> None:
        loss = self.trainer.storage.history("total_loss").latest()
        assert math.isfinite(loss)

    def watch(self, model: Any) -> None:
        losses = model._losses

        def noting(inputs: list[dict[str, Any]]) -> Any:
            stage = int(self.trainer.storage.history("stage").latest())
            names = {Path(x["file_name"]).name for x in inputs if not len(x["instances"])}
            self.files.setdefault(stage, set()).update(names)
            return losses(inputs)

        model._losses = noting


@pytest.mark.parametrize("filtered", [True, False])
def test_images_without_objects_in_all_stages(tmp_path: Path, filtered: bool) -> None:
    """They train as background, RPN and detector, or are left out."""
    opts = ["FOUR_STEP.ITERS", "[12,6,12,6]", "FOUR_STEP.DROPS", "[[],[],[],[]]"]
    opts += ["FOUR_STEP.RPN_TARGET_STATISTICS", "True", "SOLVER.CHECKPOINT_PERIOD", "99"]
    trainer = make_trainer(tmp_path, [*opts, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", str(filtered)])
    seen = Seen()
    trainer.register_hooks([seen])
    seen.watch(trainer.model)
    trainer.train()
    dicts = get_detection_dataset_dicts("tiny_trainval", filter_empty=False)
    without = {Path(d["file_name"]).name for d in dicts if not d["annotations"]}
    assert without
    empty = set() if filtered else without
    assert seen.files == dict.fromkeys((1, 2, 3, 4), empty)


def test_more_processes_are_said_with_what_to_paste(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the images at twice the rate, for half as long."""
    opts = ["FOUR_STEP.ITERS", "[8,4,8,5]", "FOUR_STEP.DROPS", "[[6],[3],[2,6],[]]"]
    cfg = tiny_cfg(tmp_path, opts)
    assert "a batch is" not in format_plan(cfg, [{}])
    monkeypatch.setattr("frcnn_plugin.four_step.log.comm.get_world_size", lambda: 2)
    last = format_plan(cfg, [{}]).splitlines()[-1]
    assert last.startswith("2 processes: a batch is 2 times as large")
    wanted = "SOLVER.BASE_LR 0.006 FOUR_STEP.ITERS [4,2,4,2] FOUR_STEP.DROPS [[3],[1],[1,3],[]]"
    assert last.endswith(wanted)
    tiny_cfg(tmp_path, wanted.split())  # it can be typed as it is

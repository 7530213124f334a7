"""Losses on the test set: the right numbers, and training goes on as if nothing had happened."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from PIL import Image

from frcnn_plugin.data.loading.image_reader import read_bgr
from frcnn_plugin.engine.validation_loss import ValidationLoss
from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import PaperRCNN
from tests.engine.joint_runs import make_joint_trainer
from tests.four_step.four_step_runs import digest_of, make_trainer

pytestmark = pytest.mark.usefixtures("with_data")

QUIET = ["SOLVER.CHECKPOINT_PERIOD", "9", "MODEL.RPN.POST_NMS_TOPK_TEST", "10"]
LOSSES = ["loss_box_reg", "loss_cls", "loss_rpn_cls", "loss_rpn_loc", "total_loss"]


def measured(folder: Path) -> dict[int, dict[str, float]]:
    """The validation losses by iteration."""
    found: dict[int, dict[str, float]] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        row = json.loads(line)
        losses = {k: v for k, v in row.items() if k.startswith("validation/")}
        if losses:
            found.setdefault(row["iteration"], {}).update(losses)
    return found


class Write(HookBase):
    """Detectron2 writes its log every 20 iterations; here every one."""

    def after_step(self) -> None:
        writer = self.trainer._hooks[-2]
        for each in writer._writers:
            each.write()


def run(trainer: Any) -> dict[str, torch.Tensor]:
    trainer.register_hooks([Write()])
    trainer.train()
    final = Path(trainer.cfg.OUTPUT_DIR) / "model_final.pth"
    return torch.load(final, weights_only=True)["model"]


@pytest.mark.parametrize("seed", ["3", "-1"])
def test_training_is_not_changed(
    tmp_path: Path, seed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, also where random numbers go on from where they were."""
    monkeypatch.setattr("frcnn_plugin.engine.trainer.comm.shared_random_seed", lambda: 5)
    weights = []
    for name, period in (("with", "1"), ("without", "0")):
        opts = [*QUIET, "SEED", seed, "TEST.LOSS_PERIOD", period]
        trainer = make_joint_trainer(tmp_path / name, opts)
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        weights.append(digest_of(run(trainer)))
    assert weights[0] == weights[1]
    found = measured(tmp_path / "with")
    assert sorted(found) == [0, 1, 2, 3] and not measured(tmp_path / "without")
    assert all(sorted(row) == [f"validation/{n}" for n in LOSSES] for row in found.values())
    first = found[0]
    parts = [value for key, value in first.items() if "total" not in key]
    assert first["validation/total_loss"] == pytest.approx(sum(parts)) and min(parts) > 0
    assert first != found[3], "the weights have changed in between"


def test_the_mean_over_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of 1 and 2 on the two images of the set: 1.5; in training mode, without gradients."""
    upcoming: list[float] = []
    sizes: list[tuple[int, ...]] = []

    def losses(model: PaperRCNN, inputs: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        if torch.is_grad_enabled():
            upcoming[:] = [1.0, 2.0]
            return {"loss_a": 0 * next(model.parameters()).sum()}
        assert model.training and "instances" in inputs[0]
        sizes.append(tuple(inputs[0]["image"].shape[-2:]))
        model.get_buffer("pixel_mean").add_(1.0)  # as batch normalization would
        return {"loss_a": torch.tensor(upcoming.pop(0))}

    monkeypatch.setattr(PaperRCNN, "_losses", losses)
    opts = [*QUIET, "TEST.LOSS_PERIOD", "2", "INPUT.MIN_SIZE_TEST", "80"]
    trainer = make_joint_trainer(tmp_path, opts)
    mean = trainer.model.pixel_mean.clone()
    run(trainer)
    assert measured(tmp_path) == {
        i: {"validation/loss_a": 1.5, "validation/total_loss": 1.5} for i in (1, 3)
    }
    assert len(sizes) == 4 and all(min(size) == 80 for size in sizes)
    assert torch.equal(trainer.model.pixel_mean, mean)


@pytest.mark.usefixtures("restore_catalogs")
def test_images_are_read_as_in_training(tmp_path: Path) -> None:
    """Deep grey is scaled, and an image that cannot be used is left out if the config says so."""
    deep = np.full((80, 96), 30000, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    box = {"bbox": [1, 2, 60, 70], "bbox_mode": 0, "category_id": 0}
    records = [
        {"file_name": str(tmp_path / name), "image_id": name, "height": 80, "width": 96,
         "annotations": [dict(box)]}
        for name in ("bad.png", "deep.png")
    ]  # fmt: skip
    DatasetCatalog.register("odd_images", lambda: records)
    for choice in ("skip", "stop"):
        opts = [*QUIET, "TEST.LOSS_PERIOD", "1", "DATALOADER.ON_BAD_IMAGE", choice]
        hook = ValidationLoss(make_joint_trainer(tmp_path / choice, opts).cfg)
        if choice == "stop":
            with pytest.raises(UserError, match=r"bad\.png cannot be read as an image"):
                list(hook._loader("odd_images", []))
            return
        ((item,),) = list(hook._loader("odd_images", []))
        assert item["image_id"] == "deep.png" and len(item["instances"]) == 1
        (value,) = item["image"].unique().tolist()
        assert value == read_bgr(tmp_path / "deep.png")[0, 0, 0]


def test_in_four_stages(tmp_path: Path) -> None:
    """Those of what trains; the detector's need proposals of the stage before."""
    opts = [*QUIET, "FOUR_STEP.ITERS", "[2,2,2,2]", "FOUR_STEP.DROPS", "[[],[],[],[]]"]
    opts += ["FOUR_STEP.PRE_NMS_TOPK", "100", "FOUR_STEP.POST_NMS_TOPK", "20"]
    opts += ["TEST.LOSS_PERIOD", "1", "FOUR_STEP.EVALUATE_STEPS"]
    run(make_trainer(tmp_path / "proposals", [*opts, "True"]))
    rpn, detector = {"loss_rpn_cls", "loss_rpn_loc"}, {"loss_box_reg", "loss_cls"}
    found = measured(tmp_path / "proposals")
    names = {i: {k.removeprefix("validation/") for k in row} for i, row in found.items()}
    # Not after the last iteration of a stage, whose statistics are folded by then.
    stages = zip((0, 2, 4, 6), (rpn, detector) * 2, strict=True)
    assert names == {i: {"total_loss", *losses} for i, losses in stages}
    run(make_trainer(tmp_path / "none", [*opts, "False"]))
    assert sorted(measured(tmp_path / "none")) == [0, 4]


def test_without_a_test_set(tmp_path: Path) -> None:
    opts = [*QUIET, "TEST.LOSS_PERIOD", "1", "DATASETS.TEST", "()"]
    trainer = make_joint_trainer(tmp_path, opts)
    assert not any(isinstance(hook, ValidationLoss) for hook in trainer._hooks)

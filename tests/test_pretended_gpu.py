"""Every system runs on a GPU as on a CPU, as far as a pretended one can tell."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import move_device_like
from detectron2.modeling import build_model
from detectron2.structures import PolygonMasks
from detectron2.utils.events import EventStorage

from benchmarks.contenders import Found, found_again
from benchmarks.syncs import count_syncs, sync_rows, totals
from benchmarks.work import Work, make_batch
from frcnn_plugin import get_config_file
from frcnn_plugin.data.synthetic import write_synthetic_voc
from frcnn_plugin.engine import PaperTrainer, setup_cfg

from .pretended_gpu import pretended_gpu
from .random_detector import random_detector
from .small_demo import SMALL

SYSTEMS: dict[str, list[str]] = {
    "joint": [],
    "nonapproximate": [],
    "ohem": [],
    "softnms": [],
    "cascade": ["MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "(0.5, 0.6, 0.7)"],
    "rfcn": ["MODEL.RFCN.CONV_DIM", "8"],
    "hypernet": ["MODEL.HYPER.CHANNELS", "4", "MODEL.HYPER_RPN.FC_DIM", "8"],
    "dilated": [],
    "fpn": [],
    "mask": [],
}


def config(system: str, device: str, *opts: str) -> CfgNode:
    file = get_config_file(f"demo/vgg16_shapes_{system}.yaml")
    return setup_cfg(file, [*SMALL, *SYSTEMS[system], "MODEL.DEVICE", device, *opts])


def batch(training: bool) -> list[dict[str, Any]]:
    images = make_batch(Work(training, 160, 224, batch=2), classes=3)
    for truth in (x["instances"] for x in images):
        boxes = truth.gt_boxes.tensor.tolist()
        truth.gt_masks = PolygonMasks(
            [[np.array([x1, y1, x2, y1, x2, y2, x1, y2])] for x1, y1, x2, y2 in boxes]
        )
    return images


def step(cfg: CfgNode, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    """The losses of an iteration, and of the next."""
    model = build_model(cfg)
    model.load_state_dict(weights)
    optimizer = PaperTrainer.build_optimizer(cfg, model.train())
    found: dict[str, float] = {}
    with EventStorage():
        for i in range(2):
            torch.manual_seed(i)
            losses = model(batch(True))
            found |= {f"{name} {i}": value.item() for name, value in losses.items()}
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    return found


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_cpu_s_results(system: str) -> None:
    cpu = random_detector(config(system, "cpu"))
    weights = cpu.state_dict()
    with torch.no_grad():
        expected = [x["instances"] for x in cpu(batch(False))]
    losses = step(config(system, "cpu"), weights)
    with pretended_gpu():
        gpu = build_model(config(system, "cuda")).eval()
        gpu.load_state_dict(weights)
        with torch.no_grad():
            found = [x["instances"] for x in gpu(batch(False))]
        assert all(x.scores.is_cuda and x.pred_boxes.tensor.is_cuda for x in found)
        found = [x.to("cpu") for x in found]
        assert step(config(system, "cuda"), weights) == losses
    for a, b in zip(found, expected, strict=True):
        assert len(a) > 0
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_classes, b.pred_classes)
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_real_gpu(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It rounds otherwise, and draws other samples."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    cpu = random_detector(config(system, "cpu"))
    gpu = build_model(config(system, "cuda")).eval()
    gpu.load_state_dict(cpu.state_dict())
    with torch.no_grad():
        expected, found = (
            [x["instances"].to("cpu") for x in model(batch(False))] for model in (cpu, gpu)
        )
    expected, found = (
        [Found(x.pred_boxes.tensor, x.pred_classes) for x in each] for each in (expected, found)
    )
    assert found_again(expected, found) > 90
    assert all(map(math.isfinite, step(config(system, "cuda"), cpu.state_dict()).values()))


@pytest.mark.parametrize("training", [False, True])
def test_the_counter_sees_all_but_copies_to_the_gpu(training: bool) -> None:
    """Those of numbers, it sees where Python makes a tensor of them on the device."""

    def run(device: str) -> Callable[[], object]:
        model = build_model(config("joint", device)).train(training)
        model.load_state_dict(weights)
        images = make_batch(Work(training, 160, 224), classes=3)

        def forward() -> None:
            torch.manual_seed(0)
            with EventStorage(), torch.no_grad():
                model(images)

        return forward

    weights = random_detector(config("joint", "cpu")).state_dict()
    rows = sync_rows(count_syncs(run("cpu")))
    with pretended_gpu() as waits:
        forward = run("cuda")
        waits.clear()
        move_device_like(torch.zeros(1), torch.zeros(1, device="cuda"))
        [(_, moved)] = waits  # its line in this Detectron2
        waits.clear()
        forward()
        # Not counted: the image and the ground truth. And nothing makes the RPN wait for conv5.
        assert not any("anchor" in line or line == moved for _, line in waits)
        operators = [line for operator, line in waits if operator != "to gpu"]
    assert totals(rows)[0] == len(operators) == (12 if training else 5), operators


@pytest.mark.parametrize("system", ["", "_joint"])
def test_mixed_precision_training(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restore_catalogs: None
) -> None:
    """Loader, AMPTrainer, hooks, proposals, evaluation."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    write_synthetic_voc(tmp_path / "demo_shapes", num_trainval=3, num_test=2)
    opts = [
        *("SOLVER.AMP.ENABLED", "True", "MODEL.PAPER_RCNN.INFERENCE_DTYPE", "bfloat16"),
        *("FOUR_STEP.ITERS", "[2,2,2,2]", "FOUR_STEP.DROPS", "[[],[],[],[]]"),
        *("SOLVER.MAX_ITER", "2", "VIS_PERIOD", "1", "OUTPUT_DIR", str(tmp_path / "run")),
        *("FOUR_STEP.POST_NMS_TOPK", "50", "SEED", "1", "MODEL.DEVICE", "cuda"),
    ]
    with pretended_gpu():
        cfg = setup_cfg(get_config_file(f"demo/vgg16_shapes{system}.yaml"), [*SMALL, *opts])
        trainer = PaperTrainer(cfg)
        trainer.resume_or_load(False)
        results = trainer.train()
    assert results is not None and results["bbox"]["AP50"] >= 0

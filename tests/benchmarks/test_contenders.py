"""One that is measured: equal weights, and which detections are found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from benchmarks.contenders import Contender, Found, calibrated_weights, found_again
from benchmarks.weights import RandomWeights, calibrate, roles
from benchmarks.work import Spec

from .tiny import spec_and_work

# ---- equal weights --------------------------------------------------------------------------


def test_peers_get_the_same_weights() -> None:
    """Ours and Detectron2's with floor pooling made equal: the same logits, anchor by anchor.

    On 96x160 all sides are multiples of 16, so rounding up or down is the same.
    """
    found = {}
    ours, work = spec_and_work()
    weights = calibrated_weights(ours, work)
    for kind in ("config", "detectron2", "torchvision"):
        spec, _ = spec_and_work(kind=kind)
        model = Contender(spec, work, weights).model
        features = torch.rand(1, 3, 96, 160, generator=torch.Generator().manual_seed(1)) * 100
        with torch.no_grad():
            features = model.backbone(features)
            if isinstance(features, dict):
                (features,) = features.values()
            head = model.rpn.head if kind == "torchvision" else model.proposal_generator.rpn_head
            (logits,), (deltas,) = head([features])
            rois = torch.rand(3, 8 * 49, generator=torch.Generator().manual_seed(2))
            fc = model.roi_heads.box_head(rois.view(3, 8, 7, 7))
            scores, boxes = model.roi_heads.box_predictor(fc)
        found[kind] = logits[0], deltas[0].unflatten(0, (9, 4)), scores, boxes
    logits, deltas, scores, boxes = found["config"]
    assert logits.std() > 0.1  # something to compare
    # Detectron2: sizes outside, ratios inside; ours the other way round.
    order = [0, 3, 6, 1, 4, 7, 2, 5, 8]
    for mine, theirs in zip(
        (logits[order], deltas[order], scores, boxes), found["detectron2"], strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    background_first = torch.cat((scores[:, -1:], scores[:, :-1]), 1)
    with_background = torch.cat((torch.zeros(3, 4), boxes), 1)
    for mine, theirs in zip(
        (logits, deltas, background_first, with_background), found["torchvision"], strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_reaches_ours_and_the_peers(tmp_path: Path) -> None:
    spec, work = spec_and_work()
    made = Contender(spec, work, RandomWeights(5))
    path = tmp_path / "weights.pth"
    torch.save({"model": made.model.state_dict()}, path)
    for kind in ("config", "detectron2"):
        other, _ = spec_and_work(kind=kind)
        other = replace(other, opts=(*other.opts, "MODEL.WEIGHTS", str(path)))
        model = Contender(other, work, RandomWeights(0)).model
        head = model.roi_heads.box_head
        fc6 = head.fc6 if kind == "config" else head.fc1
        assert torch.equal(fc6.weight, made.model.roi_heads.box_head.fc6.weight)


def test_calibration_sets_the_deviation_of_every_layer() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.Linear(20, 30))
    x = 100 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    places = roles(net)
    made = calibrate(RandomWeights(0), places, lambda: net(x))
    again = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.Linear(20, 30))
    made.fill(roles(again))
    assert again[0](x).std().item() == pytest.approx(1, abs=1e-3)
    assert again(x).std().item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "training", "device", "own"),
    [
        ("config", False, "cpu", True),
        ("config", True, "cpu", True),
        ("config", True, "cuda", False),  # the trainer's business there
        ("detectron2", False, "cpu", False),
    ],
)
def test_bfloat16_by_the_switch_of_the_config(
    kind: str, training: bool, device: str, own: bool
) -> None:
    spec = Spec("x", kind, "", (), True)
    cfg = CfgNode({"MODEL": {"DEVICE": device, "META_ARCHITECTURE": "PaperRCNN"}})
    assert spec.own_switch(cfg, training) is own
    assert not Spec("x", kind, "", (), False).own_switch(cfg, training)


# ---- found again ----------------------------------------------------------------------------


def found(*rows: tuple[float, float, float, float, int]) -> Found:
    table = torch.tensor(rows).reshape(-1, 5)
    return Found(table[:, :4], table[:, 4].long())


A, B = (0, 0, 10, 10), (50, 50, 60, 70)
HALF, LESS = (0, 0, 10, 5), (0, 0, 10, 4)  # of A: IoU 0.5 and 0.4


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ([(*A, 1), (*B, 2)], 100),
        ([(*B, 2), (*A, 1)], 100),  # their order does not matter
        ([(*HALF, 1), (*B, 2)], 100),
        ([(*LESS, 1), (*B, 2)], 50),
        ([(*A, 2), (*B, 2)], 50),  # another class
        ([(*A, 1), (*A, 1), (*A, 1)], 50),
        ([], 0),
    ],
)
def test_found_again(theirs: list[tuple[float, ...]], expected: float) -> None:
    ours = found((*A, 1), (*B, 2))
    assert found_again([ours], [found(*theirs)]) == expected


def test_each_partner_counts_once() -> None:
    twice, once = found((*A, 1), (*HALF, 1)), found((*A, 1))
    assert found_again([twice], [once]) == 50


def test_over_all_images() -> None:
    ours, theirs = [found((*A, 1)), found(), found((*B, 1))], [found(), found((*A, 1)), found()]
    assert found_again(ours, theirs) == 0
    assert found_again([found()], [found((*A, 1))]) == 100

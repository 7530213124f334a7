"""Parts of the benchmarks: equal weights, turns, statistics, counts of operators that wait."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torchvision.ops import batched_nms

from frcnn_plugin.errors import UserError
from frcnn_plugin.layers import prefix_nms

from .benchmark_tool import part, spec_and_work


def test_a_mistake_in_a_process_of_its_own_is_one_sentence() -> None:
    """What the process sends, and what comes of it here; without the seconds of starting one."""
    spec, work = spec_and_work()
    sessions, weights = part("sessions"), part("weights").RandomWeights(0)
    spec = part("specs").Spec("x", "config", spec.config_file, ("MODEL.NONE", "1"))
    near, far = torch.multiprocessing.Pipe()
    sessions._serve(far, spec, work, weights, torch.get_num_threads())
    session = object.__new__(sessions.ChildSession)
    session.name, session._pipe = "x", near
    with pytest.raises(UserError, match=r"^x: the command line: .*MODEL.NONE"):
        session._receive()
    far.close()  # as when it is killed
    session._process = SimpleNamespace(join=lambda: None, exitcode=-9)
    with pytest.raises(UserError, match=r"^x: its process ended with code -9 \(out of memory\?\)$"):
        session._receive()


def test_process_settings_are_for_the_plugin_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    tuning = SimpleNamespace(tune_process=lambda: calls.append("tuned"))
    monkeypatch.setitem(sys.modules, "frcnn_plugin.process", tuning)
    for kind in ("detectron2", "torchvision"):
        part("sessions").tune(spec_and_work(kind=kind)[0])
    assert calls == []
    part("sessions").tune(spec_and_work()[0])
    assert calls == ["tuned"]
    monkeypatch.setitem(sys.modules, "frcnn_plugin.process", None)  # a version without it
    part("sessions").tune(spec_and_work()[0])


@pytest.mark.parametrize(
    ("kind", "training", "device", "switch", "own"),
    [
        ("config", False, "cpu", True, True),
        ("config", True, "cpu", True, True),
        ("config", True, "cuda", True, False),  # the trainer's business there
        ("config", False, "cpu", False, False),  # a version without the key
        ("detectron2", False, "cpu", True, False),
    ],
)
def test_bfloat16_by_the_switch_of_the_config(
    kind: str, training: bool, device: str, switch: bool, own: bool
) -> None:
    spec = part("specs").Spec("x", kind, "", (), True)
    model = {"DEVICE": device, "META_ARCHITECTURE": "PaperRCNN", "PAPER_RCNN": {}}
    cfg = CfgNode({"MODEL": model})
    if switch:
        cfg.MODEL.PAPER_RCNN.INFERENCE_DTYPE = "float32"
    assert spec.own_switch(cfg, training) is own
    assert not part("specs").Spec("x", kind, "", (), False).own_switch(cfg, training)


# ---- equal weights --------------------------------------------------------------------------


def test_peers_get_the_same_weights() -> None:
    """Ours and Detectron2's with floor pooling made equal: the same logits, anchor by anchor.

    On 96x160 all sides are multiples of 16, so rounding up or down is the same.
    """
    contenders = part("contenders")
    found = {}
    ours, work = spec_and_work()
    weights = contenders.calibrated_weights(ours, work)
    for kind in ("config", "detectron2", "torchvision"):
        spec, _ = spec_and_work(kind=kind)
        model = contenders.Contender(spec, work, weights).model
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
    contenders = part("contenders")
    spec, work = spec_and_work()
    made = contenders.Contender(spec, work, part("weights").RandomWeights(5))
    path = tmp_path / "weights.pth"
    torch.save({"model": made.model.state_dict()}, path)
    for kind in ("config", "detectron2"):
        other, _ = spec_and_work(kind=kind)
        other = part("specs").Spec(
            kind, kind, other.config_file, (*other.opts, "MODEL.WEIGHTS", str(path))
        )
        model = contenders.Contender(other, work, part("weights").RandomWeights(0)).model
        head = model.roi_heads.box_head
        fc6 = head.fc6 if kind == "config" else head.fc1
        assert torch.equal(fc6.weight, made.model.roi_heads.box_head.fc6.weight)


def test_calibration_sets_the_deviation_of_every_layer() -> None:
    weights = part("weights")
    net = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.Linear(20, 30))
    x = 100 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    places = weights.roles(net)
    made = weights.calibrate(weights.RandomWeights(0), places, lambda: net(x))
    again = torch.nn.Sequential(torch.nn.Linear(10, 20), torch.nn.Linear(20, 30))
    made.fill(weights.roles(again))
    assert again[0](x).std().item() == pytest.approx(1, abs=1e-3)
    assert again(x).std().item() == pytest.approx(1, abs=1e-3)


# ---- statistics, order ----------------------------------------------------------------------


def test_models_take_turns_after_the_warm_up() -> None:
    calls: list[str] = []

    def session(name: str) -> Any:
        def call(method: str) -> dict[str, float]:
            calls.append(name)
            return {"total": float(len(calls))}

        return SimpleNamespace(name=name, call=call)

    samples = part("sessions").interleave([session("A"), session("B")], repeats=2, warmup=1)
    assert "".join(calls) == "ABABAB"
    assert samples == [
        ("A", {"total": 3.0}),
        ("B", {"total": 4.0}),
        ("A", {"total": 5.0}),
        ("B", {"total": 6.0}),
    ]


def test_ratio_of_medians() -> None:
    found = part("samples").ratio([1.0, 2.0, 9.0], [4.0, 4.0, 4.0])
    assert found.value == 0.5  # 2 / 4
    assert (found.lower, found.upper) == (0.25, 2.25)  # 1 / 4 and 9 / 4: three rounds say little
    assert str(found) == "0.500 [0.250, 2.250]"


def test_quartiles() -> None:
    found = part("samples").spread([5.0, 1.0, 2.0, 3.0, 4.0])
    assert (found.lower, found.median, found.upper) == (2.0, 3.0, 4.0)


# ---- synchronising operators ----------------------------------------------------------------


def count(run: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for n, operator, line in part("syncs").sync_rows(part("syncs").count_syncs(run)):
        assert line.startswith("test_benchmark_parts.py:") or "torchvision/" in line
        counts[operator] = counts.get(operator, 0) + n
    return counts


def test_waiting_operators_are_counted() -> None:
    x = torch.tensor([3.0, -1.0, 2.0])

    def run() -> None:
        for _ in range(2):
            x.sum().item()
        if x.sum() > 0:  # bool()
            (x > 0).nonzero()
        x[x > 0]
        y = x.clone()
        y[x > 0] = x[:2]
        x.unique()
        x.tolist()
        x.cpu().numpy()
        x.to("cpu")
        x.new_tensor([1.0])
        torch.tensor([1.0], device=x.device)

    assert count(run) == {
        "local_scalar_dense": 3,
        "nonzero": 1,
        "index": 1,
        "index_put": 1,
        "unique2": 1,
        "tolist": 1,
        "cpu": 1,
        "numpy": 1,
        "to cpu": 1,
        "from numbers": 2,
    }
    rows = part("syncs").sync_rows(part("syncs").count_syncs(run))
    assert part("syncs").totals(rows) == (11, 2)


def test_what_does_not_wait_is_not_counted() -> None:
    x, index = torch.rand(4, 4), torch.tensor([0, 1])

    def run() -> None:
        (x[index] + x[:2]).sum()
        x.to(x.device)
        torch.tensor([1.0])  # stays on the host
        torch.where(x > 0, x, -x).sort()

    assert count(run) == {}


def test_suppression_is_counted_as_on_a_gpu() -> None:
    """In one call, by class as well; on a CPU so many boxes take several."""
    corner = torch.rand(3000, 2) * 500
    boxes, scores = torch.cat([corner, corner + 20], 1), torch.linspace(1, 0, 3000)

    def run() -> None:
        prefix_nms(boxes, scores, 0.7, 2000)
        batched_nms(boxes, scores, torch.arange(3000) % 20, 0.7)

    counts = part("syncs").count_syncs(run)
    assert sum(n for (operator, _), n in counts.items() if operator == "nms") == 2
    assert {operator for operator, _ in counts} == {"nms"}


def test_backward_is_counted() -> None:
    x = torch.rand(4, requires_grad=True)
    assert count(lambda: x[x > -1].sum().backward()) == {"index": 1, "index_put": 1}


def test_frozen_convolutions_get_no_gradient() -> None:
    contenders, stages = part("contenders"), part("stages")
    spec, work = spec_and_work(training=True)
    contender = contenders.Contender(spec, work, contenders.calibrated_weights(spec, work))
    steps = stages.Stages(contender)
    trained: dict[str, set[str]] = {}
    contender.optimizer.zero_grad = lambda set_to_none: None  # keep them, to look at
    for name, phase, trains in stages.KINDS:
        for parameter in contender.model.parameters():
            parameter.grad = None
        steps.sample(name, phase, trains)
        named = contender.model.named_parameters()
        trained[name] = {n.split(".")[0] for n, p in named if p.grad is not None}
    assert trained == {name: set(trains) for name, _, trains in stages.KINDS}


def test_the_best_peer_is_the_faster_one() -> None:
    models = {
        "ours": {"seconds": [1.0, 1.0]},
        "detectron2": {"seconds": [2.0, 2.0]},
        "torchvision": {"seconds": [4.0, 4.0]},
    }
    target = part("targets").TARGETS[0]
    value, text = target.value({"infer": {"models": models}})
    assert (value, text) == (0.5, "0.500 [0.500, 0.500] of detectron2")
    assert target.reached(0.57)
    assert not target.reached(0.58)

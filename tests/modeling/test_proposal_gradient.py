"""Non-approximate joint training: the way of the detector's gradient to the RPN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import CaffeBox2BoxTransform, PaperRCNN, build_pooler
from frcnn_plugin.modeling.proposal_gradient import decode_with_gradient, take_gradient
from frcnn_plugin.modeling.target_statistics import NormalisedBox2BoxTransform, TargetStatistics
from frcnn_plugin.preflight.combinations import contradictions
from tests.conftest import make_input
from tests.modeling.parts import K, random_statistics

TYPES = ("ROIWarp", "PrROIPool", "ROIAlignGrad")
BOXES = [[10.0, 12.0, 60.0, 70.0], [50.0, 20.0, 120.0, 90.0]]
GRADIENT, POOLER = "MODEL.PAPER_RCNN.PROPOSAL_GRADIENT", "MODEL.ROI_BOX_HEAD.POOLER_TYPE"
ANCHOR, DELTAS = [200.0, 40, 456, 296], [0.1, -0.2, 0.05, -0.1]
Cfg = Callable[..., CfgNode]


def decode(
    anchor: list[float] = ANCHOR, size: tuple[int, int] = (600, 1000), **kwargs: Any
) -> tuple[list[float], list[float]]:
    """The box of W8, and the gradient of its deltas when the corners' is 1, 2, 3, 4."""
    transform = kwargs.pop("transform", CaffeBox2BoxTransform())
    deltas = torch.tensor([kwargs.pop("deltas", DELTAS)], requires_grad=True)
    boxes = decode_with_gradient(deltas, torch.tensor([anchor]), size, transform, **kwargs)
    (boxes * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    assert deltas.grad is not None
    return boxes[0].tolist(), deltas.grad[0].tolist()


def test_gradient_of_decoding_w8() -> None:
    box, gradient = decode()
    assert box == pytest.approx([219.0373, 0.98081, 488.1627, 232.6192], abs=1e-4)
    assert gradient == pytest.approx([1024, 1536, 269.1254, 231.6384], abs=1e-3)


def test_gradient_at_the_border_w9() -> None:
    size = (600, 480)
    _, gradient = decode(size=size)
    assert gradient == pytest.approx([256, 1536, -134.5627, 231.6384], abs=1e-3)
    assert decode(size=size, at_border="none")[1] == [0, 0, 0, 0]
    # Inside, but the anchor is not.
    anchor, deltas = [-10.0, 40, 246, 296], [0.2, 0.0, 0.0, 0.0]
    assert decode(anchor, deltas=deltas)[1] == [1024, 1536, 256, 256]
    assert decode(anchor, deltas=deltas, at_border="none")[1] == [0, 0, 0, 0]
    assert decode(at_border="none")[1] == decode()[1]


def test_limit_growth_and_statistics() -> None:
    assert decode(limit=1 / 512)[1] == [1 / 512] * 4
    assert decode(limit=300)[1] == pytest.approx([300, 300, 269.1254, 231.6384], abs=1e-3)
    assert decode(transform=CaffeBox2BoxTransform(decode_growth=1))[1] == decode()[1]
    statistics = TargetStatistics(1)
    statistics.set(torch.tensor([DELTAS]), torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    transform = NormalisedBox2BoxTransform(CaffeBox2BoxTransform(), statistics)
    _, gradient = decode(deltas=[0.0] * 4, transform=transform)
    expected = [102.4, 307.2, 0.3 * 269.1254, 0.4 * 231.6384]
    assert gradient == pytest.approx(expected, abs=1e-3)


def test_a_box_that_overflows_has_no_gradient_instead_of_nan() -> None:
    assert decode(deltas=[0.0, 0.0, 100.0, 0.0])[1] == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", TYPES[1:])
def test_differences_through_decoding_and_pooling(kind: str) -> None:
    """Float32, as decoding is; steps of a tenth of a pixel on a smooth map."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    features = torch.stack([(x / 9).sin() + (y / 7).cos(), x * y / 100])[None]
    pooler, weights = build_pooler(kind, 3, (1 / 16,)), torch.linspace(-1, 2, 18).view(1, 2, 3, 3)
    anchors = torch.tensor([[100.0, 60, 228, 188]])

    def loss(deltas: torch.Tensor) -> torch.Tensor:
        boxes = decode_with_gradient(deltas, anchors, (320, 480), CaffeBox2BoxTransform())
        return (pooler([features], [Boxes(boxes)]) * weights).sum()

    deltas = torch.tensor([DELTAS], requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(deltas), deltas)
    for k in range(4):
        step = torch.zeros(1, 4)
        step[0, k] = 2e-3
        with torch.no_grad():
            difference = (loss(deltas + step) - loss(deltas - step)).item() / 4e-3
        assert gradient[0, k].item() == pytest.approx(difference, rel=0.02, abs=0.02)
        assert abs(difference) > 0.1


@pytest.mark.parametrize(("foreground", "expected"), [(True, [1, 0, 0]), (False, [1, 1, 0])])
def test_who_hands_back(foreground: bool, expected: list[int]) -> None:
    """Rows 2 (an object), 0 (background) of the proposals, and a ground-truth box."""
    live = torch.rand(3, 4, requires_grad=True)
    sampled = Instances((9, 9), proposal_boxes=Boxes(torch.rand(3, 4)))
    sampled.gt_classes = torch.tensor([1, K, 1])
    sampled.proposal_rows = torch.tensor([2, 0, -1])
    constant = sampled.proposal_boxes.tensor[2].clone()
    take_gradient(
        [sampled], [Instances((9, 9), proposal_boxes=Boxes(live))], K, foreground=foreground
    )
    boxes = sampled.proposal_boxes.tensor
    assert torch.equal(boxes[2], constant) and torch.equal(boxes[0], live[2])
    boxes.sum().backward()
    assert live.grad is not None
    assert live.grad[:, 0].tolist() == [expected[1], 0, expected[0]]
    assert not sampled.has("proposal_rows")


def build(tiny_cfg: Cfg, *opts: Any) -> PaperRCNN:
    torch.manual_seed(0)
    return build_model(tiny_cfg(*opts)).train()


def gradients(model: PaperRCNN, names: tuple[str, ...]) -> dict[str, torch.Tensor | None]:
    """Gradients of the named losses for every parameter, from two images of other sizes."""
    torch.manual_seed(1)
    batch = [make_input(97, 131, BOXES), make_input(131, 160, BOXES[:1], seed=1)]
    with EventStorage():
        losses = model(batch)
    parameters = dict(model.named_parameters())
    loss = torch.stack([losses[name] for name in names]).sum()
    values = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return dict(zip(parameters, values, strict=True))


HEAD = ("loss_cls", "loss_box_reg")
RPN = "proposal_generator.rpn_head."


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("which", ["none", "foreground", "all"])
def test_the_detectors_loss_moves_the_rpns_boxes_only(
    tiny_cfg: Cfg, which: str, kind: str, one_by_one: bool
) -> None:
    opts = (GRADIENT, which, POOLER, kind, "MODEL.PAPER_RCNN.ONE_BY_ONE", one_by_one)
    # So low that some proposals are objects already.
    model = build(tiny_cfg, *opts, "MODEL.ROI_HEADS.IOU_THRESHOLDS", [0.05])
    model.proposal_generator.target_statistics.set(*random_statistics(1))
    found = gradients(model, HEAD)
    moved = found[f"{RPN}rpn_bbox_pred.weight"]
    assert found[f"{RPN}rpn_cls_score.weight"] is None
    if which == "none":
        assert moved is None
    else:
        assert moved is not None and moved.isfinite().all() and moved.abs().sum() > 0
    assert found[next(iter(found))] is not None  # the backbone


def test_proposals_are_the_same_and_so_is_every_loss(tiny_cfg: Cfg) -> None:
    """The key changes gradients, not values; at the RPN's class layer not even these."""
    losses = []
    for which in ("none", "all"):
        model = build(tiny_cfg, GRADIENT, which, POOLER, "ROIWarp")
        torch.manual_seed(1)
        with EventStorage():
            losses.append(model([make_input(97, 131, BOXES)]))
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, msg=name)


@pytest.mark.parametrize("which", ["foreground", "all"])
def test_hard_cases(tiny_cfg: Cfg, which: str) -> None:
    """No object, no proposal, autocast; and pictures of training, which need constant boxes."""
    opts = (
        "MODEL.ROI_BOX_HEAD.POOLER_SUPERSAMPLING",
        2,
        "SOLVER.AMP.ENABLED",
        True,
        "VIS_PERIOD",
        1,
    )
    model = build(tiny_cfg, GRADIENT, which, POOLER, "ROIWarp", *opts)
    inputs = make_input(97, 131, [])
    with EventStorage():
        sum(model([inputs]).values()).backward()
        model.proposal_generator.min_box_size = 1e9
        losses = model([inputs])
    assert all(torch.isfinite(loss) for loss in losses.values())
    with EventStorage():
        assert all(torch.isfinite(loss) for loss in model([make_input(97, 131, BOXES)]).values())
    model.eval()
    with torch.no_grad():
        assert model([make_input(97, 131, BOXES)])[0]["instances"].image_size == (97, 131)


def test_phase_rpn_makes_no_proposals_and_given_ones_are_constants(tiny_cfg: Cfg) -> None:
    model = build(tiny_cfg, GRADIENT, "all", POOLER, "ROIWarp", "MODEL.PAPER_RCNN.PHASE", "rpn")
    assert gradients(model, ("loss_rpn_cls",))[f"{RPN}rpn_bbox_pred.weight"] is None
    model = build(
        tiny_cfg, GRADIENT, "all", POOLER, "ROIWarp", "MODEL.PAPER_RCNN.PHASE", "fast_rcnn"
    )
    inputs = make_input(97, 131, BOXES)
    inputs["proposals"] = Instances((97, 131), proposal_boxes=Boxes(torch.tensor(BOXES)))
    inputs["proposals"].objectness_logits = torch.zeros(2)
    with EventStorage():
        sum(model([inputs]).values()).backward()


@pytest.mark.parametrize("kind", ["ROIPool", "ROIAlignV2"])
def test_poolers_without_a_gradient_stop(tiny_cfg: Cfg, kind: str) -> None:
    cfg = tiny_cfg(GRADIENT, "foreground", POOLER, kind)
    with pytest.raises(UserError, match=r"POOLER_TYPE.*ROIWarp"):
        build_model(cfg)
    assert any(GRADIENT in problem for problem, _ in contradictions(cfg, trains=True))
    with pytest.raises(UserError, match="POOLER_SUPERSAMPLING is 2"):
        build_pooler(kind, 7, (1 / 16,), supersampling=2)


@pytest.mark.parametrize(
    ("opts", "part"),
    [
        (("MODEL.ROI_HEADS.NAME", "StandardROIHeads"), "CaffeROIHeads"),
        (("MODEL.PROPOSAL_GENERATOR.NAME", "RPN"), "PaperRPN"),
        (("SOLVER.AMP.ENABLED", True, "MODEL.RPN.PROPOSAL_GRADIENT_CLIP", 0.1), "CLIP 0.0"),
    ],
)
def test_parts_that_hand_nothing_back_are_named(
    tiny_cfg: Cfg, opts: tuple[Any, ...], part: str
) -> None:
    good = (GRADIENT, "all", POOLER, "ROIWarp")
    assert not list(contradictions(tiny_cfg(*good), trains=True))
    (found,) = contradictions(tiny_cfg(*good, *opts), trains=True)
    assert part in found[1]

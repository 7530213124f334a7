"""Labels, sampling, losses, proposals.

Examples E9*, E10, E11, E11b, E11c (docs/worked_examples.md).
"""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import RPN, build_proposal_generator
from detectron2.structures import Boxes, ImageList
from detectron2.utils.events import EventStorage

from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import PaperRPN, ScaledImageSize, SoftmaxRPNHead
from tests.conftest import make_instances
from tests.modeling.parts import FixedAnchors, make_rpn, random_statistics

# ---- labels and sampling ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("iou", "guard", "labels", "matched"),
    [
        # E9
        (
            [[0.75, 0.10], [0.65, 0.25], [0.20, 0.28], [0.05, 0.28], [0, 0]],
            True,
            [1, -1, 1, 1, 0],
            [0, 0, 1, 1, 0],
        ),
        ([[0.9], [0.7], [0.3], [0.2999]], True, [1, 1, -1, 0], [0] * 4),  # E9b: thresholds
        # E9c: a ground truth that no anchor overlaps, without and with the guard.
        ([[0.8, 0], [0.1, 0], [0, 0]], False, [1, 1, 1], [0, 0, 0]),
        ([[0.8, 0], [0.1, 0], [0, 0]], True, [1, 0, 0], [0, 0, 0]),
        # Ground truth 0 touches nothing; anchor 0 still regresses to ground truth 2.
        ([[0, 0.1, 0.8], [0, 0.6, 0.2]], True, [1, 1], [2, 1]),
        ([[0.0], [0.0]], True, [0, 0], [0, 0]),
        # E9d: an anchor regresses to its own best.
        ([[0.5, 0.4], [0.1, 0.2]], True, [1, 0], [0, 1]),
    ],
)
def test_labels_e9(
    iou: list[list[float]], guard: bool, labels: list[int], matched: list[int]
) -> None:
    """An IoU table with one row per anchor."""
    table = torch.tensor(iou).T  # (G, I)
    rpn = make_rpn(guard_zero_iou=guard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "frcnn_plugin.modeling.proposal_generator.rpn.pairwise_iou", lambda gt, anchors: table
        )
        found = rpn.match_anchors(Boxes(torch.zeros(len(iou), 4)), Boxes(torch.zeros(9, 4)))
    assert [x.tolist() for x in found] == [labels, matched]


def test_outside_anchors_are_dropped_before_matching_e9e() -> None:
    """IoU .60 (outside), .40, .10: the ground truth's best *inside* anchor is positive.

    Ground truth 0..20 x 0..20 (area 400). Anchor 0: -5..15 x 0..20: 300 / 500 = .6, outside.
    Anchor 1: 0..20 x 0..8: 160 / 400 = .4. Anchor 2: 0..20 x 0..2: 40 / 400 = .1.
    """
    anchors = Boxes(torch.tensor([[-5.0, 0, 15, 20], [0.0, 0, 20, 8], [0.0, 0, 20, 2]]))
    instances = make_instances((50, 50), [[0, 0, 20, 20]])
    labels, boxes = make_rpn().label_anchors(anchors, instances)
    assert labels.tolist() == [-1, 1, 0]
    assert boxes[1].tolist() == [0, 0, 20, 20]
    (sampled,), _ = make_rpn().label_and_sample_anchors([anchors], [instances])
    assert sampled.tolist() == [-1, 1, 0]


def test_anchor_flush_with_the_image_is_inside() -> None:
    instances = make_instances((50, 50), [[0, 0, 50, 50]])
    labels, boxes = make_rpn().label_anchors(instances.gt_boxes, instances)
    assert labels.tolist() == [1] and boxes.tolist() == [[0, 0, 50, 50]]


@pytest.mark.parametrize(
    ("positives", "negatives", "sampled"),
    [(20, 5000, (20, 236)), (300, 5000, (128, 128)), (3, 100, (3, 100)), (200, 50, (128, 50))],
)
def test_sampling_e10(positives: int, negatives: int, sampled: tuple[int, int]) -> None:
    torch.manual_seed(0)
    labels = torch.tensor([1] * positives + [0] * negatives + [-1] * 7, dtype=torch.int8)
    labels = make_rpn()._subsample_labels(labels)
    assert ((labels == 1).sum(), (labels == 0).sum()) == sampled


def test_image_without_objects_gives_negatives_only() -> None:
    anchors = Boxes(torch.tensor([[0.0, 0, 10, 10]] * 300 + [[-1.0, 0, 10, 10]]))
    labels, _ = make_rpn().label_and_sample_anchors([anchors], [make_instances((50, 50), [])])
    assert (labels[0] == 0).sum() == 256
    assert labels[0][-1] == -1


def test_image_smaller_than_all_anchors_trains_on_nothing() -> None:
    anchors = Boxes(torch.tensor([[-4.0, -4, 12, 12]]))
    gt = [make_instances((8, 8), [[0, 0, 8, 8]])]
    labels, boxes = make_rpn().label_and_sample_anchors([anchors], gt)
    logits = torch.zeros(1, 1, requires_grad=True)
    deltas = torch.zeros(1, 1, 4, requires_grad=True)
    with EventStorage():
        losses = make_rpn().losses([anchors], [logits], labels, [deltas], boxes)
    sum(losses.values()).backward()
    assert {k: v.item() for k, v in losses.items()} == {"loss_rpn_cls": 0, "loss_rpn_loc": 0}
    assert logits.grad is not None and logits.grad.abs().sum() == 0


def test_an_image_without_inside_anchors_is_told_of_once(caplog) -> None:
    rpn = make_rpn(anchor_generator=FixedAnchors([[-4, -4, 12, 12]]))
    anchors = rpn.anchor_generator([])
    gt = [make_instances(size, []) for size in ((20, 30), (8, 9), (7, 7))]
    rpn.label_and_sample_anchors(anchors, gt[:1] * 0)
    make_rpn().label_and_sample_anchors(make_rpn().anchor_generator([]), gt[:1])
    make_rpn(anchor_boundary_thresh=-1).label_and_sample_anchors(anchors, gt)
    assert not caplog.messages
    rpn.label_and_sample_anchors(anchors, gt)
    rpn.label_and_sample_anchors(anchors, gt)
    (message,) = caplog.messages
    assert "an image of 20 x 30 (" in message
    for key in ("ANCHOR_GENERATOR.SIZES", "INPUT.MIN_SIZE_TRAIN", "RPN.BOUNDARY_THRESH -1"):
        assert key in message


# ---- losses -------------------------------------------------------------------------------


# E11b: (background, object) logits of four anchors and their labels; the last one is ignored.
PAIRS = torch.tensor([[0.2, 0.5], [1.0, -1.0], [0.3, 0.3], [9.0, 9.0]])
LABELS = [torch.tensor([1, 0, 0, -1], dtype=torch.int8)]
ANCHOR = [0.0, 0.0, 10.0, 10.0]
# E11: difference between prediction and target on the positive anchor.
DIFFERENCE = torch.tensor([0.05, -0.2, 0.0, 0.5])


def make_rpn_of_the_paper() -> PaperRPN:
    """Box loss with lambda 10 and sigma 1, by locations."""
    return make_rpn(
        loss_norm="locations",
        smooth_l1_beta=1.0,
        loss_weight={"loss_rpn_cls": 1.0, "loss_rpn_loc": 10.0},
    )


def losses_e11(rpn: PaperRPN) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Losses of the E11 case on a 2x2 map, with the leaves to differentiate for."""
    pairs = PAIRS.clone().requires_grad_()
    deltas = torch.zeros(1, 4, 4)
    deltas[0, 0] = DIFFERENCE  # the target is zero: the ground truth is the anchor
    deltas.requires_grad_()
    logits = (pairs[:, 1] - pairs[:, 0])[None]
    anchors = [Boxes(torch.tensor([ANCHOR] * 4))]
    with EventStorage():
        losses = rpn.losses(anchors, [logits], LABELS, [deltas], [torch.tensor([ANCHOR] * 4)])
    return losses, pairs, deltas


def test_losses_e11b_e11c() -> None:
    for rpn, expected in ((make_rpn(), 0.200046), (make_rpn_of_the_paper(), 0.365625)):
        losses, _, _ = losses_e11(rpn)
        assert losses["loss_rpn_cls"].item() == pytest.approx(0.458143, abs=1e-6)
        assert losses["loss_rpn_loc"].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_losses_are_detectron2s_divided_otherwise(kind: str) -> None:
    """Two images, two feature maps, 200 anchors of which 80 and 30 are sampled."""
    generator = torch.Generator().manual_seed(0)

    def random_boxes(count: int) -> torch.Tensor:
        corner, side = torch.rand(2, count, 2, generator=generator) * 60
        return torch.cat([corner, corner + side + 4], dim=1)

    anchors = [Boxes(random_boxes(150)), Boxes(random_boxes(50))]
    logits = [torch.randn(2, n, generator=generator) for n in (150, 50)]
    deltas = [torch.randn(2, n, 4, generator=generator) * 0.3 for n in (150, 50)]
    labels = [torch.full((200,), -1, dtype=torch.int8) for _ in range(2)]
    labels[0][40:60], labels[0][60:120], labels[1][170:200] = 1, 0, 0
    boxes = [random_boxes(200), torch.zeros(200, 4)]  # the second image has no objects
    rpn = make_rpn(box_reg_loss_type=kind)
    results = []
    for function in (PaperRPN.losses, RPN.losses):
        leaves = [t.clone().requires_grad_() for t in (*logits, *deltas)]
        with EventStorage() as storage:
            losses = function(rpn, anchors, leaves[:2], labels, leaves[2:], boxes)
        total = losses["loss_rpn_cls"] + 3 * losses["loss_rpn_loc"]
        grads = torch.cat([g.flatten() for g in torch.autograd.grad(total, leaves)])
        results.append((losses, grads, storage.latest()))
    (ours, our_grads, our_numbers), (stock, stock_grads, stock_numbers) = results
    factor = 2 * 256 / 110
    for name in ("loss_rpn_cls", "loss_rpn_loc"):
        assert ours[name].item() == pytest.approx(factor * stock[name].item(), rel=1e-5)
    assert torch.allclose(our_grads, factor * stock_grads, rtol=1e-4, atol=1e-7)
    assert our_numbers == stock_numbers


def test_locations_do_not_count_anchors() -> None:
    """9 anchors per cell: the same 36 predictions are 4 locations, not 36."""
    rpn = make_rpn(
        loss_norm="locations", smooth_l1_beta=1.0, anchor_generator=FixedAnchors([ANCHOR], 9)
    )
    anchors = [Boxes(torch.tensor([ANCHOR] * 36))]
    labels = [torch.tensor([1] + [-1] * 35, dtype=torch.int8)]
    deltas = torch.zeros(1, 36, 4)
    deltas[0, 0] = DIFFERENCE
    with EventStorage():
        losses = rpn.losses(
            anchors, [torch.zeros(1, 36)], labels, [deltas], [torch.tensor([ANCHOR] * 36)]
        )
    assert losses["loss_rpn_loc"].item() == pytest.approx(0.14625 / 4, abs=1e-6)


@pytest.mark.parametrize(("beta", "expected"), [(1 / 9, 0.600139), (1.0, 0.14625)])
def test_smooth_l1_e11(beta: float, expected: float) -> None:
    losses, _, _ = losses_e11(make_rpn(smooth_l1_beta=beta))
    assert losses["loss_rpn_loc"].item() * 3 == pytest.approx(expected, abs=1e-5)


def test_class_gradient_is_the_softmax_gradient() -> None:
    """d loss / d z = (p - onehot) / 3 for both logits, by hand; the ignored anchor gets none."""
    losses, pairs, _ = losses_e11(make_rpn())
    losses["loss_rpn_cls"].backward()
    onehot = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    expected = torch.zeros(4, 2)
    expected[:3] = (PAIRS[:3].softmax(dim=1) - onehot) / 3
    assert pairs.grad is not None
    assert torch.allclose(pairs.grad, expected, atol=1e-6)


def test_box_gradients() -> None:
    """By hand, on 3 samples with sigma 3: 9 d where abs(d) < 1/9, sign(d) elsewhere, over 3.

    Of the paper: lambda d / (H W) with sigma 1, so 10 d / 4 where abs(d) < 1.
    """
    for rpn, expected in (
        (make_rpn(), [0.45 / 3, -1 / 3, 0, 1 / 3]),
        (make_rpn_of_the_paper(), [0.125, -0.5, 0, 1.25]),
    ):
        losses, _, deltas = losses_e11(rpn)
        losses["loss_rpn_loc"].backward()
        assert deltas.grad is not None
        assert deltas.grad[0, 0].tolist() == pytest.approx(expected, abs=1e-6)
        assert deltas.grad[0, 1:].abs().sum() == 0


def test_unknown_loss_norm() -> None:
    with pytest.raises(UserError, match=r"LOSS_NORM is 'pixels': use one of samples, locations"):
        make_rpn(loss_norm="pixels")


# ---- proposals ----------------------------------------------------------------------------


def propose(
    rpn: PaperRPN, size: tuple[int, int], deltas: list[list[float]], logits: list[float]
) -> list[list[float]]:
    anchors = rpn.anchor_generator([])
    (result,) = rpn.predict_proposals(
        anchors, [torch.tensor([logits])], [torch.tensor([deltas])], [size]
    )
    return result.proposal_boxes.tensor.tolist()


def test_minimum_size_is_in_original_pixels() -> None:
    rpn = make_rpn(anchor_generator=FixedAnchors([[0, 0, 25, 31], [100, 0, 126, 31]])).eval()
    deltas, logits = [[0.0] * 4] * 2, [1.0, 0.5]
    kept = propose(rpn, ScaledImageSize((600, 800), 1.6), deltas, logits)
    assert kept == [[100, 0, 126, 31]]  # 25 < 16 * 1.6 <= 26
    assert len(propose(rpn, (600, 800), deltas, logits)) == 2  # scale 1
    rpn.min_box_size = 30.0  # Detectron2's own limit, network pixels, applies as well
    assert propose(rpn, (600, 800), deltas, logits) == []


def test_counts_differ_between_training_and_test() -> None:
    boxes = [[i * 100.0, 0.0, i * 100.0 + 50, 50.0] for i in range(6)]
    rpn = make_rpn(anchor_generator=FixedAnchors(boxes), post_nms_topk=(5, 3))
    deltas, logits = [[0.0] * 4] * 6, [float(i) for i in range(6)]
    assert len(propose(rpn.train(), (600, 800), deltas, logits)) == 5
    assert len(propose(rpn.eval(), (600, 800), deltas, logits)) == 3


def test_by_registry_name(tiny_cfg) -> None:
    torch.manual_seed(0)
    rpn = build_proposal_generator(tiny_cfg(), {"conv5": ShapeSpec(channels=8, stride=16)})
    assert isinstance(rpn, PaperRPN) and isinstance(rpn.rpn_head, SoftmaxRPNHead)
    images = ImageList(torch.zeros(2, 3, 96, 128), [(96, 128), (90, 100)])
    features = {"conv5": torch.rand(2, 8, 6, 8)}
    gt = [make_instances((96, 128), [[10, 10, 60, 60]]), make_instances((90, 100), [])]
    with EventStorage():
        proposals, losses = rpn(images, features, gt)
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc"}
    assert len(proposals) == 2
    for p, (height, width) in zip(proposals, images.image_sizes, strict=True):
        boxes = p.proposal_boxes.tensor
        assert len(boxes) > 0 and not boxes.requires_grad
        assert (boxes >= 0).all() and (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        logits = p.objectness_logits
        assert torch.equal(logits, logits.sort(descending=True).values)


def rpn_and_inputs(tiny_cfg) -> tuple[PaperRPN, ImageList, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    rpn = build_proposal_generator(tiny_cfg(), {"conv5": ShapeSpec(channels=8, stride=16)})
    images = ImageList(torch.zeros(2, 3, 96, 128), [(96, 128), (90, 100)])
    return rpn, images, {"conv5": torch.rand(2, 8, 6, 8)}


def test_switches_of_semi_supervised_projects(tiny_cfg) -> None:
    """Proposals without targets in training; losses in evaluation."""
    rpn, images, features = rpn_and_inputs(tiny_cfg)
    gt = [make_instances((96, 128), [[10, 10, 60, 60]]), make_instances((90, 100), [])]
    rpn.post_nms_topk = {True: 7, False: 5}
    with EventStorage():
        both, losses = rpn.train()(images, features, gt)
        proposals, none = rpn(images, features, None, compute_loss=False)
        with pytest.raises(AssertionError, match="gt_instances"):
            rpn(images, features)
        _, validation = rpn.eval()(images, features, gt, compute_val_loss=True)
        assert rpn(images, features, gt)[1] == none == {}
    assert [len(p) for p in proposals] == [7, 7]
    for one, other in zip(both, proposals, strict=True):
        assert torch.equal(one.proposal_boxes.tensor, other.proposal_boxes.tensor)
    assert {k: v.item() for k, v in validation.items()} == {k: v.item() for k, v in losses.items()}


def test_forward_is_detectron2s(tiny_cfg) -> None:
    """To the bit: with the same seed the same losses and proposals."""
    rpn, images, features = rpn_and_inputs(tiny_cfg)
    gt = [make_instances((96, 128), [[10, 10, 60, 60]]), make_instances((90, 100), [])]
    results = []
    for forward in (PaperRPN.forward, RPN.forward):
        torch.manual_seed(1)
        with EventStorage():
            proposals, losses = forward(rpn, images, features, gt)
        boxes = [p.proposal_boxes.tensor.tolist() for p in proposals]
        results.append((boxes, {k: v.item() for k, v in losses.items()}))
    assert results[0] == results[1]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(tiny_cfg, number: float) -> None:
    """Training stops, as in Detectron2; evaluation leaves the boxes out."""
    rpn, images, features = rpn_and_inputs(tiny_cfg)
    gt = [make_instances((96, 128), [[10, 10, 60, 60]]), make_instances((90, 100), [])]
    features["conv5"][0, :, 2, 2] = number
    with EventStorage():
        for options in ({}, {"compute_loss": False}):
            with pytest.raises(FloatingPointError, match="RPN predicts NaN or infinite"):
                rpn.train()(images, features, gt, **options)
        proposals, _ = rpn.eval()(images, features)
    for p in proposals:
        assert len(p) and p.proposal_boxes.tensor.isfinite().all()
        assert p.objectness_logits.isfinite().all()


# ---- target statistics --------------------------------------------------------------------


# E5: proposal and ground truth whose raw deltas are (.2, .45, .182322, .405465).
PROPOSAL, GT = [0.0, 0.0, 10.0, 10.0], [1.0, 2.0, 13.0, 17.0]
E5 = [0.2, 0.45, 0.182322, 0.405465]


def rpn_loss(rpn: PaperRPN, deltas: torch.Tensor) -> torch.Tensor:
    """Box loss of one positive and two negative anchors."""
    anchors = [Boxes(torch.tensor([PROPOSAL] * 3))]
    labels = [torch.tensor([1, 0, 0], dtype=torch.int8)]
    with EventStorage():
        losses = rpn.losses(
            anchors,
            [torch.zeros(1, 3)],
            labels,
            [deltas],
            # A ground truth of zeros, as where there is none: its log is -inf.
            [torch.tensor([GT, [0.0] * 4, [0.0] * 4])],
        )
    return losses["loss_rpn_loc"]


def test_rpn_loss_and_gradient_by_hand() -> None:
    """As in the head: 1.75 over 3 samples."""
    rpn = make_rpn(smooth_l1_beta=1.0)
    rpn.target_statistics.set(torch.full((1, 4), 0.1), torch.full((1, 4), 0.5))
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 0] = (torch.tensor(E5) - 0.1) / 0.5 + torch.tensor([0.5, -0.5, 2.0, 0.0])
    deltas.requires_grad_()
    loss = rpn_loss(rpn, deltas)
    loss.backward()
    assert loss.item() == pytest.approx(1.75 / 3, abs=1e-5)
    assert deltas.grad is not None
    expected = torch.zeros(1, 3, 4)
    expected[0, 0] = torch.tensor([0.5, -0.5, 1, 0]) / 3
    assert torch.allclose(deltas.grad, expected, atol=1e-5)


def test_rpn_decodes_whitened_predictions() -> None:
    rpn = make_rpn(min_size_image=0.0).eval()
    mean, std = random_statistics(1)
    rpn.target_statistics.set(mean, std)
    deltas = ((torch.tensor(E5) - mean) / std).view(1, 1, 4)
    (proposals,) = rpn.predict_proposals(
        [Boxes(torch.tensor([PROPOSAL]))], [torch.zeros(1, 1)], [deltas], [(50, 50)]
    )
    assert proposals.proposal_boxes.tensor.flatten().tolist() == pytest.approx(GT, abs=1e-4)

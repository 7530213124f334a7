"""Losses of the RPN and their gradients. Checks E11, E11b, E11c, E12 (docs/checks.md)."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import PaperRPN
from tests.modeling.proposal_generator.rpn_parts import FixedAnchors, make_rpn

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


def test_losses_by_samples_e11b_e11c() -> None:
    losses, _, _ = losses_e11(make_rpn())
    assert losses["loss_rpn_cls"].item() == pytest.approx(0.458143, abs=1e-6)
    assert losses["loss_rpn_loc"].item() == pytest.approx(0.200046, abs=1e-6)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou", "diou", "ciou"])
def test_losses_are_the_hosts_divided_otherwise(kind: str) -> None:
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
    (ours, our_grads, our_numbers), (hosts, host_grads, host_numbers) = results
    factor = 2 * 256 / 110
    for name in ("loss_rpn_cls", "loss_rpn_loc"):
        assert ours[name].item() == pytest.approx(factor * hosts[name].item(), rel=1e-5)
    assert torch.allclose(our_grads, factor * host_grads, rtol=1e-4, atol=1e-7)
    assert our_numbers == host_numbers


def test_losses_by_locations_e11c() -> None:
    losses, _, _ = losses_e11(make_rpn_of_the_paper())
    assert losses["loss_rpn_cls"].item() == pytest.approx(0.458143, abs=1e-6)
    assert losses["loss_rpn_loc"].item() == pytest.approx(0.365625, abs=1e-6)


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


def test_box_gradient_sigma_3() -> None:
    """By hand: 9 d where abs(d) < 1/9, sign(d) elsewhere, over 3 samples."""
    losses, _, deltas = losses_e11(make_rpn())
    losses["loss_rpn_loc"].backward()
    assert deltas.grad is not None
    assert deltas.grad[0, 0].tolist() == pytest.approx([0.45 / 3, -1 / 3, 0, 1 / 3], abs=1e-6)
    assert deltas.grad[0, 1:].abs().sum() == 0


def test_box_gradient_of_the_paper() -> None:
    """By hand: lambda d / (H W) with sigma 1, so 10 d / 4 inside abs(d) < 1."""
    losses, _, deltas = losses_e11(make_rpn_of_the_paper())
    losses["loss_rpn_loc"].backward()
    assert deltas.grad is not None
    assert deltas.grad[0, 0].tolist() == pytest.approx([0.125, -0.5, 0, 1.25], abs=1e-6)


def test_unknown_loss_norm() -> None:
    with pytest.raises(UserError, match=r"LOSS_NORM is 'pixels': use 'samples' or 'locations'"):
        make_rpn(loss_norm="pixels")


def test_margin_moves_as_with_a_softmax_e12() -> None:
    """One step of lr .1 on z = (.2, .5), positive: the margin grows by .085111."""
    pair = torch.tensor([0.2, 0.5], requires_grad=True)
    logit = pair[1] - pair[0]
    assert logit.sigmoid().item() == pytest.approx(0.574443, abs=1e-6)
    torch.nn.functional.binary_cross_entropy_with_logits(logit, torch.tensor(1.0)).backward()
    assert pair.grad is not None
    moved = -0.1 * (pair.grad[1] - pair.grad[0])
    assert moved.item() == pytest.approx(0.085111, abs=1e-6)

"""Hard and all RoIs. Example O1 (docs/worked_examples.md), or by the losses of all RoIs."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_roi_heads
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from frcnn_plugin.errors import UserError
from frcnn_plugin.modeling import CaffeROIHeads, HardExamples
from tests.conftest import make_input, make_instances

SHAPE = {"conv5": ShapeSpec(channels=8, stride=16)}
HARD = ("MODEL.ROI_HEADS.SAMPLING", "hard")


@pytest.mark.parametrize(
    ("options", "chosen"),
    [({}, "ACD"), ({"per_label": False}, "ADF"), ({"nms_thresh": 1.0}, "ACB")],
)
def test_choice_o1(options: dict, chosen: str) -> None:
    inclusive = [
        *([0, 0, 99, 99], [0, 0, 99, 89], [0, 0, 99, 99]),
        *([200, 0, 299, 99], [200, 0, 299, 94], [200, 99, 299, 299]),
    ]
    boxes = torch.tensor(inclusive, dtype=torch.float32) + torch.tensor([0.0, 0, 1, 1])
    losses = torch.tensor([2.0, 1.5, 1.8, 0.3, 0.25, 0.01])
    classes = torch.tensor([1, 1, 0, 0, 0, 0])
    indices = HardExamples(3, **options).choose(boxes, losses, classes)
    assert "".join("ABCDEF"[i] for i in indices) == chosen


def make_proposals(count: int, size: tuple[int, int], seed: int = 0) -> Instances:
    generator = torch.Generator().manual_seed(seed)
    corner = 0.5 * torch.rand(count, 2, generator=generator)
    sides = 0.1 + 0.4 * torch.rand(count, 2, generator=generator)
    relative = torch.cat([corner, corner + sides], dim=1)
    result = Instances(size, proposal_boxes=Boxes(relative * torch.tensor(size).flip(0).repeat(2)))
    result.objectness_logits = torch.zeros(count)
    return result


def two_images() -> tuple[dict[str, torch.Tensor], list[Instances], list[Instances]]:
    generator = torch.Generator().manual_seed(1)
    features = {"conv5": torch.randn(2, 8, 6, 8, generator=generator, requires_grad=True)}
    proposals = [make_proposals(60, (96, 128)), make_proposals(40, (75, 101), seed=1)]
    targets = [
        make_instances((96, 128), [[10, 10, 60, 70], [40, 20, 120, 90]], [2, 1]),
        make_instances((75, 101), [[5, 5, 50, 60]], [0]),
    ]
    return features, proposals, targets


def make_heads(tiny_cfg, *opts: object) -> CaffeROIHeads:
    torch.manual_seed(0)
    heads = build_roi_heads(
        tiny_cfg(*HARD, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8, *opts), SHAPE
    )
    for layer in (heads.box_predictor.cls_score, heads.box_predictor.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.5)  # so that losses differ
    return heads.train()


def losses_of_all(heads: CaffeROIHeads, features, proposals, targets):
    """Every RoI, its label, and its loss; without dropout."""
    with EventStorage():
        rois = heads.label_and_sample_proposals(proposals, targets)
    pooled = heads.box_pooler([features["conv5"]], [r.proposal_boxes for r in rois])
    predictions = heads.box_predictor(heads.box_head(pooled))
    losses = sum(heads.box_predictor.losses_per_roi(predictions, rois).values())
    return rois, losses.split([len(r) for r in rois])


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_the_mean_over_the_hardest(tiny_cfg, weighted: bool) -> None:
    """And so is its gradient; weights of classes and losses count."""
    weights = ("MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS", [1.0, 2.0, 3.0, 0.1]) if weighted else ()
    heads = make_heads(
        tiny_cfg,
        *("MODEL.ROI_HEADS.HARD_NMS_THRESH", 1.0),
        *("MODEL.ROI_BOX_HEAD.DROPOUT", 0.0),
        *("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 0.5 if weighted else 1.0),
        *weights,
    )
    features, proposals, targets = two_images()
    rois, all_losses = losses_of_all(heads, features, proposals, targets)
    assert [len(r) for r in rois] == [62, 41]  # with the objects, and none left out
    expected = torch.cat([loss.topk(8).values for loss in all_losses]).mean()
    (expected_gradient,) = torch.autograd.grad(expected, features["conv5"])
    with EventStorage() as storage:
        chosen, losses = heads(None, features, proposals, targets)
    assert [len(c) for c in chosen] == [8, 8]
    total = sum(losses.values())
    assert total.item() == pytest.approx(expected.item())
    total.backward()
    torch.testing.assert_close(features["conv5"].grad, expected_gradient)
    # What is logged is about those that were chosen.
    logged = {name: value for name, (value, _) in storage.latest().items()}
    objects = sum(int((c.gt_classes < 3).sum()) for c in chosen)
    assert logged["roi_head/num_fg_samples"] == objects / 2 and objects > 0
    assert logged["roi_head/num_bg_samples"] == 8 - objects / 2
    assert len(storage.history("roi_head/num_bg_samples").values()) == 1
    assert (16 * logged["fast_rcnn/cls_accuracy"]).is_integer()


def test_weights_of_rois_count(tiny_cfg) -> None:
    class LeftHalf(CaffeROIHeads):
        def label_and_sample_proposals(self, proposals, targets):
            rois = super().label_and_sample_proposals(proposals, targets)
            for r in rois:
                left = r.proposal_boxes.tensor[:, 2] < 0.6 * r.image_size[1]
                r.loss_weights = left.float()
            return rois

    heads = make_heads(tiny_cfg)
    heads.__class__ = LeftHalf
    with EventStorage():
        chosen, _ = heads(None, *two_images())
    assert [len(c) for c in chosen] == [8, 8]
    assert all((c.loss_weights == 1).all() for c in chosen)


def test_dropout_is_active_in_the_pass_that_chooses(tiny_cfg) -> None:
    heads = make_heads(tiny_cfg)
    seen = []
    heads.box_head.drop6.register_forward_hook(
        lambda module, args, out: seen.append(
            (len(out), torch.is_grad_enabled(), not torch.equal(args[0], out))
        )
    )
    with EventStorage():
        heads(None, *two_images())
    assert seen == [(103, False, True), (16, True, True)]


def test_suppression_of_overlaps(tiny_cfg) -> None:
    """Eight copies of each proposal: without suppression, copies of one would be chosen."""
    features, (first, second), targets = two_images()
    proposals = [Instances.cat([first] * 8), second]
    for options, distinct in (([], 8), (["MODEL.ROI_HEADS.HARD_NMS_THRESH", 1.0], 1)):
        heads = make_heads(tiny_cfg, "MODEL.ROI_BOX_HEAD.DROPOUT", 0.0, *options)
        with EventStorage():
            (chosen, _), _ = heads(None, features, proposals, targets)
        assert len(chosen) == 8
        assert len(chosen.proposal_boxes.tensor.unique(dim=0)) == distinct


def test_all(tiny_cfg) -> None:
    heads = build_roi_heads(tiny_cfg("MODEL.ROI_HEADS.SAMPLING", "all"), SHAPE)
    features, proposals, targets = two_images()
    with EventStorage():
        rois, losses = heads(None, features, proposals, targets)
    assert [len(r) for r in rois] == [62, 41] and sum(losses.values()) > 0


def test_autocast_keeps_gradients(tiny_cfg) -> None:
    """The pass that chooses casts the weights first, without gradients."""
    heads = make_heads(tiny_cfg)
    with EventStorage(), torch.autocast("cpu", torch.bfloat16):
        _, losses = heads(None, *two_images())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in heads.parameters())


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("amp", [False, True])
def test_in_a_model(tiny_cfg, classes: int, one_by_one: bool, amp: bool) -> None:
    """Two sizes, one odd, and an image without objects; nothing is added to checkpoints."""
    opts = (
        *("MODEL.PAPER_RCNN.ONE_BY_ONE", one_by_one),
        *("MODEL.ROI_HEADS.NUM_CLASSES", classes),
        *("SOLVER.AMP.ENABLED", amp),
    )
    torch.manual_seed(0)
    model = build_model(tiny_cfg(*HARD, *opts)).train()
    model.load_state_dict(build_model(tiny_cfg(*opts)).state_dict(), strict=True)
    batch = [make_input(96, 128, [[10, 10, 60, 70]]), make_input(75, 101, [])]
    with EventStorage():
        losses = model(batch)
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values())
        assert model.roi_heads.box_head.fc6.weight.grad.any()
        given = [x | {"proposals": make_proposals(30, x["image"].shape[1:])} for x in batch]
        model.set_phase("fast_rcnn")
        assert set(model(given)) == {"loss_cls", "loss_box_reg"}


def test_no_proposals(tiny_cfg) -> None:
    heads, empty = make_heads(tiny_cfg), make_proposals(0, (64, 64))
    features = {"conv5": torch.rand(1, 8, 4, 4, requires_grad=True)}
    with EventStorage():
        (rois,), losses = heads(None, features, [empty], [make_instances((64, 64), [])])
    total = sum(losses.values())
    assert len(rois) == 0 and total.item() == 0
    total.backward()
    assert heads.box_predictor.cls_score.weight.grad is not None


def test_validation_losses(tiny_cfg) -> None:
    heads = make_heads(tiny_cfg).eval()
    with EventStorage():
        rois, losses = heads(None, *two_images(), compute_val_loss=True)
    assert [len(r) for r in rois] == [8, 8] and set(losses) == {"loss_cls", "loss_box_reg"}


def test_what_cannot_be(tiny_cfg) -> None:
    with pytest.raises(UserError, match=r"SAMPLING is 'ohem': use one of random, hard, all"):
        build_roi_heads(tiny_cfg("MODEL.ROI_HEADS.SAMPLING", "ohem"), SHAPE)
    cfg = tiny_cfg(*HARD)
    parts = CaffeROIHeads.from_config(cfg, SHAPE)
    parts["box_predictor"] = FastRCNNOutputLayers(cfg, parts["box_head"].output_shape)
    with pytest.raises(UserError, match=r"predictor is FastRCNNOutputLayers: set it to random"):
        CaffeROIHeads(**parts)

"""Models, heads and RPNs of other projects, with ours.

The classes here override what those of Unbiased Teacher, Adaptive Teacher, Probabilistic Teacher
and UWSOD override, with the same extra arguments.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    GeneralizedRCNN,
    StandardROIHeads,
    build_model,
    build_roi_heads,
)
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage, get_event_storage

from frcnn_plugin.errors import UserError
from frcnn_plugin.layers import CaffeRoIPool
from frcnn_plugin.modeling import (
    CaffeROIHeads,
    InclusiveROIPooler,
    PaperFastRCNNOutputLayers,
    PaperRCNN,
    PaperRPN,
)
from frcnn_plugin.modeling.image_size import image_scale
from tests.conftest import make_input

pytestmark = pytest.mark.usefixtures("restore_registries")

DILATED = ["MODEL.PAPER_VGG.CONV5_DILATION", 2]
PYRAMID = [
    *("MODEL.BACKBONE.NAME", "build_vgg16_fpn_backbone", "MODEL.FPN.OUT_CHANNELS", 8),
    *("MODEL.FPN.IN_FEATURES", ["conv3", "conv4", "conv5"]),
    *("MODEL.RPN.IN_FEATURES", ["p2", "p3", "p4", "p5", "p6"]),
    *("MODEL.ROI_HEADS.IN_FEATURES", ["p2", "p3", "p4"]),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64], [128], [256]]),
]
LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
BOXES = [[10.0, 12.0, 60.0, 70.0], [50.0, 20.0, 120.0, 90.0]]
SHAPE = {"conv5": ShapeSpec(channels=8, stride=16)}


def batch() -> list[dict[str, Any]]:
    return [make_input(97, 131, BOXES, scale=1.6), make_input(131, 160, BOXES[:1], seed=1)]


# ---- classes of another project -----------------------------------------------------------


def by_anchor(logits: list[Any], deltas: list[Any], numbers: int) -> tuple[list[Any], list[Any]]:
    """Order the head's maps by anchor: (N, R) and (N, R, numbers)."""
    deltas = [x.view(len(x), -1, numbers, *x.shape[-2:]) for x in deltas]
    return (
        [x.permute(0, 2, 3, 1).flatten(1) for x in logits],
        [x.permute(0, 3, 4, 1, 2).flatten(1, -2) for x in deltas],
    )


class PseudoLabelRPN(RPN):
    """Its own forward, which multiplies losses by their weights once more."""

    def forward(self, images, features, gt_instances=None, compute_loss=True, _val=False):
        self.ran = True
        maps = [features[f] for f in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = by_anchor(*self.rpn_head(maps), 4)
        losses = {}
        if self.training and compute_loss:
            labels, boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, labels, deltas, boxes)
            losses = {k: v * self.loss_weight.get(k, 1.0) for k, v in losses.items()}
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses


class OwnPooler(torch.nn.Module):
    """A copy of Detectron2's pooler, not derived from it."""

    def __init__(self, pooler: ROIPooler) -> None:
        super().__init__()
        self.level_poolers, self.output_size = pooler.level_poolers, pooler.output_size


class TheirPredictor(FastRCNNOutputLayers):
    def box_reg_loss(self, proposal_boxes, gt_boxes, pred_deltas, gt_classes):
        return 3 * super().box_reg_loss(proposal_boxes, gt_boxes, pred_deltas, gt_classes)


class PseudoLabelHeads(StandardROIHeads):
    """Own parts, without a call of super, an own forward, and a name for what it logs."""

    predictor: type[FastRCNNOutputLayers] = TheirPredictor

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        parts = StandardROIHeads.__dict__["_init_box_head"].__func__(cls, cfg, input_shape)
        parts["box_pooler"] = OwnPooler(parts["box_pooler"])
        parts["box_predictor"] = cls.predictor(cfg, parts["box_head"].output_shape)
        return parts

    def forward(
        self, images, features, proposals, targets=None, compute_loss=True, branch="", _val=False
    ):
        self.branches = {*getattr(self, "branches", ()), branch}
        trains = self.training and compute_loss
        if trains:
            proposals = self.label_and_sample_proposals(proposals, targets, branch=branch)
        maps = [features[f] for f in self.box_in_features]
        pooled = self.box_pooler(maps, [p.proposal_boxes for p in proposals])
        predictions = self.box_predictor(self.box_head(pooled))
        if trains:
            return proposals, self.box_predictor.losses(predictions, proposals)
        return self.box_predictor.inference(predictions, proposals)[0], predictions

    @torch.no_grad()
    def label_and_sample_proposals(self, proposals, targets, branch=""):
        get_event_storage().put_scalar(f"labelled_{branch}", 1)
        return super().label_and_sample_proposals(proposals, targets)


class TwoStagePseudoLabel(GeneralizedRCNN):
    def forward(self, batched_inputs, branch="supervised"):
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        self.scale = image_scale(images.image_sizes[0])
        features = self.backbone(images.tensor)
        if branch == "supervised":
            gt = [x["instances"] for x in batched_inputs]
            proposals, losses = self.proposal_generator(images, features, gt)
            _, more = self.roi_heads(images, features, proposals, gt, branch=branch)
            return {**losses, **more}, [], [], None
        proposals, _ = self.proposal_generator(images, features, None, compute_loss=False)
        detections, predictions = self.roi_heads(
            images, features, proposals, targets=None, compute_loss=False, branch=branch
        )
        return {}, proposals, detections, predictions


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -grad


class DomainRCNN(TwoStagePseudoLabel):
    """With a domain classifier, and a constructor that names its arguments and passes none on."""

    @configurable
    def __init__(self, *, backbone, proposal_generator, roi_heads, pixel_mean, pixel_std, domain):
        super(GeneralizedRCNN, self).__init__()
        self.backbone, self.vis_period = backbone, 0
        self.proposal_generator, self.roi_heads = proposal_generator, roi_heads
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), False)
        channels = backbone.output_shape()[domain].channels
        self.domain, self.classifier = domain, torch.nn.Conv2d(channels, 1, 3, padding=1)

    @classmethod
    def from_config(cls, cfg):
        found = GeneralizedRCNN.from_config(cfg)
        del found["input_format"], found["vis_period"]
        return {**found, "domain": cfg.MODEL.ROI_HEADS.IN_FEATURES[0]}

    def forward(self, batched_inputs, branch="supervised"):
        if branch != "domain":
            return super().forward(batched_inputs, branch=branch)
        images = self.preprocess_image(batched_inputs)
        source, target = (self.backbone(x)[self.domain] for x in (images.tensor, -images.tensor))
        losses = [self.classifier(Reverse.apply(x)).square().mean() for x in (source, target)]
        return {"loss_source": losses[0], "loss_target": losses[1]}, [], [], None


class SigmaRPN(RPN):
    """Eight numbers per box, a config among its arguments, and an own NMS call."""

    @configurable
    def __init__(self, *args, **kwargs):
        self.cfg = kwargs.pop("cfg")
        super().__init__(*args, **kwargs)

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {**super().from_config(cfg, input_shape), "cfg": cfg}

    def forward(
        self, images, features, gt_instances=None, compute_loss=True, branch="", danchor=False
    ):
        maps = [features[f] for f in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = by_anchor(*self.rpn_head(maps), 8)
        self.sigma, deltas = [x[..., 4:] for x in deltas], [x[..., :4] for x in deltas]
        losses = {}
        if self.training and compute_loss:
            labels, boxes = self.label_and_sample_anchors(anchors, gt_instances)
            losses = self.losses(anchors, logits, labels, deltas, boxes)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes, None), losses

    def predict_proposals(self, anchors, logits, deltas, image_sizes, sigma):
        return super().predict_proposals(anchors, logits, deltas, image_sizes)


class SigmaRPNHead(StandardRPNHead):
    @classmethod
    def from_config(cls, cfg, input_shape):
        return {**super().from_config(cfg, input_shape), "box_dim": 8}


def register(registry: Any, name: str, *bases: type) -> str:
    registry.register(type(name, bases, {}))
    return name


def run_both_branches(model: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with EventStorage():
        losses, *_ = model.train()(batch(), branch="supervised")
        assert set(losses) == LOSSES
        sum(losses.values()).backward()
        nothing, proposals, detections, predictions = model(batch(), branch="unsup_data_weak")
    assert nothing == {} and len(proposals) == len(detections) == 2
    assert len(predictions[0]) == sum(len(p) for p in proposals)
    assert detections[0].has("pred_boxes")
    with torch.no_grad():
        assert len(model.eval()(batch())) == 2


def test_their_model_with_our_parts_by_name(tiny_cfg) -> None:
    name = register(META_ARCH_REGISTRY, "Theirs", TwoStagePseudoLabel)
    model = build_model(tiny_cfg("MODEL.META_ARCHITECTURE", name))
    assert type(model.proposal_generator) is PaperRPN and type(model.roi_heads) is CaffeROIHeads
    run_both_branches(model)


@pytest.mark.parametrize("theirs_first", [True, False])
def test_classes_of_both(tiny_cfg, theirs_first: bool) -> None:
    def both(theirs: type, ours: type) -> tuple[type, ...]:
        return (theirs, ours) if theirs_first else (ours, theirs)

    cfg = tiny_cfg(
        *("MODEL.RPN.BBOX_REG_LOSS_WEIGHT", 10.0),
        "MODEL.META_ARCHITECTURE",
        register(META_ARCH_REGISTRY, "BothRCNN", *both(TwoStagePseudoLabel, PaperRCNN)),
        "MODEL.PROPOSAL_GENERATOR.NAME",
        register(PROPOSAL_GENERATOR_REGISTRY, "BothRPN", *both(PseudoLabelRPN, PaperRPN)),
        "MODEL.ROI_HEADS.NAME",
        register(ROI_HEADS_REGISTRY, "HeadsOfBoth", *both(PseudoLabelHeads, CaffeROIHeads)),
    )
    model = build_model(cfg)
    run_both_branches(model)
    assert model.scale == pytest.approx(1.6, rel=0.01)  # sizes know it, in both orders
    heads, rpn = model.roi_heads, model.proposal_generator
    assert hasattr(rpn, "ran") == theirs_first
    with EventStorage() as storage:
        model.train()(batch(), branch="supervised")
    assert f"labelled_{'supervised' if theirs_first else ''}" in storage.latest()
    # Ours does not hand it on.
    assert heads.branches == ({"supervised", "unsup_data_weak", ""} if theirs_first else {""})
    assert isinstance(heads.box_predictor, TheirPredictor)
    assert isinstance(heads.box_pooler, InclusiveROIPooler)
    assert type(heads.box_pooler.pooler.level_poolers[0]) is CaffeRoIPool


DOMAIN = {"loss_source", "loss_target"}


@pytest.mark.parametrize("backbone", [[], ["MODEL.PAPER_VGG.NORM", "BN"], DILATED, PYRAMID])
def test_a_domain_classifier(tiny_cfg, backbone: list[Any]) -> None:
    """Alone with our parts, and ours first."""
    for bases in ((DomainRCNN,), (PaperRCNN, DomainRCNN)):
        name = register(META_ARCH_REGISTRY, f"Domain{len(bases)}", *bases)
        model = build_model(tiny_cfg("MODEL.META_ARCHITECTURE", name, *backbone))
        run_both_branches(model)
        losses, *_ = model.train()(batch(), branch="domain")
        assert set(losses) == DOMAIN
        model.zero_grad()
        sum(losses.values()).backward()
        weight = next(p for n, p in model.named_parameters() if "conv5_3" in n)
        assert model.classifier.weight.grad.any() and weight.grad.any()
        META_ARCH_REGISTRY._obj_map.pop(name)


def test_a_constructor_that_keeps_ours_from_running(tiny_cfg) -> None:
    name = register(META_ARCH_REGISTRY, "TheirsFirst", DomainRCNN, PaperRCNN)
    model = build_model(tiny_cfg("MODEL.META_ARCHITECTURE", name))
    with pytest.raises(UserError, match=r"name PaperRCNN first, as in class TheirsFirst\(PaperR"):
        model(batch(), branch="supervised")


def test_boxes_with_sigma(tiny_cfg) -> None:
    names = (
        *("MODEL.META_ARCHITECTURE", register(META_ARCH_REGISTRY, "Sigma", TwoStagePseudoLabel)),
        "MODEL.PROPOSAL_GENERATOR.NAME",
        register(PROPOSAL_GENERATOR_REGISTRY, "SigmaBoth", SigmaRPN, PaperRPN),
        *("MODEL.RPN.HEAD_NAME", register(RPN_HEAD_REGISTRY, "SigmaHead", SigmaRPNHead)),
    )
    model = build_model(tiny_cfg(*names))
    run_both_branches(model)
    assert model.proposal_generator.sigma[0].shape[-1] == 4


@pytest.mark.parametrize(
    "options",
    [
        ["MODEL.ROI_HEADS.SAMPLING", "random"],
        ["MODEL.ROI_HEADS.SAMPLING", "hard"],
        ["MODEL.ROI_HEADS.NAME", "RFCNHeads"],
        ["MODEL.ROI_HEADS.NAME", "RFCNHeads", "MODEL.ROI_HEADS.SAMPLING", "hard"],
        [
            *("MODEL.ROI_HEADS.NAME", "CaffeCascadeROIHeads"),
            *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        ],
        ["MODEL.PROPOSAL_GENERATOR.NAME", "DenseWindows"],
        [
            *("MODEL.BACKBONE.NAME", "HyperVGG16", "MODEL.ROI_HEADS.IN_FEATURES", ["hyper"]),
            *("MODEL.PROPOSAL_GENERATOR.NAME", "HyperRPN"),
        ],
    ],
)
def test_switches_of_all_heads_and_rpns(tiny_cfg, options: list[Any]) -> None:
    """In training without losses, and with losses in evaluation, without the objects as RoIs."""
    torch.manual_seed(0)
    options = ["MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, *options]
    model = build_model(tiny_cfg(*options))
    gt = [x["instances"] for x in batch()]
    with torch.no_grad(), EventStorage():
        images, features = model.train().features(batch())
        proposals, nothing = model.proposal_generator(
            images, features, None, compute_loss=False, branch="weak"
        )
        detections, _ = model.roi_heads(
            images, features, proposals, targets=None, compute_loss=False, branch="weak"
        )
        assert nothing == {} and detections[0].has("pred_boxes")
        model.eval()
        kept = dict(vars(model.roi_heads))
        rois, losses = model.roi_heads(
            images, features, proposals, gt, compute_val_loss=True, branch="val"
        )
    assert losses and all(name.startswith("loss_") for name in losses)
    assert vars(model.roi_heads) == kept
    boxes = torch.cat([r.proposal_boxes.tensor for r in rois])
    assert len(boxes) and not any(torch.equal(box, gt[0].gt_boxes.tensor[0]) for box in boxes)


def test_a_teacher_by_names_of_its_own_state_dict(tiny_cfg) -> None:
    """Statistics that the student is given later come along, in wrappers and in place, too."""
    torch.manual_seed(0)
    student, teacher = build_model(tiny_cfg()).eval(), build_model(tiny_cfg()).eval()
    predictor = student.roi_heads.box_predictor
    predictor.target_statistics.set(torch.full((3, 4), 0.1), torch.full((3, 4), 0.2))
    theirs = {f"module.{name}": value for name, value in student.state_dict().items()}
    teacher.load_state_dict({k: theirs[f"module.{k}"] for k in teacher.state_dict()})
    with torch.no_grad():
        pairs = zip(student(batch()), teacher(batch()), strict=True)
        for a, b in ((x["instances"], y["instances"]) for x, y in pairs):
            assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        # As code does that averages the data of parameters, which no version counter sees.
        for p, q in zip(student.parameters(), teacher.parameters(), strict=True):
            q.data.mul_(0.5).add_(p.data, alpha=0.5).add_(0.01)
            p.data.add_(0.01)
        changed = student(batch())[0]["instances"], teacher(batch())[0]["instances"]
    assert torch.allclose(changed[0].scores, changed[1].scores, atol=1e-5)


def test_their_rpn_counts_lambda_twice(tiny_cfg) -> None:
    """As the page says."""
    name = register(PROPOSAL_GENERATOR_REGISTRY, "Twice", PseudoLabelRPN, PaperRPN)
    opts = ("MODEL.RPN.BBOX_REG_LOSS_WEIGHT", 10.0, "MODEL.PROPOSAL_GENERATOR.NAME", name)
    torch.manual_seed(0)
    model = build_model(tiny_cfg(*opts)).train()
    images, features = model.features(batch())
    gt = [x["instances"] for x in batch()]
    losses = []
    for forward in (PseudoLabelRPN.forward, PaperRPN.forward):
        torch.manual_seed(0)
        with EventStorage():
            losses.append(forward(model.proposal_generator, images, features, gt)[1])
    assert losses[0]["loss_rpn_loc"].item() == pytest.approx(10 * losses[1]["loss_rpn_loc"].item())
    assert losses[0]["loss_rpn_cls"].item() == losses[1]["loss_rpn_cls"].item() > 0


def test_our_model_without_their_arguments(tiny_cfg) -> None:
    """Ours first: a plain call trains as PaperRCNN does."""
    name = register(META_ARCH_REGISTRY, "OursFirst", PaperRCNN, TwoStagePseudoLabel)
    model = build_model(tiny_cfg("MODEL.META_ARCHITECTURE", name)).train()
    with EventStorage():
        assert set(model(batch())) == LOSSES
    with pytest.raises(TypeError, match="branch"), EventStorage():
        build_model(tiny_cfg()).train()(batch(), branch="supervised")


class DrawingRCNN(TwoStagePseudoLabel):
    """Draws the same iteration in each branch, under its name."""

    def forward(self, batched_inputs, branch="supervised"):
        results = super().forward(batched_inputs, branch=branch)
        if self.training:
            self.visualize_training(batched_inputs, results[1], branch)
        return results

    def visualize_training(self, batched_inputs, proposals, branch=""):
        self.drawn = [*getattr(self, "drawn", ()), branch]


@pytest.mark.parametrize("theirs_first", [True, False])
def test_pictures_of_branches(tiny_cfg, theirs_first: bool) -> None:
    bases = (DrawingRCNN, PaperRCNN) if theirs_first else (PaperRCNN, DrawingRCNN)
    name = register(META_ARCH_REGISTRY, "DrawsBranches", *bases)
    model = build_model(tiny_cfg("MODEL.META_ARCHITECTURE", name))
    run_both_branches(model)
    assert model.drawn == ["supervised", "unsup_data_weak"]


class LevelPooler(ROIPooler):
    """Takes each box from the map that its proposal comes from."""

    def forward(self, x, box_lists, level_ids):
        ids = torch.cat(level_ids)
        boxes = torch.cat([torch.zeros(len(ids), 1), Boxes.cat(box_lists).tensor], dim=1)
        pairs = zip(ids, boxes, strict=True)
        return torch.cat([self.level_poolers[i](x[i], box[None]) for i, box in pairs])


def test_a_pooler_that_takes_more() -> None:
    pooler = InclusiveROIPooler(LevelPooler(2, (1 / 16, 1 / 32), 0, "ROIPool"))
    maps = [torch.arange(36.0).view(1, 1, 6, 6) + 100 * level for level in range(2)]
    boxes = [Boxes(torch.tensor([[0.0, 0, 56, 56], [0.0, 0, 56, 56]]))]
    for ids in ([0, 1], [1, 0]):
        pooled = pooler(maps, boxes, level_ids=[torch.tensor(ids)])
        assert (pooled[:, 0, 0, 0] // 100).tolist() == ids
    one = InclusiveROIPooler(ROIPooler(2, (1 / 16,), 0, "ROIPool"))
    assert one(maps[:1], boxes, level_ids=None)[0, 0].tolist() == [[7, 9], [19, 21]]


@pytest.mark.parametrize("theirs_first", [True, False])
def test_a_plain_predictor_of_theirs_is_replaced(tiny_cfg, theirs_first: bool) -> None:
    class Plain(PseudoLabelHeads):
        predictor = FastRCNNOutputLayers

    bases = (Plain, CaffeROIHeads) if theirs_first else (CaffeROIHeads, Plain)
    cfg = tiny_cfg("MODEL.ROI_HEADS.NAME", register(ROI_HEADS_REGISTRY, "PlainBoth", *bases))
    predictor = build_roi_heads(cfg, SHAPE).box_predictor
    assert type(predictor) is PaperFastRCNNOutputLayers


def test_their_box_loss_in_our_predictor(tiny_cfg) -> None:
    """It has Detectron2's arguments only."""

    class Both(TheirPredictor, PaperFastRCNNOutputLayers):
        pass

    rois = batch()[0]["instances"]
    rois.proposal_boxes, rois.gt_classes = Boxes(rois.gt_boxes.tensor + 5), torch.tensor([0, 3])
    losses = []
    for cls in (Both, PaperFastRCNNOutputLayers):
        with EventStorage():
            predictor = cls(tiny_cfg(), ShapeSpec(channels=4))
            losses.append(predictor.losses((torch.zeros(2, 4), torch.zeros(2, 12)), [rois]))
    assert losses[0]["loss_box_reg"].item() == pytest.approx(3 * losses[1]["loss_box_reg"].item())
    assert losses[0]["loss_cls"] == losses[1]["loss_cls"]


def test_heads_of_keyword_arguments(tiny_cfg) -> None:
    """What is passed stays, but for the pooler of the type ROIPool, which pools as Caffe does."""
    parts = CaffeROIHeads.from_config(tiny_cfg(), SHAPE)
    options = {"output_size": 7, "scales": (1 / 16,), "sampling_ratio": 0}
    predictor = FastRCNNOutputLayers(tiny_cfg(), ShapeSpec(channels=16))
    for kind, cls in (("ROIPool", InclusiveROIPooler), ("ROIAlignV2", ROIPooler)):
        pooler = ROIPooler(**options, pooler_type=kind)
        heads = CaffeROIHeads(**{**parts, "box_pooler": pooler, "box_predictor": predictor})
        assert type(heads.box_pooler) is cls and heads.box_predictor is predictor
    given = InclusiveROIPooler(ROIPooler(**options, pooler_type="ROIPool"))
    assert CaffeROIHeads(**{**parts, "box_pooler": given}).box_pooler is given
    # Example E15f: inclusive (0, 0, 55, 55) is cells 0 to 3.
    ramp = torch.arange(36.0).view(1, 1, 6, 6)
    pooled = CaffeROIHeads(
        **{**parts, "box_pooler": ROIPooler(2, (1 / 16,), 0, "ROIPool")}
    ).box_pooler([ramp], [Boxes(torch.tensor([[0.0, 0, 56, 56]]))])
    assert pooled[0, 0].tolist() == [[7, 9], [19, 21]]


def test_losses_in_evaluation(tiny_cfg) -> None:
    """On proposals alone: the objects themselves are not among them, and come back for training."""
    torch.manual_seed(0)
    model = build_model(tiny_cfg()).eval()
    gt = [x["instances"] for x in batch()]
    with torch.no_grad(), EventStorage():
        images, features = model.features(batch())
        proposals, _ = model.proposal_generator(images, features, gt, compute_val_loss=True)
        sampled, losses = model.roi_heads(images, features, proposals, gt, compute_val_loss=True)
    assert set(losses) == {"loss_cls", "loss_box_reg"} and model.roi_heads.proposal_append_gt
    for rois, proposed in zip(sampled, proposals, strict=True):
        known = {tuple(box) for box in proposed.proposal_boxes.tensor.tolist()}
        assert {tuple(box) for box in rois.proposal_boxes.tensor.tolist()} <= known

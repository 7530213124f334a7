"""Models, heads and RPNs of other projects, with ours; docs/other_projects.md runs as printed.

The classes here override what those of Unbiased Teacher and its successors override.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
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
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

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

PAGE = Path(__file__).resolve().parents[2] / "docs" / "other_projects.md"
LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
BOXES = [[10.0, 12.0, 60.0, 70.0], [50.0, 20.0, 120.0, 90.0]]
SHAPE = {"conv5": ShapeSpec(channels=8, stride=16)}


def batch() -> list[dict[str, Any]]:
    return [make_input(97, 131, BOXES, scale=1.6), make_input(131, 160, BOXES[:1], seed=1)]


@pytest.fixture(autouse=True)
def leave_registries() -> Any:
    registries = (META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY)
    saved = [(registry, dict(registry)) for registry in registries]
    yield
    for registry, names in saved:
        registry._obj_map = names


# ---- classes of another project -----------------------------------------------------------


class PseudoLabelRPN(RPN):
    """Its own forward, which multiplies losses by their weights once more."""

    def forward(self, images, features, gt_instances=None, compute_loss=True, _val=False):
        self.ran = True
        maps = [features[f] for f in self.in_features]
        anchors = self.anchor_generator(maps)
        logits, deltas = self.rpn_head(maps)
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        deltas = [
            x.view(len(x), -1, 4, *x.shape[-2:]).permute(0, 3, 4, 1, 2).flatten(1, -2)
            for x in deltas
        ]
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
    """Own parts, without a call of super, and an own forward."""

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
            proposals = self.label_and_sample_proposals(proposals, targets)
        maps = [features[f] for f in self.box_in_features]
        pooled = self.box_pooler(maps, [p.proposal_boxes for p in proposals])
        predictions = self.box_predictor(self.box_head(pooled))
        if trains:
            return proposals, self.box_predictor.losses(predictions, proposals)
        return self.box_predictor.inference(predictions, proposals)[0], predictions


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
        register(ROI_HEADS_REGISTRY, "BothHeads", *both(PseudoLabelHeads, CaffeROIHeads)),
    )
    model = build_model(cfg)
    run_both_branches(model)
    assert model.scale == pytest.approx(1.6, rel=0.01)  # sizes know it, in both orders
    heads, rpn = model.roi_heads, model.proposal_generator
    assert hasattr(rpn, "ran") == theirs_first
    # Ours does not hand it on.
    assert heads.branches == ({"supervised", "unsup_data_weak", ""} if theirs_first else {""})
    assert isinstance(heads.box_predictor, TheirPredictor)
    assert isinstance(heads.box_pooler, InclusiveROIPooler)
    assert type(heads.box_pooler.pooler.level_poolers[0]) is CaffeRoIPool


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


# ---- the page -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page defines, its blocks run from top to bottom, with a narrower fc6."""
    text = PAGE.read_text().replace("FC_DIM = 1024", "FC_DIM = 64")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_the_page(page: dict[str, Any]) -> None:
    model, vgg, pair = page["model"], page["vgg"], page["pair"]
    assert type(model) is PaperRCNN and model.roi_heads.num_classes == 8
    assert type(vgg.roi_heads) is StandardROIHeads and vgg.roi_heads.box_head.output_size == 64
    assert set(page["student"]["model"]) == set(model.state_dict())
    assert len(pair["model"]) == 2 * len(model.state_dict())
    assert "modelTeacher.backbone.conv1.conv1_1.weight" in pair["model"]

    both = page["both"].roi_heads
    assert type(both.box_predictor) is page["FocalOutputLayers"]
    assert both.box_predictor.decode_in_image and not both.box_predictor.target_statistics.active
    assert isinstance(both.box_pooler, InclusiveROIPooler)


@pytest.mark.parametrize("part", ["RPN", "ROI_HEADS"])
def test_keys_that_the_page_says_are_needed(page: dict[str, Any], part: str) -> None:
    cfg = page["stock"].clone()
    cfg.MODEL[part].IN_FEATURES = ["res4"]  # Detectron2's default
    with pytest.raises(KeyError, match="res4"):
        build_model(cfg)


def test_the_page_teaches(page: dict[str, Any]) -> None:
    teacher = page["teacher"].train()
    with EventStorage(), torch.no_grad():
        assert set(teacher(batch())) == LOSSES
        detections = teacher(batch(), branch="weak")
        assert len(detections) == 2 and detections[0].has("pred_boxes")
        both, weighted = page["both"].train(), page["weighted"].train()
        assert both(batch())["loss_cls"] > 0
        x = batch()[:1]
        for scores, is_zero in (([0.0, 0.0], True), ([0.5, 1.0], False)):
            x[0]["instances"].gt_scores = torch.tensor(scores)
            assert (weighted(x)["loss_box_reg"].item() == 0) == is_zero
        assert weighted(batch()[:1])["loss_box_reg"].item() > 0  # without scores

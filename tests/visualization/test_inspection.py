"""What is drawn is what the model does: the same anchors, labels, samples and cells."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou

from frcnn_plugin import get_config_file
from frcnn_plugin.checkpoint.checkpointer import load_model
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.errors import UserError
from frcnn_plugin.visualization.inspection import (
    BoxRules,
    detect,
    propose,
    sample_rois,
    with_training_proposals,
)

from ..conftest import make_input, make_instances

SIZE = (131, 197)  # odd: 9 x 13 cells, as pooling rounds up


@pytest.mark.parametrize("backbone", ["VGG16", "ZF"])
def test_anchors_are_the_model_s(tiny_cfg, backbone: str) -> None:
    cfg = tiny_cfg("MODEL.BACKBONE.NAME", backbone)
    model = build_model(cfg)
    features = model.backbone(torch.zeros(1, 3, *SIZE))
    (expected,) = model.proposal_generator.anchor_generator(list(features.values()))
    rules = BoxRules(cfg)
    assert torch.equal(rules.anchors(SIZE).tensor, expected.tensor)
    rows, columns, per_cell = rules.grid(SIZE)
    assert (rows, columns) == tuple(features["conv5"].shape[-2:]) and per_cell == 9
    assert len(expected) == rows * columns * 9
    assert rules.feature_size("conv5", SIZE) == (rows, columns)


def test_coco_has_twelve_anchors_and_no_network_is_in_memory() -> None:
    cfg = setup_cfg(get_config_file("faster_rcnn_vgg16_coco.yaml"), ["MODEL.DEVICE", "cpu"])
    rules = BoxRules(cfg)
    assert rules.grid((600, 1000)) == (38, 63, 12)
    assert all(p.is_meta for p in rules._backbone.parameters())
    assert rules.pooled_feature == ("conv5", 16)
    assert all(p.is_meta for p in rules.heads.parameters())


def test_labels_before_and_after_sampling(tiny_cfg) -> None:
    rules = BoxRules(tiny_cfg("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 32))
    anchors = rules.anchors(SIZE)
    instances = make_instances(SIZE, [[20, 20, 84, 84], [100, 30, 160, 120]])
    labels, _ = rules.rpn.label_anchors(anchors, instances)
    inside = rules.inside(anchors, SIZE)
    # Of all inside anchors, as they are matched in training.
    expected, _ = rules.rpn.match_anchors(anchors[inside], instances.gt_boxes)
    assert torch.equal(labels[inside], expected) and (labels[~inside] == -1).all()
    assert (labels == 1).any() and (labels == 0).sum() > 32
    assert rules.rpn.batch_size_per_image == 32  # as it was

    state = torch.get_rng_state()
    sampled = rules.sampled_labels(anchors, instances, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert int((sampled >= 0).sum()) == 32
    taken = sampled >= 0
    assert torch.equal(sampled[taken], labels[taken])
    assert torch.equal(sampled, rules.sampled_labels(anchors, instances, seed=1))
    assert not torch.equal(sampled, rules.sampled_labels(anchors, instances, seed=2))
    torch.manual_seed(1)  # the call that training makes
    ((same,), _) = rules.rpn.label_and_sample_anchors([anchors], [instances])
    assert torch.equal(sampled, same)


def test_labels_of_an_empty_image(tiny_cfg) -> None:
    rules = BoxRules(tiny_cfg())
    anchors = rules.anchors(SIZE)
    labels, _ = rules.rpn.label_anchors(anchors, make_instances(SIZE, []))
    assert torch.equal(labels == 0, rules.inside(anchors, SIZE)) and not (labels == 1).any()


@pytest.mark.parametrize("name", ["RPN", "PrecomputedProposals"])
def test_other_rpns_are_refused(tiny_cfg, name: str) -> None:
    rules = BoxRules(tiny_cfg("MODEL.PROPOSAL_GENERATOR.NAME", name))
    with pytest.raises(
        UserError, match=rf"for PaperRPN on one feature map; .*NAME {name} and MODEL"
    ):
        rules.anchors(SIZE)


def test_pooler(tiny_cfg) -> None:
    rules = BoxRules(tiny_cfg())
    feature = torch.rand(1, 2, 9, 13)
    box = Boxes(torch.tensor([[10.0, 20, 90, 100]]))
    model = build_model(tiny_cfg())
    poolers = (rules.heads.box_pooler, model.roi_heads.box_pooler)
    assert torch.equal(*(pooler([feature], [box]) for pooler in poolers))
    aligned = BoxRules(tiny_cfg("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"))
    with pytest.raises(UserError, match=r"RoI max pooling on one .*POOLER_TYPE ROIAlignV2"):
        _ = aligned.heads


def test_proposals_and_detections_are_in_image_pixels(tiny_cfg) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg()).eval()
    item = make_input(120, 200, [[20, 20, 80, 80]], scale=2.0)  # the image: 60 x 100
    proposals = propose(model, item)
    assert proposals.image_size == (60, 100)
    assert proposals.proposal_boxes.tensor[:, 2].max() == pytest.approx(100, abs=0.01)
    logits = proposals.objectness_logits
    assert len(logits) > 0 and torch.equal(logits, logits.sort(descending=True).values)
    model.roi_heads.box_predictor.test_score_thresh = 0.0
    found = detect(model, item)
    assert found.image_size == (60, 100) and len(found)
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)


def test_sampled_rois(tiny_cfg) -> None:
    torch.manual_seed(0)
    model = build_model(tiny_cfg("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16)).eval()
    item = make_input(120, 200, [[20, 20, 80, 80]], scale=2.0)
    rois = sample_rois(model, item, seed=0)
    assert len(rois) == 16 and not model.proposal_generator.training
    foreground = rois.gt_classes < 3
    assert 1 <= int(foreground.sum()) <= 4  # the object itself at least; a quarter at most
    iou = pairwise_iou(rois.proposal_boxes, item["instances"].gt_boxes)[:, 0]
    assert torch.equal(iou >= 0.5, foreground)
    again = sample_rois(model, item, seed=0)
    assert torch.equal(rois.proposal_boxes.tensor, again.proposal_boxes.tensor)
    empty = sample_rois(model, make_input(120, 200, []), seed=0)
    assert (empty.gt_classes == 3).all()


def test_sampled_rois_are_the_hard_ones(tiny_cfg) -> None:
    torch.manual_seed(0)
    opts = ("MODEL.ROI_HEADS.SAMPLING", "hard", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16)
    model = build_model(tiny_cfg(*opts)).eval()
    item = make_input(120, 200, [[20, 20, 80, 80]], scale=2.0)
    rois, again = (sample_rois(model, item, seed) for seed in (0, 1))
    assert len(rois) == 16  # of more than 100
    assert torch.equal(rois.proposal_boxes.tensor, again.proposal_boxes.tensor)


def test_detector_of_four_steps_learns_on_cached_proposals() -> None:
    cfg = setup_cfg(get_config_file("faster_rcnn_vgg16_voc.yaml"), ["MODEL.DEVICE", "cpu"])
    changed = with_training_proposals(cfg)
    assert (changed.MODEL.RPN.PRE_NMS_TOPK_TRAIN, changed.MODEL.RPN.POST_NMS_TOPK_TRAIN) == (
        -1, 2000
    )  # fmt: skip
    joint = setup_cfg(get_config_file("faster_rcnn_vgg16_voc_joint.yaml"), ["MODEL.DEVICE", "cpu"])
    assert with_training_proposals(joint).MODEL.RPN == joint.MODEL.RPN


def test_weights_must_be_there_and_fit(tiny_cfg, tmp_path) -> None:
    with pytest.raises(
        UserError, match=r"no weights given\. Add MODEL\.WEIGHTS path/to/model_final"
    ):
        load_model(tiny_cfg())
    with pytest.raises(UserError, match=r"frcnn://zf_caffe_imagenet is no detector\. Add"):
        load_model(tiny_cfg("MODEL.WEIGHTS", "frcnn://zf_caffe_imagenet"))
    model = build_model(tiny_cfg())
    path = tmp_path / "model.pth"
    state = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    torch.save({"model": state}, path)
    with pytest.raises(UserError, match=r"cannot be evaluated: it lacks"):
        load_model(tiny_cfg("MODEL.WEIGHTS", str(path)))
    torch.save({"model": model.state_dict()}, path)
    assert not load_model(tiny_cfg("MODEL.WEIGHTS", str(path))).training

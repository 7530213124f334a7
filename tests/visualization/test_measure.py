"""Every intermediate value is the model's own: same proposals, detections, samples and losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from frcnn_plugin import get_config_file
from frcnn_plugin.engine import setup_cfg
from frcnn_plugin.errors import UserError
from frcnn_plugin.visualization.inspection import BoxRules, InspectedImage, propose, sample_rois
from frcnn_plugin.visualization.measure import (
    ForwardPass,
    forward_pass,
    time_parts,
    training_step,
)
from tests.conftest import make_input
from tests.random_detector import random_detector

BOXES = [[20.0, 20, 80, 80], [100, 40, 180, 110]]


class Image(InspectedImage):
    """An input as the mapper makes it, without a file."""

    def __init__(self, item: dict[str, Any]) -> None:
        self.item, self.name, self.record = item, "noise", {}
        self.bgr = np.zeros((item["height"], item["width"], 3), np.uint8)
        self.size = tuple(item["image"].shape[-2:])  # type: ignore[assignment]
        self.scale = np.array([item["width"] / self.size[1], item["height"] / self.size[0]] * 2)


@pytest.fixture
def item() -> dict[str, Any]:
    return make_input(120, 200, BOXES, scale=2.0)


def seen(cfg: Any, item: dict[str, Any]) -> tuple[Any, ForwardPass]:
    model = random_detector(cfg)
    return model, forward_pass(model, Image(item))


@pytest.mark.parametrize("backbone, last, rpn", [("VGG16", 196, 228), ("ZF", 139, 171)])
def test_receptive_fields_are_the_paper_s(tiny_cfg, item, backbone, last, rpn) -> None:
    model, found = seen(tiny_cfg("MODEL.BACKBONE.NAME", backbone), item)
    by_name = {layer.name: layer for layer in found.layers}
    assert by_name["rpn_conv"].sees == by_name["rpn_bbox_pred"].sees == rpn
    shared = [layer for layer in found.layers if layer.name.startswith("conv")]
    assert (shared[-1].sees, shared[-1].stride, shared[-1].size) == (last, 16, found.grid[:2])
    counted = sum(layer.parameters for layer in found.layers)
    parts = (model.backbone, model.proposal_generator)
    assert counted == sum(p.numel() for part in parts for p in part.parameters())
    # The last one that is measured is what reaches the cell: a pixel beyond it changes nothing.
    assert not any(m._forward_hooks for m in model.modules())


def test_frozen_layers_are_named(tiny_cfg, item) -> None:
    _, found = seen(tiny_cfg("MODEL.BACKBONE.FREEZE_AT", 2), item)
    still = [x.name for x in found.layers if x.parameters and not x.trains]
    assert still == ["conv1_1", "conv1_2", "conv2_1", "conv2_2"]


def test_results_are_those_of_the_model(tiny_cfg, item) -> None:
    cfg = tiny_cfg()
    model, found = seen(cfg, item)
    expected = model([item])[0]["instances"]
    assert len(expected) and torch.equal(
        found.detections.pred_boxes.tensor, expected.pred_boxes.tensor
    )
    scale = torch.tensor(found.image.scale)
    boxes = found.proposals.proposal_boxes.tensor * scale
    torch.testing.assert_close(
        boxes, propose(model, item).proposal_boxes.tensor.double(), atol=1e-4, rtol=0
    )
    assert torch.equal(found.selection.boxes, found.proposals.proposal_boxes.tensor)
    # The logits are the differences of the pairs, in the anchors' order.
    back, front = found.pairs.chunk(2)
    assert torch.equal((front - back).permute(1, 2, 0).flatten(), found.logits)
    assert torch.equal(found.inside, BoxRules(cfg).inside(found.anchors, found.image.size))
    torch.testing.assert_close(found.scores.sum(dim=1), torch.ones(len(found.scores)))
    for name, values in found.maps.items():
        assert (values >= 0).all() and values.any(), name  # after the ReLU
    assert torch.equal(found.maps["conv5"], found.features["conv5"][0])


def test_counts_of_detections(tiny_cfg, item) -> None:
    opts = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5000)
    _, found = seen(tiny_cfg(*opts), item)
    before, after = found.counts
    assert before == 3 * len(found.proposals) and after == len(found.detections) < before


def test_step_is_that_of_training(tiny_cfg, item) -> None:
    cfg = tiny_cfg("MODEL.ROI_BOX_HEAD.DROPOUT", 0.0, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16)
    model, found = seen(cfg, item)
    step = training_step(model, found, seed=3)
    rois = sample_rois(model, item, seed=3)
    assert torch.equal(step.rois.proposal_boxes.tensor, rois.proposal_boxes.tensor)
    instances = item["instances"]
    assert torch.equal(step.sampled, BoxRules(cfg).sampled_labels(found.anchors, instances, 3))
    model.train()
    torch.manual_seed(3)
    with EventStorage(), torch.no_grad():
        losses = model([item])
    assert step.losses == pytest.approx({k: float(v) for k, v in losses.items()}, rel=1e-4)
    assert float(step.anchor_losses.mean()) == pytest.approx(step.losses["loss_rpn_cls"], rel=1e-5)
    box = (step.targets - step.predicted).abs()
    beta = model.roi_heads.box_predictor.smooth_l1_beta
    per_roi = torch.where(box < beta, box**2 / 2 / beta, box - beta / 2).sum(dim=1)
    torch.testing.assert_close(per_roi, step.roi_losses["loss_box_reg"])
    torch.testing.assert_close(-step.chances.log(), step.roi_losses["loss_cls"])


def test_image_without_objects(tiny_cfg) -> None:
    model, found = seen(tiny_cfg(), make_input(120, 200, []))
    step = training_step(model, found)
    assert not (step.sampled == 1).any() and step.losses["loss_rpn_loc"] == 0
    assert (step.rois.gt_classes == 3).all() and not step.targets.any()


@pytest.mark.parametrize("name", ["rfcn", "cascade", "hypernet", "dilated", "ohem"])
def test_the_family_works(name: str) -> None:
    cfg = setup_cfg(get_config_file(f"demo/vgg16_shapes_{name}.yaml"), ["MODEL.DEVICE", "cpu"])
    model, found = seen(cfg, make_input(224, 300, BOXES))
    step = training_step(model, found)
    assert (found.scores is None) == (step.targets is None) == (name == "cascade")
    assert (found.pairs is None) == (name == "hypernet")
    assert len(found.detections) and len(step.rois) and not model.roi_heads.training


def test_a_proposal_network_ends_there(tiny_cfg, item) -> None:
    model, found = seen(tiny_cfg("MODEL.PAPER_RCNN.PHASE", "rpn"), item)
    step = training_step(model, found)
    assert found.detections is None and set(step.losses) == {"loss_rpn_cls", "loss_rpn_loc"}
    assert len(time_parts(model, item)) == 2


@pytest.mark.parametrize(
    "opts, problem",
    [
        (("MODEL.PAPER_RCNN.PHASE", "fast_rcnn"), "given its proposals, .*LOAD_PROPOSALS False"),
        (("MODEL.PROPOSAL_GENERATOR.NAME", "RPN"), "builds a RPN: set .*NAME PaperRPN"),
        (("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"), "set MODEL.META_ARCHITECTURE PaperRCNN"),
        (
            (
                *("MODEL.RPN.IN_FEATURES", ["conv4", "conv5"]),
                *("MODEL.PAPER_VGG.OUT_FEATURES", ["conv4", "conv5"]),
                *("MODEL.PAPER_VGG.CHANNELS", [4, 4, 8, 8, 8]),
                *("MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]]),
            ),
            r"IN_FEATURES is \['conv4', 'conv5'\]: name one feature map",
        ),
    ],
)
def test_other_models_are_refused(tiny_cfg, item, opts, problem) -> None:
    with pytest.raises(UserError, match=problem):
        seen(tiny_cfg(*opts), item)

"""Losses and gradients of joint and four-step training against the transcription.

The plugin samples, and what it sampled goes into the transcription, which finds labels, targets,
losses and gradients anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from frcnn_plugin import add_frcnn_config, get_config_file
from tests.conftest import make_instances

from . import caffe_net, caffe_train
from .caffe_boxes import Margins
from .caffe_net import VGG16_ALT_OPT, VGG16_COCO, ZF_ALT_OPT, Blobs, Net, Weights
from .harness import MEAN
from .runs import FC, ONE, match
from .weights import NARROW, make_weights, picture, state_dict

JOINT = {
    "VGG16 alt_opt": "faster_rcnn_vgg16_voc_joint.yaml",
    "ZF alt_opt": "faster_rcnn_zf_voc_joint.yaml",
    "VGG16 COCO": "faster_rcnn_vgg16_coco_joint.yaml",
}
NETS = [VGG16_ALT_OPT, ZF_ALT_OPT, VGG16_COCO]
SIZE, SCALE = (600, 754), 1.5
# Inclusive, network-input pixels; classes from 0.
GT = np.array([[40, 30, 250, 330], [300, 200, 420, 310], [350, 90, 740, 580]], np.float32)
CLASSES = [4, 0, 11]
LOSSES = ("loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg")


class Spied:
    """A model in training mode that keeps what it sampled."""

    def __init__(self, net: Net, config: str, *opts: Any) -> None:
        self.net = net
        self.weights = make_weights(net, NARROW[net.backbone], FC)
        cfg = get_cfg()
        add_frcnn_config(cfg)
        cfg.merge_from_file(get_config_file(config))
        cfg.merge_from_list(
            [
                *("MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", FC),
                *(
                    f"MODEL.PAPER_{net.backbone[:3].rstrip('1')}.CHANNELS",
                    list(NARROW[net.backbone]),
                ),
                *("MODEL.PAPER_RCNN.CHANNELS_LAST", False),
                *opts,
            ]
        )
        self.model = build_model(cfg).train()
        state = {
            k: v for k, v in state_dict(net, self.weights).items() if "target_statistics" not in k
        }
        self.model.load_state_dict(state, strict=False)
        self.seen: dict[str, Any] = {}
        self._spy(self.model.proposal_generator, "label_and_sample_anchors", "anchors")
        self._spy(self.model.proposal_generator, "predict_proposals", "proposals")
        self._spy(self.model.roi_heads, "label_and_sample_proposals", "rois")
        for name in ("drop6", "drop7"):
            getattr(self.model.roi_heads.box_head, name).register_forward_hook(
                lambda module, args, out, name=name: self.seen.update({name: (out != 0).float()})
            )

    def _spy(self, owner: Any, method: str, name: str) -> None:
        original = getattr(owner, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.seen[name] = original(*args, **kwargs)
            return self.seen[name]

        setattr(owner, method, call)

    def run(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        with EventStorage():
            losses: dict[str, torch.Tensor] = self.model(batch)
        sum(losses.values()).backward()
        return losses

    def masks(self) -> list[torch.Tensor]:
        return [self.seen["drop6"], self.seen["drop7"]]

    def compare_gradients(self, weights: Weights) -> int:
        """Of all layers that train, with those of the transcription's weights."""
        grads = {
            k: [t.grad if t.grad is not None else 0 * t for t in v] for k, v in weights.items()
        }
        expected = state_dict(self.net, grads)
        compared = 0
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                assert name.startswith(("backbone.conv1.", "backbone.conv2."))
                continue
            theirs = expected[name]
            if parameter.grad is None:
                assert not theirs.any(), name
                continue
            assert theirs.any(), name
            error = (parameter.grad - theirs).abs().max() / theirs.abs().max()
            assert error < 1e-4, f"{name}: {error:.1g}"
            compared += 1
        return compared


def sample(gt: np.ndarray, classes: list[int], seed: int = 3) -> dict[str, Any]:
    return {
        "image": picture(*SIZE, seed=seed),
        "height": 400,
        "width": 503,
        "instances": make_instances(SIZE, (gt + ONE).tolist(), classes),
    }


def leaves(weights: Weights) -> Weights:
    return {k: [t.clone().requires_grad_() for t in v] for k, v in weights.items()}


def inclusive(boxes: Boxes) -> np.ndarray:
    return (boxes.tensor.numpy() - ONE).astype(np.float32)


def with_batch_index(rois: np.ndarray, index: int = 0) -> np.ndarray:
    return np.hstack([np.full((len(rois), 1), index), rois]).astype(np.float32)


@pytest.fixture(scope="module", params=NETS, ids=lambda net: net.name)
def joint(request) -> tuple[Spied, dict[str, torch.Tensor], Weights, Blobs]:
    """A training step of the plugin, and the transcription's blobs for the same samples."""
    net = request.param
    spied = Spied(net, JOINT[net.name])
    losses = spied.run([sample(GT, CLASSES)])
    weights = leaves(spied.weights)
    data = (picture(*SIZE, seed=3) - MEAN).unsqueeze(0)
    blobs = caffe_net.backbone(net, data, weights)
    blobs.update(caffe_net.rpn(net, blobs[net.last], weights))
    (rois,) = spied.seen["rois"]
    masks = spied.masks() if net.dropout else None
    boxes = with_batch_index(inclusive(rois.proposal_boxes))
    blobs.update(caffe_net.head(net, blobs[net.last], boxes, weights, masks))
    return spied, losses, weights, blobs


def test_proposals_in_training(joint) -> None:
    spied, _, _, blobs = joint
    rois = caffe_net.proposals(spied.net, blobs, (*SIZE, SCALE), "train", Margins())[:, 1:]
    ours = inclusive(spied.seen["proposals"][0].proposal_boxes)
    assert len(rois) > 1000
    order = match(ours, rois)
    assert order is not None and np.abs(ours[order] - rois).max() < 1e-3


def test_anchors_are_sampled_by_the_rules(joint) -> None:
    spied, _, _, blobs = joint
    (labels,), _ = spied.seen["anchors"]
    size = blobs["rpn_cls_score"].shape[2:]
    every = caffe_train.anchor_labels(spied.net, *size, GT, SIZE)
    sampled = labels.numpy()
    for value in (0, 1):
        assert (every[sampled == value] == value).all()
    positives = min((every == 1).sum(), 128)
    assert (sampled == 1).sum() == positives >= 3
    assert (sampled == 0).sum() == min(256 - positives, (every == 0).sum())


def test_rois_are_sampled_by_the_rules(joint) -> None:
    spied, _, _, _ = joint
    (rois,) = spied.seen["rois"]
    background = spied.net.num_classes - 1
    ours = (rois.gt_classes.numpy() + 1) % (background + 1)
    expected = caffe_train.roi_labels(inclusive(rois.proposal_boxes), GT, np.array(CLASSES) + 1)
    assert (ours == expected).all()
    every = np.vstack([inclusive(spied.seen["proposals"][0].proposal_boxes), GT])
    available = (caffe_train.roi_labels(every, GT, np.array(CLASSES) + 1) > 0).sum()
    assert (ours > 0).sum() == min(available, 32) and len(ours) == 128


def test_losses_and_gradients(joint) -> None:
    spied, losses, weights, blobs = joint
    (labels,), _ = spied.seen["anchors"]
    (rois,) = spied.seen["rois"]
    boxes = inclusive(rois.proposal_boxes)
    classes = caffe_train.roi_labels(boxes, GT, np.array(CLASSES) + 1)
    gt = GT[caffe_train.overlaps(boxes, GT).argmax(1)]
    expected = [
        *caffe_train.rpn_losses(spied.net, blobs, labels.numpy().astype(int), GT),
        *caffe_train.head_losses(blobs, classes, boxes, gt),
    ]
    for name, theirs in zip(LOSSES, expected, strict=True):
        assert theirs > 1e-3
        assert losses[name].item() == pytest.approx(theirs.item(), rel=2e-5), name
    sum(expected).backward()
    # Weights and biases: the RPN's 3 layers and the head's 4 on top of the convolutions that train.
    convs = 9 if spied.net.backbone == "VGG16" else 5
    assert spied.compare_gradients(weights) == 2 * (convs + 3 + 4)
    assert not weights["bbox_pred"][0].grad[:4].any()  # background


@pytest.mark.parametrize("net", [VGG16_ALT_OPT, ZF_ALT_OPT], ids=lambda net: net.name)
def test_detector_step_on_a_pair(net: Net) -> None:
    """Fast R-CNN step of alt_opt: two images, zero-padded, 64 RoIs each, statistics per class."""
    config = {"VGG16": "vgg16_voc07_alt_opt", "ZF": "zf_voc07_alt_opt"}[net.backbone]
    spied = Spied(net, f"released/{config}.yaml", "MODEL.PAPER_RCNN.PHASE", "fast_rcnn")
    generator = np.random.default_rng(0)
    mean = generator.normal(0, 0.05, (21, 4))
    std = generator.uniform(0.05, 0.3, (21, 4))
    # The plugin's are in units after BBOX_REG_WEIGHTS, and without background.
    unit = np.array([10, 10, 5, 5])
    spied.model.roi_heads.box_predictor.target_statistics.set(
        *(torch.tensor(unit * rows[1:]).float() for rows in (mean, std))
    )
    sizes = [(600, 754), (600, 700)]
    gts = [GT, np.array([[100, 50, 400, 420]], np.float32)]
    classes = [CLASSES, [7]]
    batch = []
    for i, (size, gt) in enumerate(zip(sizes, gts, strict=True)):
        corners = generator.uniform(0, 400, (300, 2))
        boxes = np.hstack([corners, corners + generator.uniform(30, 190, (300, 2))])
        boxes = np.vstack([boxes, gt[generator.integers(len(gt), size=60)] + 9])
        proposals = Instances(size)
        proposals.proposal_boxes = Boxes(torch.tensor(boxes + ONE).float())
        proposals.objectness_logits = torch.zeros(len(boxes))
        batch.append(
            {
                "image": picture(*size, seed=i),
                "height": 400,
                "width": round(size[1] / 1.5),
                "instances": make_instances(size, (gt + ONE).tolist(), classes[i]),
                "proposals": proposals,
            }
        )
    losses = spied.run(batch)
    assert set(losses) == {"loss_cls", "loss_box_reg"}

    weights = leaves(spied.weights)
    data = torch.zeros(2, 3, 600, 754)
    for i, entry in enumerate(batch):
        height, width = sizes[i]
        data[i, :, :height, :width] = entry["image"] - MEAN
    features = caffe_net.backbone(net, data, weights)[net.last]
    rois, labels, targets = [], [], []
    for i, sampled in enumerate(spied.seen["rois"]):
        assert len(sampled) == 64
        boxes = inclusive(sampled.proposal_boxes)
        labels.append(caffe_train.roi_labels(boxes, gts[i], np.array(classes[i]) + 1))
        assert (labels[i] == (sampled.gt_classes.numpy() + 1) % 21).all()
        assert (labels[i] > 0).sum() == 16
        targets.append(gts[i][caffe_train.overlaps(boxes, gts[i]).argmax(1)])
        rois.append(with_batch_index(boxes, i))
    every = np.vstack(rois)
    blobs = caffe_net.head(net, features, every, weights, spied.masks())
    expected = caffe_train.head_losses(
        blobs, np.concatenate(labels), every[:, 1:], np.vstack(targets), mean, std
    )
    for name, theirs in zip(LOSSES[2:], expected, strict=True):
        assert losses[name].item() == pytest.approx(theirs.item(), rel=2e-5), name
    sum(expected).backward()
    assert spied.compare_gradients(weights) == 2 * ((9 if net.backbone == "VGG16" else 5) + 4)

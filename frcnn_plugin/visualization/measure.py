"""What one image becomes on its way through a model, every intermediate value kept.

`forward_pass` is the path of evaluation, `training_step` what an iteration would learn from the
same values, `time_parts` how long the parts of the path take. Everything is computed by the model's
own methods, on its device; boxes are in network-input pixels unless said otherwise.

Shape shorthand in this module: R anchors, A per cell, P proposals, N RoIs, K classes.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F

from ..errors import UserError
from ..modeling import CaffeBackbone, PaperRCNN, PaperRPN, Selection, box_features, inside_image
from ..modeling.roi_heads.detections import detection_candidates, suppress, to_original_size
from .drawings.anchors import MatchReasons, explain_matches
from .inspection import InspectedImage, Size


@dataclass(frozen=True)
class Layer:
    """A convolution, pooling or normalisation of the shared network or of the RPN."""

    name: str  # "conv3_2", "pool4"
    kernel: int  # side of its window, cells of its input; 0: no window
    step: int  # cells of its input from one window to the next
    channels: int  # of its output
    size: Size  # rows and columns of its output
    stride: int  # network pixels from one cell of its output to the next
    sees: int  # receptive field of a cell, network pixels per side
    parameters: int
    trains: bool  # whether any of them is not frozen


@dataclass(frozen=True)
class ForwardPass:
    """All intermediate values of one image."""

    image: InspectedImage
    images: ImageList  # the network's input
    features: dict[str, torch.Tensor]  # what both networks read, each (1, C, H, W)
    layers: list[Layer]
    maps: dict[str, torch.Tensor]  # output of each block of the backbone, (C, H, W)
    grid: tuple[int, int, int]  # rows and columns of cells, A
    anchors: Boxes  # (R, 4), by row, column, shape
    inside: torch.Tensor  # (R,) bool, those that are trained on
    pairs: torch.Tensor | None  # (2A, H, W) before the softmax; None: not computed per cell
    logits: torch.Tensor  # (R,), object - background
    deltas: torch.Tensor  # (R, 4), t of the paper
    decoded: torch.Tensor  # (R, 4), the anchors moved by t
    selection: Selection  # with the counts of each step
    proposals: Instances  # proposal_boxes (P, 4) and objectness_logits, best first
    # None if the model only proposes; in pixels of the original image.
    detections: Instances | None = None
    # None also where several heads look at a box in a row.
    scores: torch.Tensor | None = None  # (P, K+1) probabilities, background last
    counts: tuple[int, int] | None = None  # boxes before and after the suppression per class


@dataclass(frozen=True)
class TrainingStep:
    """What an iteration on the image would learn from; dropout is off."""

    reasons: MatchReasons  # of the labels before sampling
    matched: torch.Tensor  # (R, 4), the objects of positive anchors
    sampled: torch.Tensor  # (R,) 1 positive, 0 negative, -1 ignored or not drawn
    anchor_losses: torch.Tensor  # class losses of those that are drawn
    losses: dict[str, float]  # all of them, weights included
    rois: Instances | None = None  # proposal_boxes, gt_classes and, with objects, gt_boxes
    # Empty and None as `ForwardPass.scores`.
    roi_losses: dict[str, torch.Tensor] = field(default_factory=dict)  # each (N,)
    targets: torch.Tensor | None = None  # (N, 4), v of the paper; 0 for background
    predicted: torch.Tensor | None = None  # (N, 4), t of each RoI's class; 0 for background
    chances: torch.Tensor | None = None  # (N,), p of each RoI's class


def check_model(model: Any) -> None:
    """Stop at a model that is not made of the paper's parts; a `UserError` says what to use."""
    rpn = getattr(model, "proposal_generator", None)
    if getattr(model, "phase", "") == "fast_rcnn" or rpn is None:
        raise UserError(
            "this config builds a detector that is given its proposals, so there is no RPN to look "
            "at: set MODEL.LOAD_PROPOSALS False and MODEL.PAPER_RCNN.PHASE joint, or take "
            "frcnn://faster_rcnn_vgg16_voc.yaml"
        )
    for part, kind, fix in (
        (model, PaperRCNN, "MODEL.META_ARCHITECTURE PaperRCNN"),
        (getattr(model, "backbone", None), CaffeBackbone, "MODEL.BACKBONE.NAME VGG16 or ZF"),
        (rpn, PaperRPN, "MODEL.PROPOSAL_GENERATOR.NAME PaperRPN"),
    ):
        if not isinstance(part, kind):
            raise UserError(f"this config builds a {type(part).__name__}: set {fix}")
    if len(names := list(rpn.in_features)) > 1:
        raise UserError(f"MODEL.RPN.IN_FEATURES is {names}: name one feature map, such as conv5")


@torch.no_grad()
def forward_pass(model: Any, image: InspectedImage) -> ForwardPass:
    """Run a model in evaluation mode once.

    Raises:
        UserError: see :func:`check_model`.
    """
    check_model(model)
    rpn, outputs = model.proposal_generator, dict[str, torch.Tensor]()
    with ExitStack() as hooks:
        for name, module in _chain(model).items():
            hook = partial(_keep, outputs, name)
            hooks.enter_context(module.register_forward_hook(hook))
        images, features = model.features([image.item])
        anchors = rpn.anchor_generator([features[f] for f in rpn.in_features])
        logits, deltas = rpn.predict_anchors(rpn.head_inputs(features), anchors)
    sizes, boxes, cells = images.image_sizes, anchors[0].tensor, features[rpn.in_features[0]]
    (selection,) = rpn.selections(anchors, logits, deltas, sizes, count=True)
    proposals = Instances(
        sizes[0], proposal_boxes=Boxes(selection.boxes), objectness_logits=selection.scores
    )
    moved = rpn.box2box_transform.apply_deltas(deltas[0][0], boxes) if rpn.regress else boxes
    blocks = {
        name: [child for child, _ in model.backbone.get_submodule(name).named_children()]
        for name in model.backbone.block_names
    }
    pairs, rest = outputs.get("rpn_cls_score"), dict[str, Any]()
    if model.phase != "rpn":
        (found,) = model.detect(images, features, [proposals])
        height, width = image.item["height"], image.item["width"]
        found = to_original_size(found, height, width, corners=model.corner_boxes)
        rest = {"detections": found, **_classified(model.roi_heads, features, proposals)}
    return ForwardPass(
        image, images, features, _layers(model, outputs),
        {name: outputs[layers[-1]][0] for name, layers in blocks.items()},
        (*cells.shape[-2:], rpn.anchor_generator.num_anchors[0]), anchors[0],
        inside_image(boxes, image.size, rpn.anchor_boundary_thresh),
        None if pairs is None else pairs[0], logits[0][0].float(), deltas[0][0].float(), moved,
        selection, proposals, **rest,
    )  # fmt: skip


def _keep(outputs: dict[str, torch.Tensor], name: str, _m: Any, _i: Any, y: torch.Tensor) -> None:
    outputs[name] = y


def _chain(model: Any) -> dict[str, nn.Module]:
    """Return the layers of the backbone's blocks, then, if it has the paper's, the RPN's."""
    layers: dict[str, nn.Module] = {}
    for name in model.backbone.block_names:
        layers |= dict(model.backbone.get_submodule(name).named_children())
    own = dict(model.proposal_generator.rpn_head.named_children())
    paper = isinstance(own.get("rpn_cls_score"), nn.Conv2d)
    return layers | (own if paper else {})


def _layers(model: Any, outputs: dict[str, torch.Tensor]) -> list[Layer]:
    """Describe the chain; strides and receptive fields follow from windows and steps."""
    layers: list[Layer] = []
    stride, sees = 1, 1
    for name, module in _chain(model).items():
        if name.startswith(("relu", "bn")):
            continue
        window = [getattr(module, key, 0) for key in ("kernel_size", "stride", "dilation")]
        kernel, step, dilation = (v[0] if isinstance(v, tuple) else v for v in window)
        sees += max(kernel - 1, 0) * dilation * stride
        stride *= step or 1
        _, channels, rows, columns = outputs[name].shape
        values = list(module.parameters())
        total, trains = sum(p.numel() for p in values), any(p.requires_grad for p in values)
        size = (rows, columns)
        layers.append(Layer(name, kernel, step, channels, size, stride, sees, total, trains))
    return layers


def _predictions(heads: Any, features: dict[str, torch.Tensor], boxes: Boxes) -> Any:
    """Return scores and deltas of boxes by heads that look at a box once; None by a cascade."""
    if hasattr(heads, "predict"):  # R-FCN
        return heads.predict(features, [boxes])
    if isinstance(heads.box_predictor, nn.ModuleList):
        return None
    return heads.box_predictor(box_features(heads, features, [boxes]))


def _classified(heads: Any, features: dict[str, torch.Tensor], proposals: Instances) -> Any:
    predicted = _predictions(heads, features, proposals.proposal_boxes)
    if predicted is None:
        return {}
    own = heads.box_predictor
    (scores,), (boxes,) = (
        f(predicted, [proposals]) for f in (own.predict_probs, own.predict_boxes)
    )
    found, found_scores, classes, _ = detection_candidates(
        boxes, scores, proposals.image_size, own.test_score_thresh, own.topk_per_class
    )
    kept, _ = suppress(
        found, found_scores, classes, method=own.nms_method, thresh=own.test_nms_thresh,
        sigma=own.soft_nms_sigma, min_score=own.soft_nms_min_score,
    )  # fmt: skip
    return {"scores": scores, "counts": (len(found), len(kept))}


@torch.no_grad()
def training_step(model: Any, seen: ForwardPass, seed: int = 0) -> TrainingStep:
    """Label, sample and compute the losses as an iteration of joint training does.

    The samples are those of `inspection.sample_rois` and `BoxRules.sampled_labels`.
    """
    rpn, targets = model.proposal_generator, [seen.image.item["instances"].to(model.device)]
    outputs = [seen.anchors], [seen.logits[None]], [seen.deltas[None]]
    labels, matched = rpn.label_anchors(seen.anchors, targets[0])
    given = (seen.anchors, labels, seen.inside, targets[0].gt_boxes)
    all_anchors, all_labels, inside, objects = (x.to("cpu") for x in given)
    low, high = rpn.anchor_matcher.thresholds[1:3]
    with torch.random.fork_rng(), EventStorage():
        torch.manual_seed(seed)
        sampled, boxes = rpn.label_and_sample_anchors([seen.anchors], targets)
        losses, rest = rpn.losses(*outputs[:2], sampled, outputs[2], boxes), dict[str, Any]()
        if model.phase != "rpn":
            rpn.train()  # its numbers of proposals are those of training
            rpn.select_in_training = True
            proposals = rpn.predict_proposals(*outputs, seen.images.image_sizes)
            rpn.eval()
            own, rest = _head_step(model.roi_heads, seen, proposals, targets)
            losses |= own
    drawn = sampled[0] >= 0
    anchor_losses = F.binary_cross_entropy_with_logits(
        seen.logits[drawn], sampled[0][drawn].float(), reduction="none"
    )
    reasons = explain_matches(all_anchors, all_labels, inside, objects, (low, high))
    return TrainingStep(
        reasons, matched, sampled[0], anchor_losses,
        {name: float(loss) for name, loss in losses.items()}, **rest,
    )  # fmt: skip


def _head_step(
    heads: Any, seen: ForwardPass, proposals: list[Instances], targets: list[Instances]
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the losses of the head, and what else `TrainingStep` has of it."""
    if seen.scores is None:  # only a whole pass knows the losses of several heads in a row
        heads.train()
        heads.box_head.eval()  # without dropout
        rois, losses = heads(seen.images, seen.features, proposals, targets)
        heads.eval()
        return losses, {"rois": rois[0]}
    (rois,) = heads.training_rois(seen.features, proposals, targets)
    predicted, own = _predictions(heads, seen.features, rois.proposal_boxes), heads.box_predictor
    per_roi, classes = own.losses_per_roi(predicted, [rois]), rois.gt_classes
    wanted, given = (torch.zeros(len(rois), 4, device=classes.device) for _ in range(2))
    if rois.has("gt_boxes"):
        fg = (classes < own.num_classes).nonzero().squeeze(1)
        rows = classes[fg].clamp(max=own.target_statistics.num_classes - 1)  # 0 if agnostic
        pair = rois[fg].proposal_boxes.tensor, rois[fg].gt_boxes.tensor
        wanted[fg] = own.target_statistics.normalise(own.box2box_transform.get_deltas(*pair), rows)
        given[fg] = predicted[1].view(len(rois), -1, 4)[fg, rows].float()
    (chances,) = own.predict_probs(predicted, [rois])
    losses = {name: loss.sum() / max(len(rois), 1) for name, loss in per_roi.items()}
    return losses, {
        "rois": rois, "roi_losses": per_roi, "targets": wanted, "predicted": given,
        "chances": chances.gather(1, classes[:, None])[:, 0],
    }  # fmt: skip


@torch.no_grad()
def time_parts(model: Any, item: dict[str, Any]) -> list[float]:
    """Return seconds of the paper's parts in one pass: conv, proposal and region-wise."""
    times = [_now(model)]
    images, features = model.features([item])
    times.append(_now(model))
    proposals = model.propose(images, features)
    times.append(_now(model))
    if model.phase != "rpn":
        model.detect(images, features, proposals)
        times.append(_now(model))
    return [end - start for start, end in pairwise(times)]


def _now(model: Any) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()

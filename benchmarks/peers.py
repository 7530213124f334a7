"""Who the plugin is compared with: stock Detectron2 parts and torchvision's FasterRCNN, on VGG16.

Both get a plain torchvision-style VGG16 and the numbers of the config: image size, anchors,
proposals, RoIs, frozen blocks. What remains different is theirs: pooling rounds down (37x62 cells
of a 600x1000 image instead of 38x63), one RPN logit per anchor, no dropout. For measuring time they
pool RoIs as we do; for learning (:mod:`benchmarks.learn`) they keep their own rules there as well.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
import torchvision
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, Backbone, build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.vgg import make_layers

from benchmarks.weights import Arrange, Arranged, Place, copy_layers, roles
from frcnn_plugin.checkpoint.checkpointer import AtomicCheckpointer
from frcnn_plugin.errors import UserError

_CONVS = (2, 2, 3, 3, 3)


def plain_vgg16(channels: list[int], freeze_at: int) -> nn.Sequential:
    """Build torchvision's VGG16 up to the last ReLU, the first ``freeze_at`` blocks frozen."""
    words: list[Any] = []
    for width, convs in zip(channels, _CONVS, strict=True):
        words += [*[width] * convs, "M"]
    layers = make_layers(words[:-1])
    for layer in _convs(layers)[: sum(_CONVS[:freeze_at])]:
        layer.requires_grad_(False)
    return layers


def _convs(layers: nn.Module) -> list[nn.Conv2d]:
    return [m for m in layers.modules() if isinstance(m, nn.Conv2d)]


class PlainVGG16(Backbone):
    """:func:`plain_vgg16` as a backbone of Detectron2."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        channels = list(cfg.MODEL.PAPER_VGG.CHANNELS)
        self.layers = plain_vgg16(channels, cfg.MODEL.BACKBONE.FREEZE_AT)
        self._out_features = ["plain5"]
        self._out_feature_channels = {"plain5": channels[-1]}
        self._out_feature_strides = {"plain5": 16}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"plain5": self.layers(x)}


if "PlainVGG16" not in BACKBONE_REGISTRY:
    BACKBONE_REGISTRY.register(PlainVGG16)


class FloatPooler(nn.Module):
    """A pooler of Detectron2 in float32 under autocast: its operator has no bfloat16 on CPUs."""

    def __init__(self, pooler: nn.Module) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, features: list[torch.Tensor], boxes: list[Any]) -> torch.Tensor:
        with torch.autocast(features[0].device.type, enabled=False):
            return self.pooler([f.float() for f in features], boxes)


class PoolAdapter(nn.Module):
    """RoI max pooling where torchvision's detector expects its multi-level RoIAlign."""

    def __init__(self, size: int, scale: float) -> None:
        super().__init__()
        self.size, self.scale = size, scale

    def forward(self, x: dict[str, torch.Tensor], boxes: list[torch.Tensor], _: Any) -> Any:
        (features,) = x.values()
        with torch.autocast(features.device.type, enabled=False):
            return torchvision.ops.roi_pool(
                features.float(), [b.float() for b in boxes], self.size, self.scale
            )


def check_comparable(cfg: CfgNode, kind: str) -> None:
    """Stop where the peers would do other work than the config."""
    wanted = {
        "BACKBONE.NAME": "VGG16",
        "PROPOSAL_GENERATOR.NAME": "PaperRPN",
        "RPN.HEAD_NAME": "SoftmaxRPNHead",
        "ROI_HEADS.NAME": "CaffeROIHeads",
        "ROI_BOX_HEAD.POOLER_TYPE": "ROIPool",
    }
    for key, needed in wanted.items():
        value = functools.reduce(getattr, key.split("."), cfg.MODEL)
        if value != needed:
            raise UserError(
                f"MODEL.{key} is {value}, but {kind} can only be compared with {needed}: choose "
                "another config, or leave out the peers"
            )


def stock_cfg(cfg: CfgNode) -> CfgNode:
    """Return ``cfg`` with Detectron2's parts in place of the plugin's."""
    cfg = cfg.clone()
    cfg.defrost()
    model = cfg.MODEL
    model.META_ARCHITECTURE = "GeneralizedRCNN"
    model.BACKBONE.NAME = "PlainVGG16"
    model.PROPOSAL_GENERATOR.NAME = "RPN"
    model.ANCHOR_GENERATOR.NAME = "DefaultAnchorGenerator"
    model.RPN.HEAD_NAME, model.RPN.CONV_DIMS = "StandardRPNHead", [-1]
    model.RPN.IN_FEATURES = model.ROI_HEADS.IN_FEATURES = ["plain5"]
    model.ROI_HEADS.NAME = "StandardROIHeads"
    model.ROI_BOX_HEAD.NAME, model.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 2
    return cfg


def build_detectron2(cfg: CfgNode, bf16: bool) -> tuple[nn.Module, dict[str, Place]]:
    """Build Detectron2's GeneralizedRCNN of stock parts; return where it keeps its layers, too."""
    check_comparable(cfg, "detectron2")
    model = build_model(stock_cfg(cfg))
    rpn, heads = model.proposal_generator.rpn_head, model.roi_heads
    if bf16:
        heads.box_pooler = FloatPooler(heads.box_pooler)
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    # In Detectron2 sizes are the outer loop; in ours, as in the originals, ratios.
    sizes, ratios = len(anchors.SIZES[0]), len(anchors.ASPECT_RATIOS[0])
    order = [r * sizes + s for s, r in itertools.product(range(sizes), range(ratios))]
    return model, {
        **_conv_places(model.backbone.layers),
        **_rpn_places(rpn.conv, rpn.objectness_logits, rpn.anchor_deltas, order),
        "fc6": Place(heads.box_head.fc1),
        "fc7": Place(heads.box_head.fc2),
        "cls_score": Place(heads.box_predictor.cls_score),
        "bbox_pred": Place(heads.box_predictor.bbox_pred),
    }


def build_torchvision(cfg: CfgNode) -> tuple[nn.Module, dict[str, Place]]:
    """Build torchvision's FasterRCNN; return where it keeps its layers, too."""
    check_comparable(cfg, "torchvision")
    m = cfg.MODEL
    model = _torchvision(cfg)
    # The constructor takes nothing but RoIAlign.
    model.roi_heads.box_roi_pool = PoolAdapter(m.ROI_BOX_HEAD.POOLER_RESOLUTION, 1 / 16)
    return model, _torchvision_places(model, cfg)


def _torchvision(cfg: CfgNode, **resizing: Any) -> FasterRCNN:
    m = cfg.MODEL
    backbone = plain_vgg16(list(m.PAPER_VGG.CHANNELS), m.BACKBONE.FREEZE_AT)
    backbone.out_channels = m.PAPER_VGG.CHANNELS[-1]
    pool, width = m.ROI_BOX_HEAD.POOLER_RESOLUTION, m.ROI_BOX_HEAD.FC_DIM
    classes = m.ROI_HEADS.NUM_CLASSES
    return FasterRCNN(
        backbone,
        min_size=cfg.INPUT.MIN_SIZE_TEST,
        max_size=cfg.INPUT.MAX_SIZE_TEST,
        **resizing,
        size_divisible=1,  # no padding, as in the others
        image_mean=list(m.PIXEL_MEAN),
        image_std=list(m.PIXEL_STD),
        rpn_anchor_generator=AnchorGenerator(
            (tuple(m.ANCHOR_GENERATOR.SIZES[0]),), (tuple(m.ANCHOR_GENERATOR.ASPECT_RATIOS[0]),)
        ),
        rpn_pre_nms_top_n_train=m.RPN.PRE_NMS_TOPK_TRAIN,
        rpn_pre_nms_top_n_test=m.RPN.PRE_NMS_TOPK_TEST,
        rpn_post_nms_top_n_train=m.RPN.POST_NMS_TOPK_TRAIN,
        rpn_post_nms_top_n_test=m.RPN.POST_NMS_TOPK_TEST,
        rpn_nms_thresh=m.RPN.NMS_THRESH,
        rpn_bg_iou_thresh=m.RPN.IOU_THRESHOLDS[0],
        rpn_fg_iou_thresh=m.RPN.IOU_THRESHOLDS[-1],
        rpn_batch_size_per_image=m.RPN.BATCH_SIZE_PER_IMAGE,
        rpn_positive_fraction=m.RPN.POSITIVE_FRACTION,
        box_head=TwoMLPHead(m.PAPER_VGG.CHANNELS[-1] * pool**2, width),
        box_predictor=FastRCNNPredictor(width, classes + 1),
        box_score_thresh=m.ROI_HEADS.SCORE_THRESH_TEST,
        box_nms_thresh=m.ROI_HEADS.NMS_THRESH_TEST,
        box_detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
        box_fg_iou_thresh=m.ROI_HEADS.IOU_THRESHOLDS[-1],
        box_bg_iou_thresh=m.ROI_HEADS.IOU_THRESHOLDS[-1],
        box_batch_size_per_image=m.ROI_HEADS.BATCH_SIZE_PER_IMAGE,
        box_positive_fraction=m.ROI_HEADS.POSITIVE_FRACTION,
        bbox_reg_weights=tuple(m.ROI_BOX_HEAD.BBOX_REG_WEIGHTS),
    ).to(m.DEVICE)


def _torchvision_places(model: FasterRCNN, cfg: CfgNode) -> dict[str, Place]:
    rpn, heads = model.rpn.head, model.roi_heads
    classes, width = cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_BOX_HEAD.FC_DIM
    anchors = model.rpn.anchor_generator.num_anchors_per_location()[0]

    def background_first(weight: torch.Tensor, bias: torch.Tensor) -> Arranged:
        return weight.roll(1, 0), bias.roll(1, 0)

    def with_background(weight: torch.Tensor, bias: torch.Tensor) -> Arranged:
        # Boxes of the background are predicted, and dropped.
        return torch.cat((torch.zeros_like(weight[:4]), weight)), torch.cat((bias[:4] * 0, bias))

    return {
        **_conv_places(model.backbone),
        **_rpn_places(rpn.conv[0][0], rpn.cls_logits, rpn.bbox_pred, list(range(anchors))),
        "fc6": Place(heads.box_head.fc6),
        "fc7": Place(heads.box_head.fc7),
        "cls_score": Place(heads.box_predictor.cls_score, None, background_first),
        "bbox_pred": Place(
            heads.box_predictor.bbox_pred, (4 * classes, width), with_background
        ),
    }  # fmt: skip


class TorchvisionRCNN(nn.Module):
    """torchvision's FasterRCNN with its RoIAlign, and Detectron2's inputs and outputs."""

    @configurable
    def __init__(self, *, detector: FasterRCNN) -> None:
        """Wrap a detector that does not resize images."""
        super().__init__()
        self.detector = detector

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Build the detector with the numbers of ``cfg``."""
        # Images come from Detectron2's mappers, which have resized them.
        return {"detector": _torchvision(cfg, _skip_resize=True)}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return losses in training, else instances in original-image pixels."""
        images = [x["image"].to(self.device).float() for x in batched_inputs]
        if self.training:
            truths = [x["instances"].to(self.device) for x in batched_inputs]
            return self.detector(
                images,
                [{"boxes": t.gt_boxes.tensor, "labels": t.gt_classes + 1} for t in truths],
            )
        results = []
        for x, image, found in zip(batched_inputs, images, self.detector(images), strict=True):
            instances = Instances(
                tuple(image.shape[-2:]),
                pred_boxes=Boxes(found["boxes"]),
                scores=found["scores"],
                pred_classes=found["labels"] - 1,
            )
            height, width = x.get("height", image.shape[-2]), x.get("width", image.shape[-1])
            results.append({"instances": detector_postprocess(instances, height, width)})
        return results


if "TorchvisionRCNN" not in META_ARCH_REGISTRY:
    META_ARCH_REGISTRY.register(TorchvisionRCNN)


# What else stock Detectron2 does by default, and a faithful config does not.
STOCK_RULES = {
    "MODEL.RPN.BOUNDARY_THRESH": -1,
    "MODEL.RPN.SMOOTH_L1_BETA": 0.0,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": 1.0,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.IOU_LABELS": [0, 1],
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "INPUT.RANDOM_FLIP": "horizontal",
    "DATALOADER.MIRRORED_COPIES": False,
    "SOLVER.BIAS_LR_FACTOR": 1.0,
    "SOLVER.CAFFE_MOMENTUM": False,
}


def as_peer(cfg: CfgNode, kind: str) -> CfgNode:
    """Return the config of a peer that is trained on the data and the budget of ``cfg``.

    Each keeps its own rules: matching, losses, RoIAlign, flips at random, one learning rate.
    Numbers are those of ``cfg``: sizes, anchors, proposals, RoIs per image, widths, schedule.
    """
    check_comparable(cfg, kind)
    cfg = stock_cfg(cfg)
    cfg.merge_from_list([word for pair in STOCK_RULES.items() for word in pair])
    cfg.MODEL.WEIGHTS_MAY_LACK = []
    if kind == "torchvision":
        cfg.MODEL.META_ARCHITECTURE = "TorchvisionRCNN"
    return cfg


def starting_weights(cfg: CfgNode, kind: str) -> dict[str, torch.Tensor]:
    """Return what a peer starts with: the layers that ``cfg`` has from ``MODEL.WEIGHTS``.

    These are the convolutions of VGG16, and fc6 and fc7 unless ``MODEL.WEIGHTS_MAY_LACK`` lets them
    start at random. Everything else starts as the peer itself does.
    """
    ours = build_model(cfg)
    AtomicCheckpointer(ours, cfg=cfg).load(cfg.MODEL.WEIGHTS)
    model, places = build_peer(cfg, kind)
    random = "roi_heads.box_head" in cfg.MODEL.WEIGHTS_MAY_LACK
    places = {
        role: place
        for role, place in places.items()
        if role.startswith("conv") or (role in ("fc6", "fc7") and not random)
    }
    copy_layers(roles(ours), places)
    layers = {id(place.layer) for place in places.values()}
    prefix = "detector." if kind == "torchvision" else ""
    return {
        f"{prefix}{name}.{key}": value
        for name, layer in model.named_modules()
        if id(layer) in layers
        for key, value in layer.state_dict().items()
    }


def build_peer(cfg: CfgNode, kind: str, bf16: bool = False) -> tuple[nn.Module, dict[str, Place]]:
    """Build a peer whose time is measured; return where it keeps its layers, too."""
    return build_torchvision(cfg) if kind == "torchvision" else build_detectron2(cfg, bf16)


def _conv_places(backbone: nn.Module) -> dict[str, Place]:
    names = [f"conv{i}_{j}" for i, n in enumerate(_CONVS, 1) for j in range(1, n + 1)]
    return {name: Place(conv) for name, conv in zip(names, _convs(backbone), strict=True)}


def _rpn_places(
    conv: nn.Conv2d, logits: nn.Conv2d, deltas: nn.Conv2d, order: list[int]
) -> dict[str, Place]:
    """Place our RPN head in one with one logit per anchor, and anchors in another order.

    The order is, for each of their A anchors, its number in ours.
    """
    count, index = len(order), torch.tensor(order)

    def difference(weight: torch.Tensor, bias: torch.Tensor) -> Arranged:
        return ((weight[count:] - weight[:count])[index], (bias[count:] - bias[:count])[index])

    def permute(weight: torch.Tensor, bias: torch.Tensor) -> Arranged:
        by_anchor = weight.view(count, 4, *weight.shape[1:])[index]
        return by_anchor.reshape(weight.shape), bias.view(count, 4)[index].reshape(-1)

    def place(layer: nn.Conv2d, channels: int, arrange: Arrange) -> Place:
        return Place(layer, (channels, *layer.weight.shape[1:]), arrange)

    return {
        "rpn_conv": Place(conv),
        "rpn_cls_score": place(logits, 2 * count, difference),
        "rpn_bbox_pred": place(deltas, 4 * count, permute),
    }

"""What a model does with one image, part by part.

`BoxRules` is the part of a config that has no weights: anchors, their labels, the cells that are
pooled. It holds no network, so it is ready within a second whatever the backbone. What needs
weights takes a model. Everything is computed by the model's own methods.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_roi_heads
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from ..checkpoint.checkpointer import names_detector
from ..checkpoint.read import local_file, read_weights
from ..data.loading.image_reader import read_bgr
from ..errors import UserError
from ..modeling import PaperRCNN
from ..modeling.backbone.caffe_backbone import backbone_feature_sizes
from ..modeling.box_ops import inside_image
from ..modeling.proposal_generator.rpn import PaperRPN
from ..modeling.roi_heads.poolers import InclusiveROIPooler
from .drawings.palette import ImageArray

Size = tuple[int, int]  # height and width
FloatArray = npt.NDArray[np.float64]


class InspectedImage:
    """An image as it is and as the network sees it, and the way back.

    Attributes:
        bgr: (H, W, 3) uint8.
        record: its entry of the data set.
        name: its id.
        item: what the mapper made of it.
        size: of the network input.
        scale: (4,) factors from network pixels to pixels of the original image, for XYXY.
    """

    def __init__(self, record: dict[str, Any], mapper: Any) -> None:
        """Read the image.

        Raises:
            UserError: the file is missing, no image, or of another size than the data set says.
        """
        self.bgr: ImageArray = read_bgr(record["file_name"])
        self.record, self.name = record, str(record["image_id"])
        self.item: dict[str, Any] = mapper(record)
        height, width = (int(side) for side in self.item["image"].shape[-2:])
        self.size: Size = (height, width)
        self.scale = np.array([self.bgr.shape[1] / width, self.bgr.shape[0] / height] * 2)

    def to_image(self, boxes: torch.Tensor) -> FloatArray:
        """Scale boxes, (N, 4), from network pixels to pixels of the original image."""
        scaled: FloatArray = boxes.detach().double().numpy() * self.scale
        return scaled

    def cell(self, stride: int) -> tuple[float, float]:
        """Return width and height of a cell of `stride` network pixels, original image's pixels."""
        width, height = (float(side) for side in stride * self.scale[:2])
        return width, height

    @property
    def resized(self) -> str:
        """One line on the size of the network input."""
        height, width = self.size
        return (
            f"network input {width} x {height} pixels, {1 / self.scale[0]:.3g} times the "
            f"image's {self.bgr.shape[1]} x {self.bgr.shape[0]}"
        )


class BoxRules:
    """Anchors, labels and pooled cells of a config, for network inputs of any size."""

    def __init__(self, cfg: CfgNode) -> None:
        """Read a config; its device does not matter."""
        self.cfg = cfg
        with torch.device("meta"):  # shapes without memory
            self._backbone = build_backbone(cfg)
        self._shapes = self._backbone.output_shape()

    @cached_property
    def rpn(self) -> PaperRPN:
        """The RPN with random weights, which nothing here uses.

        Raises:
            UserError: the config has another one, or several feature maps.
        """
        rpn = build_proposal_generator(self.cfg, self._shapes)
        if isinstance(rpn, PaperRPN) and len(rpn.in_features) == 1:
            return rpn
        raise UserError(
            f"anchors are drawn for PaperRPN on one feature map; this config has "
            f"MODEL.PROPOSAL_GENERATOR.NAME {self.cfg.MODEL.PROPOSAL_GENERATOR.NAME} and "
            f"MODEL.RPN.IN_FEATURES {list(self.cfg.MODEL.RPN.IN_FEATURES)}"
        )

    @property
    def stride(self) -> int:
        """Side of a cell of the RPN's feature map, network pixels."""
        return int(self.rpn.anchor_generator.strides[0])

    def grid(self, image_size: Size) -> tuple[int, int, int]:
        """Return rows and columns of cells of the RPN, and anchors per cell."""
        rows, columns = self.feature_size(self.rpn.in_features[0], image_size)
        return rows, columns, self.rpn.anchor_generator.num_anchors[0]

    def anchors(self, image_size: Size) -> Boxes:
        """Return all anchors of an image in network pixels, (R, 4), by row, column, shape."""
        rows, columns, _ = self.grid(image_size)
        (anchors,) = self.rpn.anchor_generator([torch.empty(1, 1, rows, columns)])
        return anchors

    def inside(self, anchors: Boxes, image_size: Size) -> torch.Tensor:
        """Return which anchors are trained on, (R,) bool."""
        return inside_image(anchors.tensor, image_size, self.rpn.anchor_boundary_thresh)

    def sampled_labels(self, anchors: Boxes, instances: Instances, seed: int) -> torch.Tensor:
        """Label one mini-batch, (R,) int8: 1 positive, 0 negative, -1 ignored or not drawn."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            (labels,), _ = self.rpn.label_and_sample_anchors([anchors], [instances])
        return labels

    @cached_property
    def heads(self) -> Any:
        """The heads without memory for their weights, for their RoI max pooling.

        Raises:
            UserError: they have another pooling, or several feature maps.
        """
        with torch.device("meta"):  # fc6 alone would take 400 MB
            heads = build_roi_heads(self.cfg, self._shapes)
        kind, names = self.cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE, self.cfg.MODEL.ROI_HEADS.IN_FEATURES
        pooler = getattr(heads, "box_pooler", None)
        if not isinstance(pooler, InclusiveROIPooler) or len(names) != 1:
            raise UserError(
                f"cells are drawn for RoI max pooling on one feature map; this config has "
                f"MODEL.ROI_HEADS.NAME {self.cfg.MODEL.ROI_HEADS.NAME}, MODEL.PAPER_RCNN.PYRAMID "
                f"{self.cfg.MODEL.PAPER_RCNN.PYRAMID}, MODEL.ROI_BOX_HEAD.POOLER_TYPE {kind} and "
                f"MODEL.ROI_HEADS.IN_FEATURES {list(names)}"
            )
        return heads

    @property
    def pooled_feature(self) -> tuple[str, int]:
        """Name of the feature map that is pooled, and its stride in network pixels."""
        (name,) = self.heads.box_in_features
        return name, self._shapes[name].stride

    def feature_size(self, name: str, image_size: Size) -> Size:
        """Return the cells of a feature map, for a network input's size."""
        channels = len(self.cfg.MODEL.PIXEL_MEAN)
        return backbone_feature_sizes(self._backbone, [name], channels)(*image_size)[0]


def has_rpn_weights(cfg: CfgNode) -> bool:
    """Return whether ``MODEL.WEIGHTS`` is a file with an RPN's weights.

    Training starts from files of a backbone without one. A file that cannot be read counts as one
    that has an RPN: loading it says what is wrong.
    """
    if not names_detector(cfg):
        return False
    try:
        names = read_weights(local_file(cfg.MODEL.WEIGHTS)).state_dict
    except (OSError, UserError):
        return True
    return any(name.startswith("proposal_generator.") for name in names)


def with_training_proposals(cfg: CfgNode) -> CfgNode:
    """Return the config of a joint model that selects the proposals the detector learns on.

    In four-step training those are the cached ones of stage 1 or 3, so their numbers count.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.PAPER_RCNN.PHASE = "joint"
    if cfg.FOUR_STEP.ENABLED:
        cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.FOUR_STEP.PRE_NMS_TOPK
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.FOUR_STEP.POST_NMS_TOPK
    return cfg


@torch.no_grad()
def propose(model: Any, item: dict[str, Any]) -> Instances:
    """Propose as at test time, best first.

    Return ``proposal_boxes`` in original-image pixels, ``objectness_logits``; on the CPU.
    """
    images, features = PaperRCNN.features(model, [item])
    proposals = PaperRCNN.propose(model, images, features)
    return detector_postprocess(proposals[0].to("cpu"), item["height"], item["width"])


@torch.no_grad()
def detect(model: Any, item: dict[str, Any]) -> Instances:
    """Detect, best first: ``pred_boxes`` in original-image pixels, ``scores``, classes; CPU."""
    instances: Instances = model([item])[0]["instances"].to("cpu")
    return instances[instances.scores.argsort(descending=True, stable=True)]


@torch.no_grad()
def sample_rois(model: Any, item: dict[str, Any], seed: int) -> Instances:
    """Sample the RoIs that the head of a joint model would be trained on.

    Return ``proposal_boxes`` in network-input pixels, ``gt_classes`` (background: the number of
    classes); on the CPU.
    """
    images, features = PaperRCNN.features(model, [item])
    targets = [item["instances"].to(images.tensor.device)]
    with torch.random.fork_rng(), EventStorage():
        torch.manual_seed(seed)
        model.proposal_generator.train()  # its numbers of proposals are those of training
        proposals, _ = model.proposal_generator(images, features, targets)
        model.proposal_generator.eval()
        heads = model.roi_heads
        if hasattr(heads, "training_rois"):  # it knows the hard ones, by the features
            (sampled,) = heads.training_rois(features, proposals, targets)
        else:
            (sampled,) = heads.label_and_sample_proposals(proposals, targets)
    return sampled.to("cpu")

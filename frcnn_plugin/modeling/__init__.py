"""Networks and rules of the paper. Importing this package registers every component."""

from .anchor_generator import CaffeAnchorGenerator
from .backbone.caffe_backbone import CaffeBackbone, backbone_feature_sizes
from .backbone.hyper_features import HyperVGG16
from .backbone.vgg import VGG16, LastLevelsMaxPool, build_vgg16_fpn_backbone
from .backbone.zf import ZF, WithinChannelLRN
from .box_ops import (
    clip_boxes,
    clip_inclusive,
    corner_factors,
    inside_image,
    mirror,
    scale_inclusive,
    whole_pixels,
)
from .box_regression import CaffeBox2BoxTransform, box_loss
from .image_pyramid import PyramidPooler
from .image_size import ScaledImageSize, image_scale, resize_scale
from .matcher import AsyncMatcher
from .meta_arch import PaperRCNN
from .proposal_generator.dense_windows import DenseWindows
from .proposal_generator.hyper_rpn import HyperRPN, HyperRPNHead
from .proposal_generator.rpn import PaperRPN, rpn_losses
from .proposal_generator.rpn_head import SoftmaxRPNHead
from .proposal_generator.selection import Selection, select_proposals
from .roi_heads.box_head import FC6FC7Head, HyperBoxHead, UnscaledDropout
from .roi_heads.cascade import CaffeCascadeROIHeads
from .roi_heads.detections import detection_candidates, select_detections, suppress
from .roi_heads.fast_rcnn import PaperFastRCNNOutputLayers
from .roi_heads.poolers import InclusiveROIPooler, build_pooler
from .roi_heads.rfcn import RFCNConvs, RFCNHeads, RFCNOutputLayers, build_ps_pooler
from .roi_heads.roi_features import box_features, classify, detect_with_features
from .roi_heads.roi_heads import CaffeROIHeads
from .roi_heads.sampling import HardExamples
from .target_statistics import (
    NormalisedBox2BoxTransform,
    TargetStatistics,
    fold_target_statistics,
)

__all__ = [
    "VGG16",
    "ZF",
    "AsyncMatcher",
    "CaffeAnchorGenerator",
    "CaffeBackbone",
    "CaffeBox2BoxTransform",
    "CaffeCascadeROIHeads",
    "CaffeROIHeads",
    "DenseWindows",
    "FC6FC7Head",
    "HardExamples",
    "HyperBoxHead",
    "HyperRPN",
    "HyperRPNHead",
    "HyperVGG16",
    "InclusiveROIPooler",
    "LastLevelsMaxPool",
    "NormalisedBox2BoxTransform",
    "PaperFastRCNNOutputLayers",
    "PaperRCNN",
    "PaperRPN",
    "PyramidPooler",
    "RFCNConvs",
    "RFCNHeads",
    "RFCNOutputLayers",
    "ScaledImageSize",
    "Selection",
    "SoftmaxRPNHead",
    "TargetStatistics",
    "UnscaledDropout",
    "WithinChannelLRN",
    "backbone_feature_sizes",
    "box_features",
    "box_loss",
    "build_pooler",
    "build_ps_pooler",
    "build_vgg16_fpn_backbone",
    "classify",
    "clip_boxes",
    "clip_inclusive",
    "corner_factors",
    "detect_with_features",
    "detection_candidates",
    "fold_target_statistics",
    "image_scale",
    "inside_image",
    "mirror",
    "resize_scale",
    "rpn_losses",
    "scale_inclusive",
    "select_detections",
    "select_proposals",
    "suppress",
    "whole_pixels",
]

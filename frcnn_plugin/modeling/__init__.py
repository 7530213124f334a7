"""Networks and rules of the paper. Importing this package registers every component."""

from .anchor_generator import CaffeAnchorGenerator
from .box_head import FC6FC7Head, UnscaledDropout
from .box_predictor import PaperFastRCNNOutputLayers
from .box_regression import CaffeBox2BoxTransform
from .feature_sizes import backbone_feature_sizes
from .image_size import ScaledImageSize
from .meta_arch import PaperRCNN
from .proposals import select_proposals
from .roi_heads import CaffeROIHeads, InclusiveROIPooler
from .rpn import PaperRPN
from .rpn_head import SoftmaxRPNHead
from .suppression import prefix_nms
from .target_statistics import TargetStatistics
from .vgg import VGG16
from .zf import ZF, WithinChannelLRN

__all__ = [
    "VGG16",
    "ZF",
    "CaffeAnchorGenerator",
    "CaffeBox2BoxTransform",
    "CaffeROIHeads",
    "FC6FC7Head",
    "InclusiveROIPooler",
    "PaperFastRCNNOutputLayers",
    "PaperRCNN",
    "PaperRPN",
    "ScaledImageSize",
    "SoftmaxRPNHead",
    "TargetStatistics",
    "UnscaledDropout",
    "WithinChannelLRN",
    "backbone_feature_sizes",
    "prefix_nms",
    "select_proposals",
]

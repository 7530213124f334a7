"""Networks and rules of the paper. Importing this package registers every component."""

from .anchor_generator import CaffeAnchorGenerator
from .backbone.caffe_backbone import backbone_feature_sizes
from .backbone.vgg import VGG16
from .backbone.zf import ZF, WithinChannelLRN
from .box_regression import CaffeBox2BoxTransform
from .image_size import ScaledImageSize
from .meta_arch import PaperRCNN
from .proposal_generator.rpn import PaperRPN
from .proposal_generator.rpn_head import SoftmaxRPNHead
from .proposal_generator.selection import select_proposals
from .roi_heads.box_head import FC6FC7Head, UnscaledDropout
from .roi_heads.fast_rcnn import PaperFastRCNNOutputLayers
from .roi_heads.poolers import InclusiveROIPooler
from .roi_heads.roi_heads import CaffeROIHeads
from .target_statistics import TargetStatistics

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
    "select_proposals",
]

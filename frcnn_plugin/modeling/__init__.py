"""Networks and rules of the paper. Importing this package registers every component."""

from .anchor_generator import CaffeAnchorGenerator
from .box_head import FC6FC7Head, UnscaledDropout
from .box_predictor import PaperFastRCNNOutputLayers
from .box_regression import CaffeBox2BoxTransform
from .meta_arch import PaperRCNN
from .proposals import ScaledImageSize, prefix_nms, select_proposals
from .roi_heads import CaffeROIHeads, InclusiveROIPooler
from .rpn import PaperRPN, SoftmaxRPNHead
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
    "UnscaledDropout",
    "WithinChannelLRN",
    "prefix_nms",
    "select_proposals",
]

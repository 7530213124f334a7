"""Operators: a tensor in, a tensor out."""

from .conv3x3 import Conv3x3
from .large_linear import LargeLinear
from .nms import float32_threshold, prefix_nms, soft_nms
from .ps_roi_pool import PSRoIPool, ps_roi_pool
from .roi_max_pool import CaffeRoIPool, roi_max_pool
from .roi_warp import PrROIPool, ROIAlignGrad, ROIWarp
from .winograd import Winograd

__all__ = [
    "CaffeRoIPool",
    "Conv3x3",
    "LargeLinear",
    "PSRoIPool",
    "PrROIPool",
    "ROIAlignGrad",
    "ROIWarp",
    "Winograd",
    "float32_threshold",
    "prefix_nms",
    "ps_roi_pool",
    "roi_max_pool",
    "soft_nms",
]

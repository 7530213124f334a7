"""RoI max pooling on Caffe's cells, and the heads that use it."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import nn

from .box_predictor import PaperFastRCNNOutputLayers


class InclusiveROIPooler(nn.Module):
    """Caffe's RoI max pooling for continuous boxes.

    The one place where the plugin leaves continuous coordinates: Caffe rounds *inclusive* corners
    to cells, so (0, 0, 1, 1) is subtracted first. Given inclusive corners, torchvision's operator
    equals Caffe's bit for bit: corners round half away from zero, empty bins are 0. Continuous
    corners would move about a quarter of all RoIs to another cell (check E15f).

    Source: Caffe roi_pooling_layer.cu.
    """

    def __init__(self, pooler: ROIPooler) -> None:
        """Wrap a host pooler of type "ROIPool"."""
        super().__init__()
        self.pooler = pooler

    def forward(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Pool.

        Args:
            features: feature maps, each (N, C, H, W).
            boxes: per image, continuous XYXY in network-input pixels.

        Returns:
            (R, C, output size, output size), R boxes over all images, in the features' dtype.
        """
        dtype = features[0].dtype
        inclusive = [Boxes(b.tensor - b.tensor.new_tensor([0.0, 0.0, 1.0, 1.0])) for b in boxes]
        # The operator has no reduced-precision kernel on the CPU, and coordinates need float32.
        with torch.autocast(features[0].device.type, enabled=False):
            return self.pooler([f.float() for f in features], inclusive).to(dtype)


@ROI_HEADS_REGISTRY.register()
class CaffeROIHeads(StandardROIHeads):
    """The host's box head with Caffe's RoI pooling and the originals' decoding.

    Sampling is the host's: ``IOU_THRESHOLDS [0.1, 0.5]`` with ``IOU_LABELS [-1, 0, 1]`` is the
    paper's background window [0.1, 0.5), ``[0.5]`` with ``[0, 1]`` py-faster-rcnn's [0, 0.5);
    when too few boxes qualify, fewer are used, none twice.

    ``POOLER_TYPE`` "ROIPool" is the original; the host's other types work as in the host.
    """

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        ret = super()._init_box_head(cfg, input_shape)
        if cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "ROIPool":
            ret["box_pooler"] = InclusiveROIPooler(ret["box_pooler"])
        ret["box_predictor"] = PaperFastRCNNOutputLayers(cfg, ret["box_head"].output_shape)
        return ret

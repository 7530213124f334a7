"""RoI max pooling on Caffe's cells."""

from __future__ import annotations

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import nn
from torch.nn import functional as F

from ...layers.roi_max_pool import CaffeRoIPool, roi_max_pool


class InclusiveROIPooler(nn.Module):
    """Caffe's RoI max pooling for continuous boxes.

    Only here does the plugin leave continuous coordinates: Caffe rounds *inclusive* corners to
    cells, so (0, 0, 1, 1) is subtracted first. Given inclusive corners, torchvision's operator
    equals Caffe's bit for bit: corners round half away from zero, empty bins are 0. Continuous
    corners would move about a quarter of all RoIs to another cell (example E15f). The gradient is
    Caffe's too, see :class:`~frcnn_plugin.layers.CaffeRoIPool`.

    Source: Caffe roi_pooling_layer.cu.
    """

    def __init__(self, pooler: ROIPooler) -> None:
        """Wrap a pooler of Detectron2 that has the type "ROIPool"; its operators are replaced."""
        super().__init__()
        self.pooler = pooler
        operators = [
            CaffeRoIPool(pooler.output_size[0], p.spatial_scale) for p in pooler.level_poolers
        ]
        pooler.level_poolers = nn.ModuleList(operators)

    def forward(self, features: list[torch.Tensor], boxes: list[Boxes]) -> torch.Tensor:
        """Pool feature maps, each (N, C, H, W), at the boxes of each image.

        Args:
            features: feature maps.
            boxes: continuous XYXY in network-input pixels; R over all images.

        Returns:
            (R, C, output size, output size), in the features' dtype.
        """
        dtype = features[0].dtype
        inclusive = [torch.cat([b.tensor[:, :2], b.tensor[:, 2:] - 1], dim=1) for b in boxes]
        # The operator has no reduced-precision kernel on the CPU, and coordinates need float32.
        with torch.autocast(features[0].device.type, enabled=False):
            features = [f.float() for f in features]
            if len(features) > 1:
                return self.pooler(features, [Boxes(b) for b in inclusive]).to(dtype)
            return self._pool(features[0], inclusive).to(dtype)

    def _pool(self, features: torch.Tensor, rois: list[torch.Tensor]) -> torch.Tensor:
        """Pool from one feature map, as Detectron2's pooler does from several."""
        (operator,) = self.pooler.level_poolers
        needs_grad = torch.is_grad_enabled() and features.requires_grad
        if not (features.is_cuda or needs_grad or torch.jit.is_tracing()):
            return roi_max_pool(features, rois, self.pooler.output_size[0], operator.spatial_scale)
        # Not by Detectron2's convert_boxes_to_pooler_format, which waits for a GPU to count boxes.
        numbered = [F.pad(b, (1, 0), value=float(i)) for i, b in enumerate(rois)]
        return operator(features, torch.cat(numbered))

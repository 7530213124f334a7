"""The heads of Fast R-CNN on the paper's terms."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads

from ..matcher import AsyncMatcher
from .fast_rcnn import PaperFastRCNNOutputLayers
from .poolers import InclusiveROIPooler


@ROI_HEADS_REGISTRY.register()
class CaffeROIHeads(StandardROIHeads):
    """Detectron2's box head with Caffe's RoI pooling and the originals' decoding.

    Sampling is Detectron2's: ``IOU_THRESHOLDS [0.1, 0.5]`` with ``IOU_LABELS [-1, 0, 1]`` is the
    paper's background window [0.1, 0.5), ``[0.5]`` with ``[0, 1]`` py-faster-rcnn's [0, 0.5);
    when too few boxes qualify, fewer are used, none twice.

    ``POOLER_TYPE`` "ROIPool" is the original; Detectron2's other types work as they do there.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Read Detectron2's arguments, with our matcher."""
        ret = super().from_config(cfg, input_shape)
        heads = cfg.MODEL.ROI_HEADS
        # Without low-quality matches: only the RPN gives each object its best box (example E9);
        # proposal_target_layer.py labels a RoI by its IoU alone.
        ret["proposal_matcher"] = AsyncMatcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS)
        return ret

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        ret = super()._init_box_head(cfg, input_shape)
        # RoIAlign and others interpolate between cells, for which continuous corners are right.
        if cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE == "ROIPool":
            ret["box_pooler"] = InclusiveROIPooler(ret["box_pooler"])
        ret["box_predictor"] = PaperFastRCNNOutputLayers(cfg, ret["box_head"].output_shape)
        return ret

"""RoI pooling: a table of operators, and the way from continuous boxes to each operator's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import nn
from torch.nn import functional as F
from torchvision.ops import RoIPool

from ...errors import UserError
from ...layers.roi_max_pool import CaffeRoIPool, roi_max_pool
from ...layers.roi_warp import PrROIPool, ROIAlignGrad, ROIWarp
from ..box_ops import whole_pixels


class Operator(NamedTuple):
    """How RoIs of one feature map are pooled.

    Attributes:
        build: takes the output size P and the cells per pixel; returns a module that pools maps
            (N, C, H, W) at RoIs, (R, 5) float32 of image index and XYXY in pixels, to (R, C, P, P).
        inclusive: whether its corners are inclusive, as Caffe's are, or continuous.
        box_gradient: whether the boxes have a gradient, too.
    """

    build: Callable[[int, float], nn.Module]
    inclusive: bool
    box_gradient: bool = False


# MODEL.ROI_*_HEAD.POOLER_TYPE -> operator; all other types are Detectron2's.
OPERATORS: dict[str, Operator] = {
    "ROIPool": Operator(CaffeRoIPool, inclusive=True),
    "ROIWarp": Operator(ROIWarp, inclusive=True, box_gradient=True),
    "PrROIPool": Operator(PrROIPool, inclusive=False, box_gradient=True),
    "ROIAlignGrad": Operator(ROIAlignGrad, inclusive=False, box_gradient=True),
}


def build_pooler(
    pooler_type: str,
    resolution: int,
    scales: Sequence[float],
    sampling_ratio: int = 0,
    supersampling: int = 1,
) -> nn.Module:
    """Build the pooler of a head.

    Args:
        pooler_type: a name in :data:`OPERATORS`, or one of Detectron2's.
        resolution: output size P, bins per side.
        scales: cells per pixel of each feature map, falling powers of two.
        sampling_ratio: of Detectron2's RoIAlign.
        supersampling: see :func:`own_pooler`.

    Returns:
        a module that takes a list of feature maps and a list of Boxes, continuous XYXY in
        network-input pixels, and returns (R, C, P, P) for the R boxes of all images.
    """
    kind = "ROIPool" if pooler_type in OPERATORS else pooler_type
    pooler = ROIPooler(resolution, tuple(scales), sampling_ratio, kind)
    return own_pooler(pooler, pooler_type, supersampling)


def own_pooler(pooler: nn.Module, pooler_type: str, supersampling: int = 1) -> nn.Module:
    """Give a pooler of Detectron2 the operators of a type; others' stay as they are.

    Args:
        pooler: of any project.
        pooler_type: as for :func:`build_pooler`.
        supersampling: bins per side that are pooled for each that is returned, their maximum.

    Raises:
        UserError: supersampling is for types with a gradient for boxes.
    """
    operator = OPERATORS.get(pooler_type)
    if supersampling > 1 and not (operator and operator.box_gradient):
        raise UserError(
            f"MODEL.ROI_BOX_HEAD.POOLER_SUPERSAMPLING is {supersampling}, but POOLER_TYPE is "
            f"{pooler_type}: set it to 1, or POOLER_TYPE to one of {', '.join(with_box_gradient())}"
        )
    if not isinstance(pooler, ROIPooler) or operator is None:
        return pooler
    if pooler_type == "ROIPool":
        return InclusiveROIPooler(pooler)
    return OperatorPooler(pooler, operator, supersampling)


def with_box_gradient() -> list[str]:
    """Name the types that have a gradient for boxes."""
    return [name for name, operator in OPERATORS.items() if operator.box_gradient]


def with_stock_poolers(cfg: CfgNode) -> CfgNode:
    """Return a config with pooler types that Detectron2 knows, for heads whose poolers it builds.

    :func:`own_poolers` gives these the operators of the types that ``cfg`` names.
    """
    stock = cfg.clone()
    stock.defrost()
    for name in ("ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        if stock.MODEL[name].POOLER_TYPE in OPERATORS:
            stock.MODEL[name].POOLER_TYPE = "ROIPool"
    return stock


def own_poolers(arguments: dict[str, Any], cfg: CfgNode) -> None:
    """Give the poolers among the arguments of ROI heads, in place, their operators."""
    for name, node in (("box", cfg.MODEL.ROI_BOX_HEAD), ("mask", cfg.MODEL.ROI_MASK_HEAD)):
        if f"{name}_pooler" in arguments:
            finer = node.POOLER_SUPERSAMPLING if name == "box" else 1
            pooler = own_pooler(arguments[f"{name}_pooler"], node.POOLER_TYPE, finer)
            arguments[f"{name}_pooler"] = pooler


def on_cells(pooler: Any) -> Any:
    """Let a pooler of Detectron2's type "ROIPool" pool as Caffe does; others are returned."""
    # RoIAlign and others interpolate between cells, for which continuous corners are right.
    operators = getattr(pooler, "level_poolers", None)  # also other projects' poolers
    return InclusiveROIPooler(pooler) if operators and isinstance(operators[0], RoIPool) else pooler


def stop_unless_whole(predictors: Iterable[nn.Module], pooler: nn.Module) -> None:
    """Stop if predictors take RoIs in whole pixels, but the pooler of the same heads does not."""
    whole = any(getattr(predictor, "integer_rois", False) for predictor in predictors)
    if whole and not getattr(pooler, "integer_rois", False):
        raise UserError(
            "MODEL.ROI_HEADS.INTEGER_ROIS is for MODEL.ROI_HEADS.NAME CaffeROIHeads with "
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIPool: set it to False, or use these"
        )


class OperatorPooler(nn.Module):
    """Detectron2's pooler, which finds the map for each box, with an operator of the table.

    Attributes:
        integer_rois: pool at whole pixels, see ``MODEL.ROI_HEADS.INTEGER_ROIS``.
    """

    integer_rois = False

    def __init__(self, pooler: ROIPooler, operator: Operator, supersampling: int = 1) -> None:
        """Wrap a pooler of Detectron2; its operators are replaced.

        Args:
            pooler: finds the map for each box.
            operator: pools from it.
            supersampling: see :func:`own_pooler`.
        """
        super().__init__()
        self.pooler = pooler
        self.inclusive = operator.inclusive
        self.box_gradient = operator.box_gradient
        size = pooler.output_size[0] * supersampling
        operators = [operator.build(size, p.spatial_scale) for p in pooler.level_poolers]
        if supersampling > 1:
            operators = [_MaxOver(module, supersampling) for module in operators]
        pooler.level_poolers = nn.ModuleList(operators)

    def forward(
        self, features: list[torch.Tensor], boxes: list[Boxes], **kwargs: Any
    ) -> torch.Tensor:
        """Pool feature maps, each (N, C, H, W), at the boxes of each image.

        Args:
            features: feature maps.
            boxes: continuous XYXY in network-input pixels; R over all images.
            kwargs: for another project's pooler, which chooses among several maps by it.

        Returns:
            (R, C, output size, output size), in the features' dtype.
        """
        dtype = features[0].dtype
        rois = [whole_pixels(b.tensor) if self.integer_rois else b.tensor for b in boxes]
        if self.inclusive:
            rois = [torch.cat([b[:, :2], b[:, 2:] - 1], dim=1) for b in rois]
        # The operators have no reduced-precision kernel on CPUs, and coordinates need float32.
        with torch.autocast(features[0].device.type, enabled=False):
            if len(features) > 1:
                widened = [f.float() for f in features]
                return self.pooler(widened, [Boxes(b) for b in rois], **kwargs).to(dtype)
            return self._pool(features[0], rois).to(dtype)

    def _pool(self, features: torch.Tensor, rois: list[torch.Tensor]) -> torch.Tensor:
        """Pool from one feature map, as Detectron2's pooler does from several."""
        (operator,) = self.pooler.level_poolers
        # Not by Detectron2's convert_boxes_to_pooler_format, which waits for a GPU to count boxes.
        numbered = [F.pad(b, (1, 0), value=float(i)) for i, b in enumerate(rois)]
        return operator(features.float(), torch.cat(numbered))


class _MaxOver(nn.Module):
    """An operator that pools finer than asked, and the maxima of its bins."""

    def __init__(self, operator: nn.Module, size: int) -> None:
        super().__init__()
        self.operator = operator
        self.size = size

    def forward(self, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        pooled = self.operator(features, rois)
        # Without RoIs max_pool2d raises on some devices; a mean of none is as good.
        return F.max_pool2d(pooled, self.size) if len(rois) else F.avg_pool2d(pooled, self.size)


class InclusiveROIPooler(OperatorPooler):
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
        super().__init__(pooler, OPERATORS["ROIPool"])

    def _pool(self, features: torch.Tensor, rois: list[torch.Tensor]) -> torch.Tensor:
        needs_grad = torch.is_grad_enabled() and features.requires_grad
        if features.is_cuda or needs_grad or torch.jit.is_tracing():
            return super()._pool(features, rois)
        (operator,) = self.pooler.level_poolers
        # In the features' dtype: maxima do not round.
        return roi_max_pool(features, rois, self.pooler.output_size[0], operator.spatial_scale)

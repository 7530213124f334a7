"""R-FCN: score maps of the whole image, pooled position by position, and no layer per RoI.

Shape shorthand in this module: N images, H x W cells, R RoIs over all images, K classes, k bins
per side, B boxes per RoI (1 if class-agnostic, else K).
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, ROIHeads
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F
from torchvision.ops import PSRoIAlign

from ...errors import UserError, check_choice
from ...host import register
from ...layers.ps_roi_pool import PSRoIPool
from ..matcher import AsyncMatcher
from ..proposal_generator.rpn_head import redraw
from ..target_statistics import TargetStatistics
from .fast_rcnn import PaperFastRCNNOutputLayers
from .poolers import Operator, OperatorPooler, stop_unless_whole
from .sampling import ALL, HardExamples, hard_examples, log_samples, objects_left_out


class RFCNConvs(nn.Module):
    """What lies between the backbone and the score maps: conv_new, after fc6 and fc7 if wanted.

    R-FCN's own backbones are ResNets, which have no fully connected layers. VGG16's can come along
    as convolutions (``fc="reduced"``), as in DeepLab and SSD: pool5 3x3 of stride 1, fc6 3x3 of
    dilation 6, fc7 1x1, each with ReLU. ImageNet's weights are sub-sampled when they are loaded
    (:func:`~frcnn_plugin.checkpoint.conversion.reduce_fc`). There is no dropout.
    """

    def __init__(self, channels: int, *, conv_dim: int = 1024, fc: str = "none") -> None:
        """Build the layers: conv_new from N(0, 0.01), fc6 and fc7 for training from scratch.

        Args:
            channels: of the feature map.
            conv_dim: width of every layer here.
            fc: "none" or "reduced".

        Raises:
            UserError: another ``fc``.
        """
        super().__init__()
        check_choice("MODEL.RFCN.BACKBONE_FC", fc, ("none", "reduced"))
        self.has_fc = fc == "reduced"
        if self.has_fc:
            self.pool5 = nn.MaxPool2d(3, stride=1, padding=1)
            self.fc6 = nn.Conv2d(channels, conv_dim, 3, padding=6, dilation=6)
            self.fc7 = nn.Conv2d(conv_dim, conv_dim, 1)
            for layer in (self.fc6, self.fc7):
                weight_init.c2_xavier_fill(layer)
        self.conv_new = nn.Conv2d(conv_dim if self.has_fc else channels, conv_dim, 1)
        redraw(self.conv_new, 0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn a feature map, (N, C, H, W), into (N, ``conv_dim``, H, W)."""
        if self.has_fc:
            x = F.relu(self.fc7(F.relu(self.fc6(self.pool5(x)))))
        return F.relu(self.conv_new(x))


class RFCNOutputLayers(PaperFastRCNNOutputLayers):
    """The output layers as 1x1 convolutions, k * k maps for each number they predict.

    Channel (number * k + row) * k + column belongs to bin (row, column) of that number: class (the
    background is the last) or box delta 4b + j. Losses, decoding and selection are those of the
    base class, on votes (R, K+1) and (R, B*4).
    """

    @configurable
    def __init__(self, input_shape: ShapeSpec, *, group_size: int = 7, **kwargs: Any) -> None:
        """Build the layers, all from N(0, 0.01).

        Args:
            input_shape: channels of the maps.
            group_size: k.
            kwargs: see the base class.
        """
        super().__init__(input_shape, **kwargs)
        bins, channels = group_size * group_size, input_shape.channels
        boxes = self.target_statistics.num_classes
        self.cls_score = nn.Conv2d(channels, (self.num_classes + 1) * bins, 1)
        self.bbox_pred = nn.Conv2d(channels, boxes * 4 * bins, 1)
        self.target_statistics = TargetStatistics(boxes, channels_per_delta=bins)
        self.reset_parameters()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read the base class's arguments, and ``MODEL.RFCN.GROUP_SIZE``."""
        return {
            **super().from_config(cfg, input_shape),
            "group_size": cfg.MODEL.RFCN.GROUP_SIZE,
        }

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw both layers, N(0, 0.01), anew; biases 0; in place."""
        redraw(self.cls_score, 0.01, generator)
        redraw(self.bbox_pred, 0.01, generator)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict maps.

        Args:
            x: (N, C, H, W).

        Returns:
            maps of scores, (N, (K+1)*k*k, H, W), and of deltas, (N, B*4*k*k, H, W).
        """
        return self.cls_score(x), self.bbox_pred(x)


@register(ROI_HEADS_REGISTRY)
class RFCNHeads(ROIHeads):
    """Heads whose layers all run once per image; a RoI averages, and its k * k bins vote.

    Every learned layer is part of the heads, so that four-step training freezes what the paper
    shares, the backbone. RoIs are sampled as in
    :class:`~frcnn_plugin.modeling.CaffeROIHeads`. Hard ones need no second pass, as nothing here is
    random: all RoIs vote, and the losses of those with the highest are summed.

    Source: R-FCN (py-R-FCN's prototxts, psroi_pooling_layer.cu).
    """

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        box_head: nn.Module,
        box_pooler: nn.Module,
        box_predictor: PaperFastRCNNOutputLayers,
        sampling: str = "random",
        hard_nms_thresh: float = 1.0,
        hard_nms_per_label: bool = True,
        **kwargs: Any,
    ) -> None:
        """Take the parts.

        Args:
            in_feature: name of the feature map.
            box_head: layers between it and the predictor, (N, C, H, W) -> (N, C', H, W).
            box_pooler: position-sensitive pooling, (N, D*k*k, H, W) -> (R, D, k, k).
            box_predictor: predicts maps, such as :class:`RFCNOutputLayers`.
            sampling: see ``MODEL.ROI_HEADS.SAMPLING``.
            hard_nms_thresh: see ``MODEL.ROI_HEADS.HARD_NMS_THRESH``.
            hard_nms_per_label: see ``MODEL.ROI_HEADS.HARD_NMS_PER_LABEL``.
            kwargs: arguments of Detectron2's ROIHeads.

        Raises:
            UserError: unknown sampling; see also :func:`.poolers.stop_unless_whole`.
        """
        super().__init__(**kwargs)
        stop_unless_whole([box_predictor], box_pooler)
        self.in_feature = in_feature
        self.box_head = box_head
        self.box_pooler = box_pooler
        self.box_predictor = box_predictor
        self.hard_examples = hard_examples(
            sampling, kwargs["batch_size_per_image"], hard_nms_thresh, hard_nms_per_label
        )
        if sampling != "random":
            self.batch_size_per_image, self.positive_fraction = ALL, 1.0

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Build the parts from ``MODEL.RFCN``, ``MODEL.ROI_HEADS`` and ``MODEL.ROI_BOX_HEAD``.

        Raises:
            UserError: several feature maps, masks or keypoints, or a value that does not exist.
        """
        model, rfcn = cfg.MODEL, cfg.MODEL.RFCN
        names = list(model.ROI_HEADS.IN_FEATURES)
        if len(names) != 1:
            raise UserError(
                f"MODEL.ROI_HEADS.IN_FEATURES is {names}: RFCNHeads has score maps on one feature "
                "map, so name one, or set MODEL.ROI_HEADS.NAME CaffeROIHeads"
            )
        for key in ("MASK_ON", "KEYPOINT_ON"):
            if model[key]:
                raise UserError(
                    f"MODEL.{key} is True: RFCNHeads has no such head; set MODEL.{key} False, or "
                    "MODEL.ROI_HEADS.NAME CaffeROIHeads"
                )
        shape = input_shape[names[0]]
        heads = model.ROI_HEADS
        return {
            **super().from_config(cfg),
            "in_feature": names[0],
            "box_head": RFCNConvs(shape.channels, conv_dim=rfcn.CONV_DIM, fc=rfcn.BACKBONE_FC),
            "box_pooler": build_ps_pooler(
                rfcn.POOLER,
                rfcn.GROUP_SIZE,
                1 / shape.stride,
                model.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO,
            ),
            "box_predictor": RFCNOutputLayers(cfg, ShapeSpec(channels=rfcn.CONV_DIM)),
            "proposal_matcher": AsyncMatcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS),
            "sampling": heads.SAMPLING,
            "hard_nms_thresh": heads.HARD_NMS_THRESH,
            "hard_nms_per_label": heads.HARD_NMS_PER_LABEL,
        }

    def predict(
        self, features: dict[str, torch.Tensor], boxes: list[Boxes]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the votes of boxes.

        Args:
            features: feature maps, each (N, C, H, W).
            boxes: per image, continuous XYXY in network-input pixels.

        Returns:
            scores (R, K+1), background last, and deltas (R, B*4).
        """
        maps = self.box_predictor(self.box_head(features[self.in_feature]))
        # In float32 under autocast, too: 49 bins are averaged.
        scores, deltas = (self.box_pooler([m.float()], boxes).mean(dim=(2, 3)) for m in maps)
        return scores, deltas

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
        compute_loss: bool = True,
        branch: str = "",
        compute_val_loss: bool = False,
    ) -> tuple[list[Instances], Any]:
        """Compute losses or detect, with the arguments of :class:`.roi_heads.CaffeROIHeads`."""
        learns = (self.training and compute_loss) or compute_val_loss
        with objects_left_out(self, compute_val_loss):
            if learns and self.hard_examples is not None:
                return self._train_on_hard(self.hard_examples, features, proposals, targets)
            if learns:
                proposals = self.label_and_sample_proposals(proposals, targets)
        predictions = self.predict(features, [p.proposal_boxes for p in proposals])
        if learns:
            return proposals, self.box_predictor.losses(predictions, proposals)
        detections = self.box_predictor.inference(predictions, proposals)[0]
        return detections, predictions if self.training else {}

    def _train_on_hard(
        self,
        hard: HardExamples,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        chosen, predictions = self._choose(hard, features, proposals, targets)
        losses = self.box_predictor.losses(predictions, chosen)
        # py-R-FCN averages the class loss over the RoIs that there are, but divides the box loss by
        # the number wanted.
        share = sum(map(len, chosen)) / (hard.count * len(chosen))
        losses["loss_box_reg"] = losses["loss_box_reg"] * share
        return chosen, losses

    def _choose(
        self,
        hard: HardExamples,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None,
    ) -> tuple[list[Instances], tuple[torch.Tensor, torch.Tensor]]:
        """Let all RoIs vote; return the hard ones per image, and their scores and deltas."""
        with EventStorage():  # it logs how many there are, but those that train are fewer
            rois = self.label_and_sample_proposals(proposals, targets)
        scores, deltas = self.predict(features, [r.proposal_boxes for r in rois])
        with torch.no_grad():
            losses = self.box_predictor.losses_per_roi((scores, deltas), rois)
        chosen, index = hard.choose_rois(losses, rois)
        log_samples(chosen, self.num_classes)
        return chosen, (scores[index], deltas[index])

    def training_rois(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None,
    ) -> list[Instances]:
        """Label the RoIs and choose those that train, as :class:`.roi_heads.CaffeROIHeads` does."""
        if self.hard_examples is None:
            return self.label_and_sample_proposals(proposals, targets)
        return self._choose(self.hard_examples, features, proposals, targets)[0]


def build_ps_pooler(
    kind: str, group_size: int, spatial_scale: float, sampling_ratio: int = 0
) -> nn.Module:
    """Build position-sensitive pooling.

    Args:
        kind: "caffe", the original, or "align", torchvision's: samples between cells, no rounding.
        group_size: k.
        spatial_scale: cells per pixel of the feature map.
        sampling_ratio: samples per bin and axis of "align"; 0: as many as cells.

    Returns:
        a module that takes a list of one map (N, D*k*k, H, W) and a list of Boxes, continuous XYXY
        in network-input pixels, and returns (R, D, k, k), computed in float32.

    Raises:
        UserError: another kind.
    """
    operators = {
        "caffe": Operator(PSRoIPool, inclusive=True),
        "align": Operator(lambda k, scale: PSRoIAlign(k, scale, sampling_ratio), inclusive=False),
    }
    check_choice("MODEL.RFCN.POOLER", kind, operators)
    stock = ROIPooler(group_size, (spatial_scale,), sampling_ratio, "ROIPool")
    return OperatorPooler(stock, operators[kind])

"""The heads of Fast R-CNN on the paper's terms."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from ...errors import UserError
from ...host import head_losses, register
from ..image_pyramid import pool_from_pyramid
from ..matcher import AsyncMatcher
from ..proposal_gradient import have_gradient, take_gradient, with_rows, without_gradient
from .fast_rcnn import PaperFastRCNNOutputLayers
from .poolers import (
    InclusiveROIPooler,
    on_cells,
    own_poolers,
    stop_unless_whole,
    with_box_gradient,
    with_stock_poolers,
)
from .sampling import ALL, hard_examples, log_samples, objects_left_out


@register(ROI_HEADS_REGISTRY)
class CaffeROIHeads(StandardROIHeads):
    """Detectron2's box head with Caffe's RoI pooling and the originals' decoding.

    Random sampling is Detectron2's: ``IOU_THRESHOLDS [0.1, 0.5]`` with ``IOU_LABELS [-1, 0, 1]`` is
    the paper's background window [0.1, 0.5), ``[0.5]`` with ``[0, 1]`` py-faster-rcnn's [0, 0.5);
    when too few boxes qualify, fewer are used, none twice. With ``SAMPLING`` "hard" or "all", what
    is sampled is all that qualify; :meth:`training_rois` then chooses the hard ones.

    ``POOLER_TYPE`` "ROIPool", of the box head and of a mask head, is the original; for others see
    :data:`~frcnn_plugin.modeling.roi_heads.poolers.OPERATORS`, and Detectron2's work as they do
    there. A predictor that another class of the same heads has built stays
    (docs/other_projects.md).
    """

    batch_size_per_image: int
    box_gradient = True  # see MODEL.PAPER_RCNN.PROPOSAL_GRADIENT
    takes_pyramid = True

    @configurable
    def __init__(
        self,
        *,
        box_pooler: nn.Module,
        mask_pooler: nn.Module | None = None,
        sampling: str = "random",
        hard_nms_thresh: float = 0.7,
        hard_nms_per_label: bool = True,
        proposal_gradient: str = "none",
        **kwargs: Any,
    ) -> None:
        """Take the parts.

        Args:
            box_pooler: Detectron2's pooler; one of the type "ROIPool" pools as Caffe does.
            mask_pooler: the same of the mask head, if there is one.
            sampling: see ``MODEL.ROI_HEADS.SAMPLING``.
            hard_nms_thresh: see ``MODEL.ROI_HEADS.HARD_NMS_THRESH``.
            hard_nms_per_label: see ``MODEL.ROI_HEADS.HARD_NMS_PER_LABEL``.
            proposal_gradient: see ``MODEL.PAPER_RCNN.PROPOSAL_GRADIENT``.
            kwargs: arguments of Detectron2's StandardROIHeads.

        Raises:
            UserError: unknown sampling; hard sampling, and the predictor tells no losses of RoIs;
                boxes are to have a gradient, and the pooler gives none; see also
                :func:`.poolers.stop_unless_whole`.
        """
        super().__init__(
            box_pooler=on_cells(box_pooler), mask_pooler=on_cells(mask_pooler), **kwargs
        )
        stop_unless_whole([self.box_predictor], self.box_pooler)
        self.hard_examples = hard_examples(
            sampling, self.batch_size_per_image, hard_nms_thresh, hard_nms_per_label
        )
        if self.hard_examples and not hasattr(self.box_predictor, "losses_per_roi"):
            raise UserError(
                "MODEL.ROI_HEADS.SAMPLING hard needs PaperFastRCNNOutputLayers, but the "
                f"predictor is {type(self.box_predictor).__name__}: set it to random"
            )
        if sampling != "random":
            self.batch_size_per_image, self.positive_fraction = ALL, 1.0
        self.proposal_gradient = proposal_gradient
        if proposal_gradient != "none" and not getattr(box_pooler, "box_gradient", False):
            raise UserError(
                f"MODEL.PAPER_RCNN.PROPOSAL_GRADIENT is {proposal_gradient}, but RoI pooling of "
                "this MODEL.ROI_BOX_HEAD.POOLER_TYPE has no gradient for boxes: set it to one of "
                f"{', '.join(with_box_gradient())}, or PROPOSAL_GRADIENT to none"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Read Detectron2's arguments, with our matcher, and our predictor in place of its own."""
        ret = super().from_config(with_stock_poolers(cfg), input_shape)
        own_poolers(ret, cfg)
        ret["proposal_gradient"] = cfg.MODEL.PAPER_RCNN.PROPOSAL_GRADIENT
        if type(ret["box_predictor"]) is FastRCNNOutputLayers:  # else it is another project's
            ret["box_predictor"] = PaperFastRCNNOutputLayers(cfg, ret["box_head"].output_shape)
        heads = cfg.MODEL.ROI_HEADS
        if isinstance(ret.get("box_pooler"), InclusiveROIPooler):
            ret["box_pooler"].integer_rois = heads.INTEGER_ROIS
        pool_from_pyramid(ret, cfg)
        # Without low-quality matches: only the RPN gives each object its best box (example E9);
        # proposal_target_layer.py labels a RoI by its IoU alone.
        ret["proposal_matcher"] = AsyncMatcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS)
        for name in ("sampling", "hard_nms_thresh", "hard_nms_per_label"):
            ret[name] = heads[name.upper()]
        return ret

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
        """Compute losses in training, detections in evaluation, as Detectron2's heads do.

        The switches are those of Unbiased Teacher and its successors.

        Args:
            images: not used.
            features: feature maps, each (N, C, H, W).
            proposals: per image, ``proposal_boxes`` and ``objectness_logits``.
            targets: per image, ``gt_boxes`` and ``gt_classes``; needed for losses only.
            compute_loss: False: detect in training, too, for pseudo labels.
            branch: not used.
            compute_val_loss: compute losses, on proposals without the objects themselves.

        Returns:
            sampled proposals and losses in training, detections and {} in evaluation; without
            losses in training, detections and predictions (scores and deltas of all proposals).
        """
        if compute_val_loss:
            with objects_left_out(self, compute_val_loss):
                proposals = self.training_rois(features, proposals, targets)
        elif self.training and compute_loss and (self.hard_examples or have_gradient(proposals)):
            rois = self.training_rois(features, proposals, targets)
            losses = head_losses(self, features, rois, "box")
            # Masks are cut out of the ground truth at the boxes, by numpy.
            fixed = without_gradient(rois)
            return rois, losses | head_losses(self, features, fixed, "mask", "keypoint")
        elif compute_loss or not self.training:
            return super().forward(images, features, proposals, targets)
        predictions = self._predict(features, proposals)
        if compute_val_loss:
            return proposals, self.box_predictor.losses(predictions, proposals)
        return self.box_predictor.inference(predictions, proposals)[0], predictions

    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances] | None, **kwargs: Any
    ) -> list[Instances]:
        """Label and sample RoIs as Detectron2, or the class that this one is combined with, does.

        Boxes of proposals that have a gradient keep it, as ``proposal_gradient`` says. ``kwargs``
        is what the other class takes (``branch=`` and the like).
        """
        if self.proposal_gradient == "none" or not have_gradient(proposals):
            return super().label_and_sample_proposals(proposals, targets, **kwargs)
        assert targets is not None
        sampled = super().label_and_sample_proposals(
            with_rows(proposals, are_proposals=True),
            with_rows(targets, are_proposals=False),
            **kwargs,
        )
        is_foreground = self.proposal_gradient == "foreground"
        take_gradient(sampled, proposals, self.num_classes, foreground=is_foreground)
        return sampled

    def training_rois(
        self,
        features: dict[str, torch.Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None,
    ) -> list[Instances]:
        """Label the RoIs, and choose those that train the heads, as ``SAMPLING`` says.

        Hard RoIs are chosen by their losses in a pass without gradients. In training that has other
        dropout than the one that learns from them, as in ohem.

        Args:
            features: feature maps, each (N, C, H, W).
            proposals: see :meth:`forward`.
            targets: see :meth:`forward`.

        Returns:
            per image, ``proposal_boxes``, ``gt_classes`` (background: the number of classes) and,
            if there are objects, ``gt_boxes``.
        """
        if self.hard_examples is None:
            return self.label_and_sample_proposals(proposals, targets)
        with EventStorage():  # it logs how many there are, but those that train are fewer
            rois = self.label_and_sample_proposals(proposals, targets)
        with torch.no_grad():
            losses = self.box_predictor.losses_per_roi(self._predict(features, rois), rois)
        # Not every version of torch does so itself: autocast would hand the weights that it cast
        # here, without gradients, to the pass that learns.
        torch.clear_autocast_cache()
        rois, _ = self.hard_examples.choose_rois(losses, rois)
        log_samples(rois, self.num_classes)
        return rois

    def _predict(self, features: dict[str, torch.Tensor], rois: list[Instances]) -> Any:
        maps = [features[f] for f in self.box_in_features]
        pooled = self.box_pooler(maps, [r.proposal_boxes for r in rois])
        return self.box_predictor(self.box_head(pooled))

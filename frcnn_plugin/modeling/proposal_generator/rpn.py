"""The paper's region proposal network (section 3.1).

Shape shorthand in this module:

    N: number of images in the batch
    A: anchors per cell (9)
    H, W: size of the feature map
    R: all anchors of an image, H * W * A
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.memory import retry_if_cuda_oom
from torch.nn import functional as F

from ...errors import UserError
from ..box_regression import CaffeBox2BoxTransform, box_loss
from ..image_size import image_scale
from ..matcher import AsyncMatcher
from ..target_statistics import NormalisedBox2BoxTransform, TargetStatistics
from .selection import inside_image, select_proposals


@PROPOSAL_GENERATOR_REGISTRY.register()
class PaperRPN(RPN):
    """The host's RPN with the original rules for labels, losses and proposals.

    - Anchors that cross the border are removed *before* matching, so that every ground truth keeps
      its best inside anchor (the host matches first, check E9e).
    - Losses are divided by the number of anchors really sampled, or, for the box loss of the paper,
      by the number of locations.
    - Proposals: see :func:`~frcnn_plugin.modeling.proposal_generator.selection.select_proposals`.
    - Box targets are whitened while ``target_statistics`` are set (MATLAB: proposal_train.m).

    The minimum size in original-image pixels needs the image scale, which
    :class:`~frcnn_plugin.modeling.meta_arch.PaperRCNN` provides; under another meta-architecture
    the scale counts as 1. Several feature maps compete in one common selection.
    """

    @configurable
    def __init__(
        self,
        *,
        loss_norm: str = "samples",
        guard_zero_iou: bool = True,
        min_size_image: float = 16.0,
        **kwargs: Any,
    ) -> None:
        """Set the constants.

        Args:
            loss_norm: "samples" or "locations", see ``MODEL.RPN.LOSS_NORM``.
            guard_zero_iou: see ``MODEL.RPN.GUARD_ZERO_IOU``.
            min_size_image: smallest side of a proposal, original-image pixels.
            kwargs: arguments of the host's RPN.

        Raises:
            UserError: unknown ``loss_norm``.
        """
        super().__init__(**kwargs)
        if loss_norm not in ("samples", "locations"):
            raise UserError(f"MODEL.RPN.LOSS_NORM is '{loss_norm}': use 'samples' or 'locations'")
        self.loss_norm = loss_norm
        # False while the RPN trains alone: nobody reads its proposals then.
        self.select_in_training = True
        stock = kwargs["anchor_matcher"]
        self.anchor_matcher = AsyncMatcher(
            stock.thresholds[1:-1],  # without the infinite ones that the host adds
            stock.labels,
            stock.allow_low_quality_matches,
            guard_zero=guard_zero_iou,
        )
        self.min_size_image = min_size_image
        self.target_statistics = TargetStatistics(1)
        # The host encodes targets and decodes predictions with it.
        self.box2box_transform: Any = NormalisedBox2BoxTransform(
            kwargs["box2box_transform"], self.target_statistics
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Arguments of :meth:`__init__` from ``MODEL.RPN``."""
        ret = super().from_config(cfg, input_shape)
        ret["box2box_transform"] = CaffeBox2BoxTransform(
            cfg.MODEL.RPN.BBOX_REG_WEIGHTS, cfg.MODEL.RPN.SCALE_CLAMP, cfg.MODEL.RPN.DECODE_GROWTH
        )
        ret["guard_zero_iou"] = cfg.MODEL.RPN.GUARD_ZERO_IOU
        ret["loss_norm"] = cfg.MODEL.RPN.LOSS_NORM
        ret["min_size_image"] = cfg.MODEL.RPN.MIN_SIZE_IMAGE
        return ret

    def match_anchors(self, anchors: Boxes, gt_boxes: Boxes) -> tuple[torch.Tensor, torch.Tensor]:
        """Label anchors by IoU alone.

        Positive: IoU >= 0.7 with a ground truth, or the highest IoU with some ground truth, all
        ties included. Negative: IoU < 0.3 with all. The ground truth an anchor regresses to is the
        one it overlaps most, even if another one made it positive (checks E9, E9d).

        Args:
            anchors: (I, 4), those inside the image.
            gt_boxes: (G, 4), same frame.

        Returns:
            labels (I,) int8 in {1 object, 0 background, -1 ignore}; index of the ground truth (I,).
        """
        iou = retry_if_cuda_oom(pairwise_iou)(gt_boxes, anchors)  # (G, I)
        matched, labels = retry_if_cuda_oom(self.anchor_matcher)(iou)
        return labels.to(anchors.device), matched.to(anchors.device)

    @torch.jit.unused
    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Label all anchors and sample a mini-batch of them per image.

        Replaces the host's method, which matches before it drops outside anchors; that order
        cannot be changed from outside.

        Args:
            anchors: per feature map; R in all.
            gt_instances: per image, with ``gt_boxes`` in network-input pixels.

        Returns:
            per image: labels (R,) int8, 1 object, 0 background, -1 not in the mini-batch; and the
            matched ground-truth boxes (R, 4), meaningful where the label is 1.
        """
        all_anchors = Boxes.cat(anchors)
        gt_labels, matched_gt_boxes = [], []
        for instances in gt_instances:
            gt_boxes = instances.gt_boxes
            is_inside = inside_image(
                all_anchors.tensor, instances.image_size, self.anchor_boundary_thresh
            )
            inside = is_inside.nonzero().squeeze(1)
            labels_inside, matched = self.match_anchors(all_anchors[inside], gt_boxes)
            labels = torch.full_like(is_inside, -1, dtype=torch.int8)
            labels[inside] = labels_inside
            boxes = torch.zeros_like(all_anchors.tensor)
            if len(gt_boxes):
                boxes[inside] = gt_boxes.tensor[matched]
            gt_labels.append(self._subsample_labels(labels))
            matched_gt_boxes.append(boxes)
        return gt_labels, matched_gt_boxes

    @torch.jit.unused
    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        gt_labels: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        gt_boxes: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """The host's losses, divided by what the originals divide by.

        The host computes them on all anchors, by masks; here only the sampled ones are touched.

        Args:
            anchors: per feature map.
            pred_objectness_logits: per feature map, (N, H*W*A).
            gt_labels: per image, (R,).
            pred_anchor_deltas: per feature map, (N, H*W*A, 4).
            gt_boxes: per image, (R, 4).

        Returns:
            ``loss_rpn_cls`` and ``loss_rpn_loc``, scalars.
        """
        num_images = len(gt_labels)
        labels = torch.cat(gt_labels)
        sampled = (labels >= 0).nonzero().squeeze(1)  # everything below is about these few
        labels = labels[sampled]
        is_object = labels == 1
        self._log_sampled(int(is_object.sum()), len(sampled), num_images)

        all_anchors = Boxes.cat(anchors).tensor
        src = all_anchors[sampled % len(all_anchors)]
        # Background has no box: it gets its own anchor, so that nothing becomes infinite, ...
        boxes = torch.where(is_object[:, None], torch.cat(gt_boxes)[sampled], src)
        deltas = torch.cat(pred_anchor_deltas, dim=1).flatten(0, 1)[sampled]
        loc = box_loss(
            self.box_reg_loss_type, self.box2box_transform, src, deltas, boxes, self.smooth_l1_beta
        )
        loc = (loc * is_object).sum()  # ... and no weight.
        logits = torch.cat(pred_objectness_logits, dim=1).flatten()[sampled]
        cls = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")

        num_sampled = max(len(sampled), 1)
        if self.loss_norm == "samples":
            loc_norm = num_sampled
        else:
            loc_norm = num_images * sum(
                level.shape[1] // num_anchors
                for level, num_anchors in zip(
                    pred_objectness_logits, self.anchor_generator.num_anchors, strict=True
                )
            )
        losses = {"loss_rpn_cls": cls / num_sampled, "loss_rpn_loc": loc / loc_norm}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    @staticmethod
    def _log_sampled(num_objects: int, num_sampled: int, num_images: int) -> None:
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", num_objects / num_images)
        storage.put_scalar("rpn/num_neg_anchors", (num_sampled - num_objects) / num_images)

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """Decode all anchors and select proposals; no gradient flows to boxes or scores.

        Args:
            anchors: per feature map.
            pred_objectness_logits: per feature map, (N, H*W*A).
            pred_anchor_deltas: per feature map, (N, H*W*A, 4).
            image_sizes: per image, network-input (height, width).

        Returns:
            per image, ``proposal_boxes`` and ``objectness_logits``, sorted by descending score; an
            empty list in training if ``select_in_training`` is off.
        """
        if self.training and not self.select_in_training:
            return []
        all_boxes = torch.cat(self._decode_proposals(anchors, pred_anchor_deltas), dim=1)
        all_scores = torch.cat(pred_objectness_logits, dim=1).float()
        proposals = []
        for boxes, scores, image_size in zip(all_boxes, all_scores, image_sizes, strict=True):
            min_side = max(self.min_box_size, self.min_size_image * image_scale(image_size))
            boxes, scores = select_proposals(
                boxes,
                scores,
                image_size,
                min_side=min_side,
                pre_nms_topk=int(self.pre_nms_topk[self.training]),
                post_nms_topk=int(self.post_nms_topk[self.training]),
                nms_thresh=self.nms_thresh,
            )
            result = Instances(image_size)
            result.proposal_boxes = Boxes(boxes)
            result.objectness_logits = scores
            proposals.append(result)
        return proposals

"""The heads of Cascade R-CNN on the paper's terms.

Three heads of Fast R-CNN one after the other: each takes the boxes of the one before it as RoIs,
and learns on a higher IoU what an object is. Detectron2 calls them stages; here they are heads 1
to 3, as a stage is one of the four of alternating training.

Shape shorthand in this module: R RoIs over all images, K classes. Boxes are continuous XYXY in
network-input pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from torch import nn

from ...errors import UserError, check_choice
from ...host import head_losses, register
from ..box_ops import clip_boxes
from ..box_regression import CaffeBox2BoxTransform
from ..image_pyramid import pool_from_pyramid
from ..matcher import AsyncMatcher
from .fast_rcnn import PaperFastRCNNOutputLayers
from .poolers import on_cells, own_poolers, stop_unless_whole, with_stock_poolers
from .sampling import objects_left_out

SCORES_FROM = ("last", "own")

Predictions = tuple[torch.Tensor, torch.Tensor]


@register(ROI_HEADS_REGISTRY)
class CaffeCascadeROIHeads(CascadeROIHeads):
    """Detectron2's cascade with the parts of CaffeROIHeads and the rules of the Caffe original.

    In these points Detectron2's own class differs:

    - RoI pooling, decoding, suppression and limit are those of CaffeROIHeads; all boxes are
      class-agnostic.
    - The scores are the mean of all classifiers, each on the RoIs of the *last* head.
    - The objects are added to the RoIs of every head, and what a head made of RoIs that fit an
      object already, by IoU > 0.95, is dropped; so are boxes without area.
    - Features receive 1, 1/2 and 1/4 of the heads' gradients, not a third of each.

    The original multiplies the losses by these factors and the heads' learning rates by their
    inverses, so that a head learns at the full rate, as it does here; the factors of its weight
    decay, 1, 2 and 4, are left out.

    Source: cascade-rcnn, train.prototxt and test.prototxt of VGG16.
    """

    takes_pyramid = True

    @configurable
    def __init__(
        self,
        *,
        box_pooler: nn.Module,
        mask_pooler: nn.Module | None = None,
        loss_weights: Sequence[float] = (1.0, 0.5, 0.25),
        scores_from: str = "last",
        append_gt: bool = True,
        drop_iou: float = 0.95,
        **kwargs: Any,
    ) -> None:
        """Take the parts.

        Args:
            box_pooler: see :class:`.roi_heads.CaffeROIHeads`.
            mask_pooler: see there.
            loss_weights: see ``MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS``.
            scores_from: see ``MODEL.ROI_BOX_CASCADE_HEAD.SCORES_FROM``.
            append_gt: see ``MODEL.ROI_BOX_CASCADE_HEAD.APPEND_GT``.
            drop_iou: see ``MODEL.ROI_BOX_CASCADE_HEAD.DROP_IOU``.
            kwargs: arguments of Detectron2's CascadeROIHeads; the predictors are of the class
                :class:`.fast_rcnn.PaperFastRCNNOutputLayers`, or at least the last one is.

        Raises:
            UserError: unknown ``scores_from``, or not a loss weight per head; see also
                :func:`.poolers.stop_unless_whole`.
        """
        super().__init__(
            box_pooler=on_cells(box_pooler), mask_pooler=on_cells(mask_pooler), **kwargs
        )
        stop_unless_whole(self.box_predictor, self.box_pooler)
        check_choice("MODEL.ROI_BOX_CASCADE_HEAD.SCORES_FROM", scores_from, SCORES_FROM)
        if len(loss_weights) != len(self.box_head):
            raise UserError(
                f"MODEL.ROI_BOX_CASCADE_HEAD.LOSS_WEIGHTS is {list(loss_weights)}: it needs "
                f"{len(self.box_head)} numbers, one per head"
            )
        self.loss_weights = tuple(loss_weights)
        self.scores_from = scores_from
        self.append_gt = append_gt
        self.drop_iou = drop_iou

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Read Detectron2's arguments, with our matchers and predictors in place of its own.

        Raises:
            UserError: see :func:`cascade_problems`; hard sampling.
        """
        for problem, fix in cascade_problems(cfg):
            raise UserError(f"{problem}. {fix}")
        if cfg.MODEL.ROI_HEADS.SAMPLING != "random":  # heads 2 and 3 learn on all of their RoIs
            raise UserError(
                f"MODEL.ROI_HEADS.SAMPLING is '{cfg.MODEL.ROI_HEADS.SAMPLING}', which a cascade "
                "does not know: type MODEL.ROI_HEADS.SAMPLING random"
            )
        stock, node, head = with_stock_poolers(cfg), cfg.MODEL.ROI_BOX_CASCADE_HEAD, "ROI_BOX_HEAD"
        # Detectron2 has no lower end of the background, and asserts that there is none.
        stock.MODEL.ROI_HEADS.IOU_THRESHOLDS = [node.IOUS[0]]
        stock.MODEL.ROI_HEADS.IOU_LABELS = [0, 1]
        ret = super().from_config(stock, input_shape)
        own_poolers(ret, cfg)
        pool_from_pyramid(ret, cfg)
        clamp = cfg.MODEL[head].SCALE_CLAMP
        ret["box_predictors"] = [
            PaperFastRCNNOutputLayers(
                cfg, box_head.output_shape, box2box_transform=CaffeBox2BoxTransform(weights, clamp)
            )
            if type(predictor) is FastRCNNOutputLayers  # else it is another project's
            else predictor
            for predictor, box_head, weights in zip(
                ret["box_predictors"], ret["box_heads"], node.BBOX_REG_WEIGHTS, strict=True
            )
        ]
        first = AsyncMatcher(cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS, cfg.MODEL.ROI_HEADS.IOU_LABELS)
        ret["proposal_matchers"] = [first, *(AsyncMatcher([iou], [0, 1]) for iou in node.IOUS[1:])]
        for key in ("LOSS_WEIGHTS", "SCORES_FROM", "APPEND_GT", "DROP_IOU"):
            ret[key.lower()] = node[key]
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
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Compute losses or detect, with the arguments of :class:`.roi_heads.CaffeROIHeads`.

        Returns:
            the RoIs of head 1 and the losses, ``loss_cls_head1``, ``loss_box_reg_head1`` and so on;
            or detections, in training without masks, and {}.
        """
        if not compute_val_loss and not (self.training and compute_loss):
            found = self._detect(features, proposals)
            return found if self.training else self.forward_with_given_boxes(features, found), {}
        assert targets is not None, "losses need targets"
        with objects_left_out(self, compute_val_loss):
            rois = self.label_and_sample_proposals(proposals, targets)
            losses = self._box_losses(features, rois, targets)
        if not self.training:
            return rois, losses
        # The head of masks has one set of RoIs in training, as in Detectron2: those of head 1.
        losses.update(head_losses(self, features, rois, "mask", "keypoint"))
        return rois, losses

    def _box_losses(
        self, features: dict[str, torch.Tensor], rois: list[Instances], targets: list[Instances]
    ) -> dict[str, torch.Tensor]:
        losses = {}
        storage = get_event_storage()
        for k, predictor in enumerate(self.box_predictor):
            pooled = _scale_gradient(self._pool(features, rois), self.loss_weights[k])
            predictions = predictor(self.box_head[k](pooled))
            with storage.name_scope(f"head{k + 1}"):
                found = predictor.losses(predictions, rois)
            losses.update({f"{name}_head{k + 1}": loss for name, loss in found.items()})
            if k + 1 < len(self.box_predictor):
                rois = self._next_rois(k + 1, self._boxes(k, predictions, rois), rois, targets)
                num_fg = sum((r.gt_classes < self.num_classes).sum() for r in rois)
                for name, total in (
                    ("num_fg_samples", float(num_fg)),
                    ("num_rois", sum(map(len, rois))),
                ):
                    storage.put_scalar(f"head{k + 2}/roi_head/{name}", total / len(rois))
        return losses

    def _detect(
        self, features: dict[str, torch.Tensor], proposals: list[Instances]
    ) -> list[Instances]:
        rois = proposals
        outputs: list[tuple[Predictions, list[Instances]]] = []
        pooled = torch.empty(0)
        for k, predictor in enumerate(self.box_predictor):
            if outputs:
                rois = [
                    Instances(r.image_size, proposal_boxes=Boxes(boxes))
                    for r, boxes in zip(rois, self._boxes(k - 1, *outputs[-1]), strict=True)
                ]
            pooled = self._pool(features, rois)
            outputs.append((predictor(self.box_head[k](pooled)), rois))
        last, predictions = self.box_predictor[-1], outputs[-1][0]
        if self.scores_from == "last":  # its RoIs are pooled once for all classifiers
            others = zip(self.box_head[:-1], self.box_predictor[:-1], strict=True)
            outputs[:-1] = [(predictor(head(pooled)), rois) for head, predictor in others]
        of_heads = [
            predictor.predict_probs(*output)
            for predictor, output in zip(self.box_predictor, outputs, strict=True)
        ]
        scores = [torch.stack(of_image).mean(dim=0) for of_image in zip(*of_heads, strict=True)]
        detections: list[Instances] = last.select(
            last.predict_boxes(predictions, rois), scores, rois
        )[0]
        return detections

    def _pool(self, features: dict[str, torch.Tensor], rois: list[Instances]) -> torch.Tensor:
        pooled: torch.Tensor = self.box_pooler(
            [features[name] for name in self.box_in_features], [r.proposal_boxes for r in rois]
        )
        return pooled

    @torch.no_grad()
    def _boxes(self, k: int, predictions: Predictions, rois: list[Instances]) -> list[torch.Tensor]:
        """Return what head k + 1 makes of its RoIs: per image (R_i, 4), clipped to the image."""
        decoded = self.box_predictor[k].predict_boxes(predictions, rois)
        return [clip_boxes(boxes, r.image_size) for boxes, r in zip(decoded, rois, strict=True)]

    @torch.no_grad()
    def _next_rois(
        self, k: int, boxes: list[torch.Tensor], rois: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Label the boxes that were made of RoIs, for head k + 1, which learns on all of them."""
        result = []
        for of_image, old, target in zip(boxes, rois, targets, strict=True):
            gt_boxes = target.gt_boxes
            keep = (of_image[:, 2:] > of_image[:, :2]).all(dim=1)
            if len(gt_boxes):
                keep &= pairwise_iou(gt_boxes, old.proposal_boxes).amax(dim=0) <= self.drop_iou
            kept = of_image[keep]
            if self.append_gt:
                kept = torch.cat([kept, gt_boxes.tensor])
            new = Instances(old.image_size, proposal_boxes=Boxes(kept))
            matched, labels = self.proposal_matchers[k](pairwise_iou(gt_boxes, new.proposal_boxes))
            new.gt_classes = torch.full_like(matched, self.num_classes)
            if len(gt_boxes):
                classes = target.gt_classes[matched]
                new.gt_classes = torch.where(labels == 1, classes, new.gt_classes)
                new.gt_boxes = gt_boxes[matched]
            result.append(new)
        return result


def _scale_gradient(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Let ``x`` hand on its gradient times a factor; return it."""
    if factor != 1 and x.requires_grad:
        x.register_hook(lambda gradient: gradient * factor)
    return x


def is_cascade(cfg: CfgNode) -> bool:
    """Return whether the ROI heads of a config are a cascade, ours or Detectron2's."""
    name = cfg.MODEL.ROI_HEADS.NAME
    found = ROI_HEADS_REGISTRY.get(name) if name in ROI_HEADS_REGISTRY else None
    return isinstance(found, type) and issubclass(found, CascadeROIHeads)


def cascade_problems(cfg: CfgNode) -> list[tuple[str, str]]:
    """Return which keys do not go with a cascade, each with the key to change."""
    heads, node = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_CASCADE_HEAD
    ious, thresholds = list(node.IOUS), list(heads.IOU_THRESHOLDS)
    agnostic = "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG"
    problems = []
    if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
        problem = f"{heads.NAME} predicts one box for all classes, but {agnostic} is False"
        problems.append((f"MODEL.ROI_HEADS.NAME {problem}", f"Type {agnostic} True"))
    for key in ("BBOX_REG_WEIGHTS", "LOSS_WEIGHTS"):
        if len(node[key]) != len(ious):
            problem = f"{len(node[key])} entries, but MODEL.ROI_BOX_CASCADE_HEAD.IOUS {len(ious)}"
            problem = f"MODEL.ROI_BOX_CASCADE_HEAD.{key} has {problem}"
            problems.append((problem, "Give both one entry per head"))
    if thresholds[-1] != ious[0]:
        problem = (
            f"MODEL.ROI_HEADS.IOU_THRESHOLDS {thresholds} and MODEL.ROI_BOX_CASCADE_HEAD.IOUS "
            f"{ious} disagree on the IoU from which a RoI of the first head is an object"
        )
        wanted = [*thresholds[:-1], ious[0]]
        problems.append((problem, f'Type MODEL.ROI_HEADS.IOU_THRESHOLDS "{wanted}"'))
    return problems

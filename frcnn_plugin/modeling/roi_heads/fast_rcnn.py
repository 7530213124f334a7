"""Class scores and class-specific boxes.

Shape shorthand in this module: R proposals or RoIs over all images, K classes. ``predictions`` are
scores (R, K+1), background last, and deltas (R, K*4), or (R, 4) if class-agnostic. Boxes are
continuous XYXY in network-input pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cross_entropy
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from fvcore.nn import smooth_l1_loss
from torch.nn import functional as F

from ...errors import UserError, check_choice
from ...layers.nms import float32_threshold
from ..box_ops import clip_inclusive, of_second_corner, whole_pixels
from ..box_regression import CaffeBox2BoxTransform, box_loss, grow
from ..image_size import ScaledImageSize, image_scale
from ..proposal_generator.rpn_head import redraw
from ..proposal_gradient import without_gradient
from ..target_statistics import TargetStatistics
from .detections import NMS_METHODS, detection_candidates, suppress, within_limit


class PaperFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Detectron2's output layers with the originals' decoding.

    Detectron2 already agrees with the originals in these points: N(0, 0.01) and N(0, 0.001)
    weights, a box per class, mean cross entropy over the RoIs, box loss divided by all RoIs, fixed
    target deviations (0.1, 0.1, 0.2, 0.2) as ``BBOX_REG_WEIGHTS`` (10, 10, 5, 5).

    Target means and deviations per class, measured on the data as in MATLAB and py's alternating
    training, are ``target_statistics``; a class-agnostic head has one row of them for all classes.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        decode_growth: float = 0.0,
        decode_in_image: bool = False,
        keep_ties: bool = False,
        topk_per_class: int = 0,
        integer_rois: bool = False,
        class_weights: Sequence[float] = (),
        nms_method: str = "hard",
        soft_nms_sigma: float = 0.5,
        soft_nms_min_score: float = 0.001,
        **kwargs: Any,
    ) -> None:
        """Build the layers.

        Args:
            input_shape: channels of fc7.
            decode_growth: original-image pixels added to x2, y2 (py-faster-rcnn: 1).
            decode_in_image: see ``MODEL.ROI_BOX_HEAD.DECODE_IN_IMAGE``.
            keep_ties: see ``TEST.KEEP_TIES``.
            topk_per_class: see ``MODEL.ROI_HEADS.TOPK_PER_CLASS_TEST``.
            integer_rois: see ``MODEL.ROI_HEADS.INTEGER_ROIS``.
            class_weights: see ``MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS``.
            nms_method: see ``MODEL.ROI_HEADS.NMS_METHOD_TEST``.
            soft_nms_sigma: see ``MODEL.ROI_HEADS.SOFT_NMS_SIGMA``.
            soft_nms_min_score: see ``MODEL.ROI_HEADS.SOFT_NMS_MIN_SCORE``.
            kwargs: arguments of Detectron2's class.

        Raises:
            UserError: ``class_weights`` of another number, negative, or with ``use_sigmoid_ce``;
                unknown ``nms_method``.
        """
        super().__init__(input_shape, **kwargs)
        weights = list(class_weights)
        usable = all(0 <= w < float("inf") for w in weights)
        if weights and not (usable and len(weights) == self.num_classes + 1):
            raise UserError(
                f"MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS is {weights}: it needs {self.num_classes + 1} "
                f"numbers of 0 or more, one for each of the {self.num_classes} classes "
                "(MODEL.ROI_HEADS.NUM_CLASSES) and the last for background"
            )
        if weights and self.use_sigmoid_ce:
            raise UserError(
                "MODEL.ROI_BOX_HEAD.CLASS_WEIGHTS is for the softmax loss: leave it empty, or set "
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE False"
            )
        # Not in checkpoints, as they say nothing about the weights.
        factors = torch.tensor(weights, dtype=torch.float32) if weights else None
        self.register_buffer("class_weights", factors, persistent=False)
        self.decode_growth = decode_growth
        self.decode_in_image = decode_in_image
        self.keep_ties = keep_ties
        check_choice("MODEL.ROI_HEADS.NMS_METHOD_TEST", nms_method, NMS_METHODS)
        self.nms_method = nms_method
        self.soft_nms_sigma = soft_nms_sigma
        self.soft_nms_min_score = soft_nms_min_score
        self.topk_per_class = topk_per_class
        self.integer_rois = integer_rois
        # One row of statistics for each box that is predicted.
        self.target_statistics = TargetStatistics(self.bbox_pred.out_features // 4)
        # The originals' kernels compare with a float32 threshold, so a box of IoU 0.3 stays.
        self.test_nms_thresh: float = float32_threshold(kwargs.get("test_nms_thresh", 0.5))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.target_statistics.clear_unless_in(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw cls_score, N(0, 0.01), and bbox_pred, N(0, 0.001), anew; biases 0; in place.

        See :func:`~frcnn_plugin.modeling.proposal_generator.rpn_head.redraw`.
        """
        redraw(self.cls_score, 0.01, generator)
        redraw(self.bbox_pred, 0.001, generator)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Read the arguments from ``MODEL.ROI_BOX_HEAD``, ``MODEL.ROI_HEADS`` and ``TEST``."""
        ret = super().from_config(cfg, input_shape)
        head = cfg.MODEL.ROI_BOX_HEAD
        ret["box2box_transform"] = CaffeBox2BoxTransform(head.BBOX_REG_WEIGHTS, head.SCALE_CLAMP)
        ret["decode_growth"] = head.DECODE_GROWTH
        ret["decode_in_image"] = head.DECODE_IN_IMAGE
        ret["keep_ties"] = cfg.TEST.KEEP_TIES
        ret["topk_per_class"] = cfg.MODEL.ROI_HEADS.TOPK_PER_CLASS_TEST
        ret["integer_rois"] = cfg.MODEL.ROI_HEADS.INTEGER_ROIS
        ret["class_weights"] = head.CLASS_WEIGHTS
        ret["nms_method"] = cfg.MODEL.ROI_HEADS.NMS_METHOD_TEST
        for name in ("soft_nms_sigma", "soft_nms_min_score"):
            ret[name] = cfg.MODEL.ROI_HEADS[name.upper()]
        return ret

    def inference(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[torch.Tensor]]:
        """Turn predictions into detections: decode them, then :meth:`select`."""
        boxes = self.predict_boxes(predictions, proposals)
        return self.select(boxes, self.predict_probs(predictions, proposals), proposals)

    def select(
        self, boxes: list[torch.Tensor], scores: list[torch.Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[torch.Tensor]]:
        """Select detections by the threshold, the suppression and the limit of the predictor.

        Args:
            boxes: per image, decoded, (R_i, K*4) or (R_i, 4).
            scores: per image, probabilities (R_i, K+1).
            proposals: per image, of which only the image size matters.

        Returns:
            per image, ``pred_boxes``, ``scores`` and ``pred_classes``, by descending score; and the
            indices (n,) of their proposals.
        """
        results, rows = [], []
        for decoded, probabilities, proposed in zip(boxes, scores, proposals, strict=True):
            size = proposed.image_size
            found, found_scores, classes, row = detection_candidates(
                decoded, probabilities, size, self.test_score_thresh, self.topk_per_class
            )
            keep, kept_scores = suppress(
                found,
                found_scores,
                classes,
                method=self.nms_method,
                thresh=self.test_nms_thresh,
                sigma=self.soft_nms_sigma,
                min_score=self.soft_nms_min_score,
                limit=self.test_topk_per_image,
            )
            best = within_limit(kept_scores, self.test_topk_per_image, self.keep_ties)
            keep = keep[best]
            results.append(
                Instances(
                    size,
                    pred_boxes=Boxes(found[keep]),
                    scores=kept_scores[best],
                    pred_classes=classes[keep],
                )
            )
            rows.append(row[keep])
        return results, rows

    def predict_boxes(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """Apply the predicted deltas to the proposals.

        The image scale is that of the proposals' ``image_size``, 1 if it has none.

        Returns:
            per image, (R_i, K*4); clipped to the image if ``decode_in_image`` is on.
        """
        predictions = self._with_stock_deltas(predictions)
        # MATLAB decodes as Detectron2 does. py-faster-rcnn adds a pixel to x2 and y2, and does so
        # in the original image: it divides the proposals by the scale first (test.py, im_detect).
        sizes = [p.image_size for p in proposals]
        if self.decode_in_image:
            decoded = super().predict_boxes(predictions, [_to_image(p) for p in proposals])
            return [
                _to_network(grow(boxes, self.decode_growth), size)
                for boxes, size in zip(decoded, sizes, strict=True)
            ]
        decoded = super().predict_boxes(predictions, proposals)
        if self.decode_growth:
            decoded = [
                grow(boxes, self.decode_growth * image_scale(size))
                for boxes, size in zip(decoded, sizes, strict=True)
            ]
        return decoded

    def predict_boxes_for_gt_classes(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> list[torch.Tensor]:
        """Decode boxes of the true classes, (R_i, 4), for Detectron2's ``train_on_pred_boxes``."""
        return super().predict_boxes_for_gt_classes(self._with_stock_deltas(predictions), proposals)

    def losses(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """Compute the losses, and log how good the classifier is.

        Rewrites Detectron2's method so that a GPU has to wait less often.

        Both losses are sums over RoIs, divided by their number, whatever the weights are. A class's
        weight multiplies the class loss of its RoIs, a RoI's own weight both losses.

        Args:
            predictions: see the module.
            proposals: per image, with ``proposal_boxes``, ``gt_classes`` and, if there is ground
                truth, ``gt_boxes``; perhaps ``loss_weights`` (R_i,), 1 where an image has none.

        Returns:
            ``loss_cls`` and ``loss_box_reg``, scalars.
        """
        if not proposals or (self.use_sigmoid_ce and not _have_weights(proposals)):
            return super().losses(predictions, without_gradient(proposals))
        scores, deltas = predictions
        boxes, gt_boxes, gt_classes, weights = self._labelled(scores, proposals)
        _log_classification(scores.detach(), gt_classes)
        # Not in the call without need: a subclass may override the method as Detectron2 has it.
        extra = {} if weights is None else {"weights": weights}
        if weights is None and self.class_weights is None:
            loss_cls = cross_entropy(scores, gt_classes, reduction="mean")
        else:
            loss_cls = self._class_losses(scores, gt_classes, weights).sum()
            loss_cls = loss_cls / max(gt_classes.numel(), 1)
        losses = {
            "loss_cls": loss_cls,
            "loss_box_reg": self.box_reg_loss(boxes, gt_boxes, deltas, gt_classes, **extra),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def losses_per_roi(
        self, predictions: tuple[torch.Tensor, torch.Tensor], proposals: list[Instances]
    ) -> dict[str, torch.Tensor]:
        """Compute the losses of every RoI, for those who choose among them.

        Their sums, divided by the number of RoIs, are what :meth:`losses` returns; nothing is
        logged.

        Args:
            predictions: see the module.
            proposals: see :meth:`losses`; at least one image.

        Returns:
            ``loss_cls`` and ``loss_box_reg``, (R,) each, with the weights of classes, RoIs and
            losses.

        Raises:
            UserError: the class loss is not the softmax loss.
        """
        if self.use_sigmoid_ce:
            raise UserError(
                "losses of single RoIs are for the softmax loss: set "
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE False"
            )
        scores, deltas = predictions
        boxes, gt_boxes, gt_classes, weights = self._labelled(scores, proposals)
        fg_inds, box_losses = self._box_losses(boxes, gt_boxes, deltas, gt_classes, weights)
        losses = {
            "loss_cls": self._class_losses(scores, gt_classes, weights),
            "loss_box_reg": deltas.new_zeros(len(deltas), dtype=box_losses.dtype).index_add(
                0, fg_inds, box_losses.sum(dim=1)
            ),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def _labelled(
        self, scores: torch.Tensor, proposals: list[Instances]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Join the images: boxes (R, 4), their objects' (R, 4), classes (R,), weights (R,) or None.

        Raises:
            UserError: RoIs have weights, and the class loss is not the softmax loss.
        """
        weights = None
        if _have_weights(proposals):
            if self.use_sigmoid_ce:
                raise UserError(
                    "loss_weights of RoIs are for the softmax loss: set "
                    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE False"
                )
            weights = torch.cat(
                [
                    p.loss_weights if p.has("loss_weights") else scores.new_ones(len(p))
                    for p in proposals
                ]
            )
        proposals = without_gradient(proposals)  # targets are constants
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        # Without any ground truth all RoIs are background, whose boxes do not count.
        gt_boxes = [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes) for p in proposals]
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        return boxes, torch.cat([b.tensor for b in gt_boxes]), gt_classes, weights

    def _class_losses(
        self, scores: torch.Tensor, gt_classes: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        loss = F.cross_entropy(scores, gt_classes, weight=self.class_weights, reduction="none")
        return loss if weights is None else loss * weights

    def _with_stock_deltas(
        self, predictions: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scores, deltas = predictions
        return scores, self.target_statistics.denormalise(deltas)

    def box_reg_loss(
        self,
        proposal_boxes: torch.Tensor,
        gt_boxes: torch.Tensor,
        pred_deltas: torch.Tensor,
        gt_classes: torch.Tensor,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the box loss, on normalised targets if there are statistics.

        Args:
            proposal_boxes: (R, 4).
            gt_boxes: (R, 4), meaningful where the RoI is foreground.
            pred_deltas: see the module.
            gt_classes: (R,) int64; K is background.
            weights: (R,), of RoIs; None: all 1.

        Returns:
            sum over foreground RoIs and coordinates, divided by R.
        """
        if self.box_reg_loss_type != "smooth_l1" and weights is None:
            pred_deltas = self.target_statistics.denormalise(pred_deltas)
            return super().box_reg_loss(proposal_boxes, gt_boxes, pred_deltas, gt_classes)
        _, loss = self._box_losses(proposal_boxes, gt_boxes, pred_deltas, gt_classes, weights)
        return loss.sum() / max(gt_classes.numel(), 1.0)

    def _box_losses(
        self,
        boxes: torch.Tensor,
        gt_boxes: torch.Tensor,
        deltas: torch.Tensor,
        gt_classes: torch.Tensor,
        weights: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the box losses of the foreground: its indices (F,), losses (F, 4) or (F, 1)."""
        statistics, kind = self.target_statistics, self.box_reg_loss_type
        is_smooth_l1 = kind == "smooth_l1"
        if not is_smooth_l1:  # the others compare decoded boxes
            deltas = statistics.denormalise(deltas)
        fg_inds = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero().squeeze(1)
        rows = gt_classes[fg_inds].clamp(max=statistics.num_classes - 1)  # all 0 if agnostic
        boxes, gt_boxes = boxes[fg_inds], gt_boxes[fg_inds]
        if self.integer_rois:
            boxes = whole_pixels(boxes)
        deltas = deltas.view(-1, statistics.num_classes, 4)[fg_inds, rows]
        transform = self.box2box_transform
        if is_smooth_l1:
            targets = statistics.normalise(transform.get_deltas(boxes, gt_boxes), rows)
            loss = smooth_l1_loss(deltas, targets, beta=self.smooth_l1_beta)
        else:
            loss = box_loss(kind, transform, boxes, deltas, gt_boxes, self.smooth_l1_beta)[:, None]
        return fg_inds, loss if weights is None else loss * weights[fg_inds, None]


def _have_weights(proposals: list[Instances]) -> bool:
    """Tell whether any RoI has a weight of its own."""
    return any(p.has("loss_weights") for p in proposals)


def _log_classification(scores: torch.Tensor, gt_classes: torch.Tensor) -> None:
    """Log the classifier's accuracy, from scores (R, K+1) and classes (R,), K being background.

    Rewrites Detectron2's ``_log_classification_stats`` so that a GPU has to wait only once.
    """
    total = gt_classes.numel()
    if total == 0:
        return
    background = scores.shape[1] - 1
    predicted = scores.argmax(dim=1)
    right = predicted == gt_classes
    is_object = (gt_classes >= 0) & (gt_classes < background)
    counts = torch.stack(
        [right, is_object, right & is_object, is_object & (predicted == background)]
    )
    num_right, num_objects, right_objects, missed = counts.sum(dim=1).tolist()
    storage = get_event_storage()
    storage.put_scalar("fast_rcnn/cls_accuracy", num_right / total)
    if num_objects > 0:
        storage.put_scalar("fast_rcnn/fg_cls_accuracy", right_objects / num_objects)
        storage.put_scalar("fast_rcnn/false_negative", missed / num_objects)


def _to_image(proposals: Instances) -> Instances:
    """Scale proposals from network-input to original-image pixels, dividing *inclusive* corners.

    Source: py-faster-rcnn test.py (im_detect).
    """
    size, boxes = proposals.image_size, proposals.proposal_boxes.tensor
    one = of_second_corner(boxes)
    return Instances(size, proposal_boxes=Boxes((boxes - one) / image_scale(size) + one))


def _to_network(boxes: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """Clip boxes, (R, K*4), to the image, and scale them from its pixels to those of the network.

    The inverse of Detectron2's scaling, which divides x by the ratio of the widths and y by that of
    the heights.
    """
    if not isinstance(image_size, ScaledImageSize):  # scale 1, and Detectron2 clips
        return boxes
    height, width = image_size.original
    x, y = image_size[1] / width, image_size[0] / height
    of_x = 1 - torch.arange(boxes.shape[1], device=boxes.device) % 2  # x and y may be traced
    scales = x * of_x.to(boxes.dtype) + y * (1 - of_x).to(boxes.dtype)
    return clip_inclusive(boxes, image_size.original) * scales

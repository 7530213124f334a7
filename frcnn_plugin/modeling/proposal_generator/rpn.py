"""The paper's region proposal network (section 3.1).

Shape shorthand in this module: N images in the batch, A anchors per cell (9), a map of H x W cells,
R anchors of an image, H * W * A summed over the maps. As in Detectron2's RPN, ``anchors``, logits
(N, H*W*A) and deltas (N, H*W*A, 4) are lists with one entry per feature map.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import get_event_storage
from detectron2.utils.memory import retry_if_cuda_oom
from torch.nn import functional as F

from ...errors import check_choice
from ...host import register
from ..box_ops import inside_image
from ..box_regression import CaffeBox2BoxTransform, box_loss
from ..image_size import image_scale
from ..matcher import AsyncMatcher
from ..proposal_gradient import AT_BORDER, PROPOSAL_GRADIENTS, decode_with_gradient
from ..target_statistics import NormalisedBox2BoxTransform, TargetStatistics
from .selection import Selection, select_proposals

logger = logging.getLogger(__name__)

_NOT_FINITE = "the RPN predicts NaN or infinite numbers"


@register(PROPOSAL_GENERATOR_REGISTRY)
class PaperRPN(RPN):
    """Detectron2's RPN with the original rules for labels, losses and proposals.

    - Anchors that cross the border are removed *before* matching, so that every ground truth keeps
      its best inside anchor (Detectron2 matches first, example E9e).
    - Losses are divided by the number of anchors really sampled, or, as the paper does with the box
      loss, by the number of locations.
    - Proposals: see :func:`~frcnn_plugin.modeling.proposal_generator.selection.select_proposals`.
    - Box targets are whitened while ``target_statistics`` are set (MATLAB: proposal_train.m).

    The minimum size in original-image pixels needs the image scale, which
    :class:`~frcnn_plugin.modeling.meta_arch.PaperRCNN` provides; under another meta-architecture
    the scale counts as 1. Several feature maps compete in one common selection.

    Semi-supervised projects also call it in training without targets, see :meth:`forward`.
    """

    box_gradient = True  # boxes of proposals may have one, see MODEL.PAPER_RCNN.PROPOSAL_GRADIENT

    @configurable
    def __init__(
        self,
        *,
        loss_norm: str = "samples",
        guard_zero_iou: bool = True,
        min_size_image: float = 16.0,
        proposal_gradient: bool = False,
        proposal_gradient_clip: float = 0.0,
        proposal_gradient_at_border: str = "exact",
        random_scores: bool = False,
        seed: int = 0,
        regress: bool = True,
        **kwargs: Any,
    ) -> None:
        """Set the constants.

        Args:
            loss_norm: "samples" or "locations", see ``MODEL.RPN.LOSS_NORM``.
            guard_zero_iou: see ``MODEL.RPN.GUARD_ZERO_IOU``.
            min_size_image: smallest side of a proposal, original-image pixels.
            proposal_gradient: boxes of proposals have a gradient in training; their readers must
                know, as :class:`~frcnn_plugin.modeling.CaffeROIHeads` does.
            proposal_gradient_clip: see ``MODEL.RPN.PROPOSAL_GRADIENT_CLIP``.
            proposal_gradient_at_border: see ``MODEL.RPN.PROPOSAL_GRADIENT_AT_BORDER``.
            random_scores: rank boxes at random, see ``MODEL.RPN.SCORES``.
            seed: of these random numbers, with what the network predicts for the image.
            regress: whether proposals are moved by the box layer, see ``MODEL.RPN.REGRESS``.
            kwargs: arguments of Detectron2's RPN.

        Raises:
            UserError: unknown ``loss_norm`` or ``proposal_gradient_at_border``.
        """
        super().__init__(**kwargs)
        check_choice("MODEL.RPN.LOSS_NORM", loss_norm, ("samples", "locations"))
        key = "MODEL.RPN.PROPOSAL_GRADIENT_AT_BORDER"
        check_choice(key, proposal_gradient_at_border, AT_BORDER)
        self.loss_norm = loss_norm
        self.proposal_gradient = proposal_gradient
        self.proposal_gradient_clip = proposal_gradient_clip
        self.proposal_gradient_at_border = proposal_gradient_at_border
        # PaperRCNN sets it: while the RPN trains alone nothing reads proposals, and NMS takes time.
        self.select_in_training = True
        # Set by StepGuard, which tells more about a loss that is not finite than an error here.
        self.losses_are_watched = False
        self._warned = False  # of an image in which no anchor lies
        stock = kwargs["anchor_matcher"]
        self.anchor_matcher = AsyncMatcher(
            stock.thresholds[1:-1],  # without the infinite ones that Detectron2 adds
            stock.labels,
            stock.allow_low_quality_matches,
            guard_zero=guard_zero_iou,
        )
        self.min_size_image = min_size_image
        self.random_scores, self.seed, self.regress = random_scores, seed, regress
        self.target_statistics = TargetStatistics(1)
        # Detectron2's RPN encodes targets and decodes predictions with it.
        self.box2box_transform: Any = NormalisedBox2BoxTransform(
            kwargs["box2box_transform"], self.target_statistics
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.target_statistics.clear_unless_in(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Read the arguments of :meth:`__init__` from ``MODEL.RPN``."""
        ret = super().from_config(cfg, input_shape)
        # SCALE_CLAMP is infinite by default: the originals decode any exp(dw) (bbox_transform.py).
        # Detectron2 stops at 1000 / 16 so that exp cannot overflow; here a box that overflows is
        # clipped or dropped like any other.
        ret["box2box_transform"] = CaffeBox2BoxTransform(
            cfg.MODEL.RPN.BBOX_REG_WEIGHTS, cfg.MODEL.RPN.SCALE_CLAMP, cfg.MODEL.RPN.DECODE_GROWTH
        )
        ret["guard_zero_iou"] = cfg.MODEL.RPN.GUARD_ZERO_IOU
        ret["loss_norm"] = cfg.MODEL.RPN.LOSS_NORM
        ret["min_size_image"] = cfg.MODEL.RPN.MIN_SIZE_IMAGE
        gradient = cfg.MODEL.PAPER_RCNN.PROPOSAL_GRADIENT
        check_choice("MODEL.PAPER_RCNN.PROPOSAL_GRADIENT", gradient, PROPOSAL_GRADIENTS)
        ret["proposal_gradient"] = gradient != "none"
        ret["proposal_gradient_clip"] = cfg.MODEL.RPN.PROPOSAL_GRADIENT_CLIP
        ret["proposal_gradient_at_border"] = cfg.MODEL.RPN.PROPOSAL_GRADIENT_AT_BORDER
        ret["random_scores"] = cfg.MODEL.RPN.SCORES == "random"
        ret["seed"] = max(cfg.SEED, 0)
        ret["regress"] = cfg.MODEL.RPN.REGRESS
        return ret

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        gt_instances: list[Instances] | None = None,
        compute_loss: bool = True,
        compute_val_loss: bool = False,
        branch: str = "",
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Propose, and compute losses in training.

        Detectron2's method with the two switches of Unbiased Teacher and its successors.

        Args:
            images: only their sizes are used.
            features: feature maps, each (N, C, H, W).
            gt_instances: per image, with ``gt_boxes``; needed for losses only.
            compute_loss: False: propose as in training, without targets and losses.
            compute_val_loss: compute losses in evaluation as well.
            branch: not used.

        Returns:
            see :meth:`predict_proposals` and :meth:`losses`; no losses in evaluation.

        Raises:
            FloatingPointError: see :meth:`losses`; in training only.
        """
        anchors = self.anchor_generator([features[f] for f in self.in_features])
        inputs = self.head_inputs(features)
        logits, deltas = self.predict_anchors(inputs, anchors)
        losses: dict[str, torch.Tensor] = {}
        if (self.training and compute_loss) or compute_val_loss:
            assert gt_instances is not None, "PaperRPN needs gt_instances for its losses"
            labels, boxes = self.label_and_sample_anchors(anchors, gt_instances)
            learnt = self.predict_sampled(inputs, anchors, labels, logits, deltas)
            losses = self.losses(anchors, learnt[0], labels, learnt[1], boxes)
        elif self.training and not all(x.isfinite().all() for x in (*logits, *deltas)):
            raise FloatingPointError(_NOT_FINITE)
        return self.predict_proposals(anchors, logits, deltas, images.image_sizes), losses

    def head_inputs(self, features: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """Return what the head reads: the maps of the anchors, each (N, C, H, W)."""
        return [features[f] for f in self.in_features]

    def predict_anchors(
        self, inputs: list[torch.Tensor], anchors: list[Boxes]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Predict for all anchors, from :meth:`head_inputs`: logits and deltas, see the module."""
        logits, deltas = self.rpn_head(inputs)
        logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]  # (N, H*W*A)
        box_dim = self.anchor_generator.box_dim
        deltas = [  # (N, A*4, H, W) -> (N, A, 4, H, W) -> (N, H, W, A, 4) -> (N, H*W*A, 4)
            x.view(x.shape[0], -1, box_dim, *x.shape[2:]).permute(0, 3, 4, 1, 2).flatten(1, -2)
            for x in deltas
        ]
        return logits, deltas

    def predict_sampled(
        self,
        inputs: list[torch.Tensor],
        anchors: list[Boxes],
        labels: list[torch.Tensor],
        logits: list[torch.Tensor],
        deltas: list[torch.Tensor],
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return logits and deltas that the mini-batch, labels of 0 or 1, learns by: those given.

        A head that computes all anchors without a gradient computes these again.
        """
        return logits, deltas

    def match_anchors(self, anchors: Boxes, gt_boxes: Boxes) -> tuple[torch.Tensor, torch.Tensor]:
        """Label anchors by IoU alone.

        Positive: IoU >= 0.7 with a ground truth, or the highest IoU with some ground truth, all
        ties included. Negative: IoU < 0.3 with all. An anchor regresses to the ground truth that it
        overlaps most, even if another one made it positive (examples E9, E9d).

        Args:
            anchors: (I, 4), those inside the image.
            gt_boxes: (G, 4), same frame.

        Returns:
            labels (I,) int8 in {1 object, 0 background, -1 ignore}; index of the ground truth (I,).
        """
        # The IoU of continuous boxes equals that of the originals' inclusive ones with their "+ 1".
        iou = retry_if_cuda_oom(pairwise_iou)(gt_boxes, anchors)  # (G, I)
        matched, labels = retry_if_cuda_oom(self.anchor_matcher)(iou)
        return labels.to(anchors.device), matched.to(anchors.device)

    def label_anchors(
        self, anchors: Boxes, instances: Instances
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Label the anchors of one image, without drawing a mini-batch.

        Args:
            anchors: (R, 4), network-input pixels.
            instances: with ``gt_boxes`` in the same frame.

        Returns:
            labels (R,) int8, 1 object, 0 background, -1 neither or across the border; and the
            matched ground-truth boxes (R, 4), meaningful where the label is 1.
        """
        gt_boxes = instances.gt_boxes
        is_inside = inside_image(anchors.tensor, instances.image_size, self.anchor_boundary_thresh)
        # Outside anchors go before matching (anchor_target_layer.py; in MATLAB their overlaps are
        # 0): if one were an object's best anchor, the object would be left without any.
        inside = is_inside.nonzero().squeeze(1)
        if len(inside) == 0 and not self._warned:
            self._warned = True
            height, width = instances.image_size
            logger.warning(
                "no anchor lies inside an image of %d x %d (height x width, as the network sees "
                "it): the RPN learns nothing from such images, and its losses are 0 where all are "
                "so. Use smaller MODEL.ANCHOR_GENERATOR.SIZES or a larger INPUT.MIN_SIZE_TRAIN, or "
                "train on anchors across the border with MODEL.RPN.BOUNDARY_THRESH -1. Other "
                "such images are not reported",
                *(height, width),
            )
        labels_inside, matched = self.match_anchors(anchors[inside], gt_boxes)
        labels = torch.full_like(is_inside, -1, dtype=torch.int8)
        labels[inside] = labels_inside
        matched_boxes = torch.zeros_like(anchors.tensor)
        if len(gt_boxes):
            matched_boxes[inside] = gt_boxes.tensor[matched]
        return labels, matched_boxes

    @torch.jit.unused
    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Label all anchors and sample a mini-batch of them per image.

        Replaces Detectron2's method, which matches before it drops outside anchors.

        Returns:
            per image, labels and boxes as from :meth:`label_anchors`, with the label -1 for all
            anchors that are not in the mini-batch.
        """
        all_anchors = Boxes.cat(anchors)
        gt_labels, matched_gt_boxes = [], []
        for instances in gt_instances:
            labels, boxes = self.label_anchors(all_anchors, instances)
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
        """Compute ``loss_rpn_cls`` and ``loss_rpn_loc``, with the originals' divisors.

        ``gt_labels`` and ``gt_boxes`` are those of :meth:`label_and_sample_anchors`.

        Raises:
            FloatingPointError: NaN or infinite numbers are predicted. Detectron2 raises, too.
        """
        num_locations = None
        if self.loss_norm == "locations":
            counts = zip(pred_objectness_logits, self.anchor_generator.num_anchors, strict=True)
            num_locations = sum(level.shape[1] // num_anchors for level, num_anchors in counts)
        labels = torch.stack(gt_labels)
        logits = torch.cat(pred_objectness_logits, dim=1)
        deltas = torch.cat(pred_anchor_deltas, dim=1)
        cls, loc = rpn_losses(
            Boxes.cat(anchors).tensor,
            logits,
            deltas,
            labels,
            torch.stack(gt_boxes),
            self.box2box_transform,
            beta=self.smooth_l1_beta,
            kind=self.box_reg_loss_type,
            num_locations=num_locations,
        )
        # What is decoded may overflow, as the originals limit nothing; what is predicted may not.
        bad = ~(logits.isfinite().all() & deltas.isfinite().all())
        if self.losses_are_watched:
            bad &= (cls + loc).isfinite()
        _log_sampled(labels, bad)
        losses = {"loss_rpn_cls": cls, "loss_rpn_loc": loc}
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        """Decode all anchors and select proposals; scores have no gradient, nor has the selection.

        Boxes have one in training if ``proposal_gradient`` is on, else none.

        Returns:
            per image, ``proposal_boxes`` and ``objectness_logits``, sorted by descending score; an
            empty list in training if ``select_in_training`` is off.
        """
        if self.training and not self.select_in_training:
            return []
        selections = self.selections(
            anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes
        )
        boxes = [s.boxes for s in selections]
        if self.proposal_gradient and self.training and torch.is_grad_enabled():
            all_anchors = Boxes.cat(anchors).tensor
            all_deltas = torch.cat(pred_anchor_deltas, dim=1)
            boxes = [
                decode_with_gradient(
                    deltas[s.indices],
                    all_anchors[s.indices],
                    size,
                    self.box2box_transform,
                    limit=self.proposal_gradient_clip,
                    at_border=self.proposal_gradient_at_border,
                )
                for deltas, s, size in zip(all_deltas, selections, image_sizes, strict=True)
            ]
        return [
            Instances(size, proposal_boxes=Boxes(b), objectness_logits=s.scores)
            for size, b, s in zip(image_sizes, boxes, selections, strict=True)
        ]

    @torch.no_grad()
    def selections(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        image_sizes: Sequence[tuple[int, int]],
        *,
        count: bool = False,
    ) -> list[Selection]:
        """Select proposals and tell which anchors they come from.

        The arguments are those of :meth:`predict_proposals`; ``count`` is that of
        :func:`~frcnn_plugin.modeling.select_proposals`.

        Returns:
            per image; ``indices`` count anchors through all feature maps.
        """
        all_scores = torch.cat(pred_objectness_logits, dim=1).float()
        if self.regress:
            all_boxes = torch.cat(self._decode_proposals(anchors, pred_anchor_deltas), dim=1)
        else:
            all_boxes = Boxes.cat(anchors).tensor.expand(len(all_scores), -1, -1)
        if self.random_scores:
            all_scores = torch.stack([self._random_scores(scores) for scores in all_scores])
        return [
            select_proposals(
                boxes,
                scores,
                image_size,
                # The paper's 16 px are of the original image (proposal_layer.py: RPN_MIN_SIZE *
                # im_info[2]), so the limit grows with the image.
                min_side=max(self.min_box_size, self.min_size_image * image_scale(image_size)),
                pre_nms_topk=int(self.pre_nms_topk[self.training]),
                post_nms_topk=int(self.post_nms_topk[self.training]),
                nms_thresh=self.nms_thresh,
                count=count,
            )
            for boxes, scores, image_size in zip(all_boxes, all_scores, image_sizes, strict=True)
        ]

    def _random_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Draw a number in [0, 1) per box, whatever was drawn before; -inf stays out."""
        # From the scores, so that images differ, and neither their order nor the number of
        # processes matters.
        content = scores.contiguous().cpu().numpy().tobytes()
        generator = torch.Generator().manual_seed(zlib.crc32(content, self.seed))
        drawn = torch.rand(len(scores), generator=generator).to(scores.device)
        return drawn.where(scores.isfinite(), scores)


def _log_sampled(labels: torch.Tensor, bad: torch.Tensor) -> None:
    """Log how many anchors were sampled, or raise; a GPU has to wait only once for both."""
    counts = torch.stack([(labels == 1).sum(), (labels == 0).sum(), bad.long()])
    positive, negative, is_bad = counts.tolist()
    if is_bad:
        raise FloatingPointError(_NOT_FINITE)
    storage = get_event_storage()
    for name, count in (("pos", positive), ("neg", negative)):
        storage.put_scalar(f"rpn/num_{name}_anchors", count / len(labels))


def rpn_losses(
    anchors: torch.Tensor,
    logits: torch.Tensor,
    deltas: torch.Tensor,
    labels: torch.Tensor,
    gt_boxes: torch.Tensor,
    transform: Any,
    *,
    beta: float,
    kind: str = "smooth_l1",
    num_locations: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the paper's two losses of a mini-batch of anchors (equation 1), without weights.

    Detectron2 computes them on all anchors, by masks; here only the sampled ones are touched.

    Args:
        anchors: (R, 4), continuous XYXY.
        logits: (N, R), object - background.
        deltas: (N, R, 4), as predicted.
        labels: (N, R), 1 object, 0 background, -1 not in the mini-batch.
        gt_boxes: (N, R, 4), meaningful where the label is 1; in the frame of ``anchors``.
        transform: encodes boxes, see :class:`~frcnn_plugin.modeling.CaffeBox2BoxTransform`.
        beta: of smooth L1, 1 / sigma^2.
        kind: see :func:`~frcnn_plugin.modeling.box_loss`.
        num_locations: cells per image, by which the box loss is divided; None: by the number of
            sampled anchors.

    Returns:
        classification and box loss, scalars.
    """
    labels = labels.flatten()
    sampled = (labels >= 0).nonzero().squeeze(1)  # from here on only these few
    labels = labels[sampled]
    is_object = labels == 1
    src = anchors[sampled % len(anchors)]
    # Background has no box: it gets its own anchor, so that nothing becomes infinite, ...
    boxes = torch.where(is_object[:, None], gt_boxes.flatten(0, 1)[sampled], src)
    loc = box_loss(kind, transform, src, deltas.flatten(0, 1)[sampled], boxes, beta)
    loc = (loc * is_object).sum()  # ... and no weight.
    logits = logits.flatten()[sampled]
    cls = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
    # Not 256: where few anchors are inside the image, the batch is smaller (example E10).
    num_sampled = max(len(sampled), 1)
    # The paper's lambda of 10 presumes the box loss divided by the locations, about 2,400, ten
    # times the mini-batch; py-faster-rcnn divides by the samples and has lambda 1.
    loc_norm = num_sampled if num_locations is None else len(gt_boxes) * num_locations
    return cls / num_sampled, loc / loc_norm

"""What ROI heads compute on the way to detections: features, class scores, which proposal.

Everything explicitly calls the parts that ROI heads have in Detectron2 (pooler, head, predictor),
so it works for Detectron2's heads too, under autocast, and with compiled parts.

Shape shorthand in this module: R boxes over all images, D numbers per feature vector (fc7: 4096),
K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances

from ...errors import UserError
from ...host import transform_rois
from .box_head import each_head


def check_has_features(roi_heads: Any) -> None:
    """Check that ROI heads compute one feature vector per box; a UserError says if not."""
    heads = each_head(getattr(roi_heads, "box_head", None))
    if not (
        isinstance(roi_heads, Res5ROIHeads)
        or (isinstance(roi_heads, StandardROIHeads) and len(heads) == 1)
    ):
        raise UserError(
            f"{type(roi_heads).__name__} has not one feature vector per box: features need ROI "
            "heads with one box head, such as CaffeROIHeads, StandardROIHeads or Res5ROIHeads"
        )


def box_features(
    roi_heads: Any, features: dict[str, torch.Tensor], boxes: list[Boxes]
) -> torch.Tensor:
    """Compute the feature vectors that class scores are computed from; in the paper's heads, fc7.

    Args:
        roi_heads: ROI heads with one box head: this plugin's, Detectron2's StandardROIHeads and
            Res5ROIHeads, and their subclasses.
        features: feature maps of the backbone, each (N, C, H, W).
        boxes: per image, continuous XYXY in network-input pixels.

    Returns:
        (R, D), in the order of the boxes.

    Raises:
        UserError: heads of another kind.
    """
    check_has_features(roi_heads)
    if isinstance(roi_heads, Res5ROIHeads):
        maps = [features[name] for name in roi_heads.in_features]
        return transform_rois(roi_heads, maps, boxes).mean(dim=[2, 3])
    maps = [features[name] for name in roi_heads.box_in_features]
    return roi_heads.box_head(roi_heads.box_pooler(maps, boxes)).flatten(1)


def classify(
    roi_heads: Any, features: dict[str, torch.Tensor], boxes: list[Instances]
) -> list[Instances]:
    """Compute features and class scores of given boxes: none is dropped, the order is kept.

    ``boxes`` have ``proposal_boxes`` in network-input pixels; for the rest see
    :func:`box_features`.

    Returns:
        per image new Instances with ``proposal_boxes``, ``fc7`` (R_i, D) and ``scores_all``
        (R_i, K+1) probabilities, background last.
    """
    fc7 = box_features(roi_heads, features, [b.proposal_boxes for b in boxes])
    predictor = roi_heads.box_predictor
    scores = predictor.predict_probs(predictor(fc7), boxes)
    split = fc7.split([len(b) for b in boxes])
    return [
        Instances(b.image_size, proposal_boxes=b.proposal_boxes, fc7=vectors, scores_all=all_scores)
        for b, vectors, all_scores in zip(boxes, split, scores, strict=True)
    ]


def detect_with_features(
    roi_heads: Any, features: dict[str, torch.Tensor], proposals: list[Instances]
) -> list[Instances]:
    """Detect as ``roi_heads``, in evaluation mode, does, and tell what detections were made from.

    ``proposals`` have ``proposal_boxes`` in network-input pixels and ``objectness_logits``; see
    :func:`box_features` for the rest.

    Returns:
        per image the Instances of ``roi_heads.forward`` (``pred_boxes``, ``scores``,
        ``pred_classes``, masks if there are any), and for each detection ``fc7`` (D,),
        ``scores_all`` (K+1,), ``proposal_index`` (int64, into the proposals), ``proposal_boxes``,
        and ``objectness`` (probability that the proposal is an object).
    """
    fc7 = box_features(roi_heads, features, [p.proposal_boxes for p in proposals])
    predictor = roi_heads.box_predictor
    predictions = predictor(fc7)
    detections, kept = predictor.inference(predictions, proposals)
    scores = predictor.predict_probs(predictions, proposals)
    decoded = predictor.predict_boxes(predictions, proposals)
    split = fc7.split([len(p) for p in proposals])
    for i, (instances, proposed) in enumerate(zip(detections, proposals, strict=True)):
        # Detectron2 counts rows without those that are not finite.
        finite = decoded[i].isfinite().all(dim=1) & scores[i].isfinite().all(dim=1)
        index = finite.nonzero().squeeze(1)[kept[i]]
        instances.fc7, instances.scores_all = split[i][index], scores[i][index]
        instances.proposal_index = index
        instances.proposal_boxes = proposed.proposal_boxes[index]
        instances.objectness = proposed.objectness_logits[index].float().sigmoid()
    return roi_heads.forward_with_given_boxes(features, detections)

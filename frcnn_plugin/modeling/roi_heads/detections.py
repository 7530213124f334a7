"""Which of a head's boxes become detections: NMS per class, best of the image. No weights here.

Rewrites Detectron2's ``fast_rcnn_inference_single_image`` and ``detector_postprocess``, which index
with masks: a GPU has to count each result before the next operator starts. Here it counts only once
per choice.
"""

from __future__ import annotations

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances
from torchvision.ops import batched_nms

from ...errors import UserError
from ...layers.nms import DECAYS, soft_nms
from ..box_ops import clip_boxes, corner_factors, scale_inclusive
from ..image_size import image_scale

# How boxes that overlap better ones are suppressed.
NMS_METHODS = ("hard", *DECAYS)


def detection_candidates(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    image_size: tuple[int, int],
    score_thresh: float,
    topk_per_class: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gather the boxes of all classes that score high enough, clipped to the image.

    Args:
        boxes: (R, K*4), or (R, 4) if all classes share them; XYXY in network-input pixels.
        scores: (R, K+1), background last. Rows with numbers that are not finite are left out.
        image_size: (height, width) of the network input.
        score_thresh: only higher scores count.
        topk_per_class: the best of each class that are gathered; 0: all.

    Returns:
        boxes (D, 4), scores (D,), classes (D,) int64; and the row of each, counted as Detectron2
        does, without the rows that were left out.
    """
    finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    scores = scores[:, :-1]
    chosen = (scores > score_thresh) & finite[:, None]
    if 0 < topk_per_class < len(scores):
        best = scores.masked_fill(~chosen, -1.0).topk(topk_per_class, dim=0).indices
        chosen &= torch.zeros_like(chosen).scatter_(0, best, True)
    rows, classes = chosen.nonzero().unbind(1)
    of_class = boxes.view(-1, boxes.shape[1] // 4, 4)
    gathered = of_class[rows, classes if of_class.shape[1] > 1 else torch.zeros_like(classes)]
    counted = finite.cumsum(0) - 1
    return clip_boxes(gathered, image_size), scores[rows, classes], classes, counted[rows]


def select_detections(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    *,
    nms_thresh: float,
    topk: int,
    keep_ties: bool = False,
) -> torch.Tensor:
    """Suppress within each class, then keep the best of all classes.

    Args:
        boxes: (D, 4), XYXY.
        scores: (D,).
        classes: (D,) int64.
        nms_thresh: IoU above which the lower-scored box is suppressed.
        topk: detections kept at most; negative: all.
        keep_ties: all that score as the last kept are kept as well (example E20).

    Returns:
        (n,) int64 indices, by descending score.

    Source: py-faster-rcnn test.py.
    """
    keep, kept_scores = suppress(boxes, scores, classes, method="hard", thresh=nms_thresh)
    return keep[within_limit(kept_scores, topk, keep_ties)]


def suppress(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    classes: torch.Tensor,
    *,
    method: str,
    thresh: float,
    sigma: float = 0.5,
    min_score: float = 0.001,
    limit: int = -1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Suppress within each class, by one of :data:`NMS_METHODS`.

    Args:
        boxes: (D, 4), XYXY.
        scores: (D,).
        classes: (D,) int64.
        method: "hard": boxes that overlap a better one are dropped; "linear", "gaussian": their
            scores decay, see :func:`~frcnn_plugin.layers.soft_nms`.
        thresh: IoU above which a box is dropped, or decays linearly.
        sigma: of the Gaussian decay.
        min_score: decayed scores below it drop a box.
        limit: how many of the best are wanted, beside those that tie with the last; -1: all. The
            result may have more.

    Returns:
        (n,) int64 indices, by descending score; and their scores after suppression, (n,).

    Raises:
        UserError: soft suppression is to be traced, which would freeze an example's choices.
    """
    if method == "hard":
        # batched_nms keeps the classes apart by moving their boxes far away from each other. There,
        # float32 coordinates would lose up to 0.01 px, which can change a decision; float64 loses
        # none.
        keep = batched_nms(boxes.double(), scores.double(), classes, thresh)
        return keep, scores[keep]
    if torch.jit.is_tracing():
        raise UserError(
            f"MODEL.ROI_HEADS.NMS_METHOD_TEST is '{method}', which cannot be exported: set it to "
            "hard"
        )
    return soft_nms(
        boxes,
        scores,
        classes,
        method=method,
        thresh=thresh,
        sigma=sigma,
        min_score=min_score,
        limit=limit,
    )


def within_limit(scores: torch.Tensor, topk: int, keep_ties: bool = False) -> torch.Tensor | slice:
    """Return an index for the best of descending scores, (n,); see :func:`select_detections`."""
    if keep_ties and topk > 0 and (torch.jit.is_tracing() or topk < len(scores)):
        # Not a mask, at each use of which a GPU would have to wait.
        return (scores >= scores[:topk][-1:]).nonzero().squeeze(1)
    return slice(topk if topk >= 0 else None)


def to_original_size(
    result: Instances,
    height: int,
    width: int,
    *,
    inclusive: bool = False,
    corners: bool = False,
) -> Instances:
    """Scale a result to the original image of this size, clip it, and drop boxes without area.

    ``result`` has ``pred_boxes`` or ``proposal_boxes`` in network-input pixels; their boxes are
    changed in place. With ``inclusive`` corners are divided by the image scale as in
    py-faster-rcnn, which clips no more then: x2 may be up to a pixel beyond the width. With
    ``corners`` the last pixel goes to the last one, as in MATLAB.
    """
    if result.has("pred_masks") or result.has("pred_keypoints"):
        return detector_postprocess(result, height, width)
    scaled = Instances((height, width), **result.get_fields())
    boxes = scaled.get("pred_boxes" if result.has("pred_boxes") else "proposal_boxes")
    if inclusive:
        boxes.tensor = scale_inclusive(boxes.tensor, 1 / image_scale(result.image_size))
    elif corners:
        factors = corner_factors(result.image_size, scaled.image_size)
        boxes.tensor = clip_boxes(scale_inclusive(boxes.tensor, factors), scaled.image_size)
    else:
        boxes.scale(width / result.image_size[1], height / result.image_size[0])
        boxes.tensor = clip_boxes(boxes.tensor, scaled.image_size)
    return scaled[boxes.nonempty().nonzero().squeeze(1)]

"""The way of the detector's gradient through the corners of the proposals to the RPN.

The paper calls joint training with it "non-approximate" (section 3.2) and leaves it out. Which
anchors become proposals, and which of these are sampled, is a fixed choice; the boxes that were
chosen are differentiable in the deltas that made them. Scores and targets hand nothing back.

Source: MNC proposal_layer.py, proposal_target_layer.py (faster_rcnn_end2end).
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.structures import Boxes, Instances

from .box_ops import clip_inclusive, inside_image

# What MODEL.PAPER_RCNN.PROPOSAL_GRADIENT and MODEL.RPN.PROPOSAL_GRADIENT_AT_BORDER may be.
PROPOSAL_GRADIENTS = ("none", "foreground", "all")
AT_BORDER = ("exact", "none")


def decode_with_gradient(
    deltas: torch.Tensor,
    anchors: torch.Tensor,
    image_size: tuple[int, int],
    transform: Any,
    *,
    limit: float = 0.0,
    at_border: str = "exact",
) -> torch.Tensor:
    """Decode and clip the proposals of an image, with their gradient (examples W8, W9).

    Args:
        deltas: (P, 4), as predicted.
        anchors: (P, 4), continuous XYXY in network-input pixels.
        image_size: (height, width) of the network input.
        transform: decodes, with target statistics if there are any.
        limit: the gradient of each delta is cut off at +-limit; 0: it is not.
        at_border: see ``MODEL.RPN.PROPOSAL_GRADIENT_AT_BORDER``.

    Returns:
        (P, 4), float32.
    """
    with torch.no_grad():
        decoded = transform.apply_deltas(deltas, anchors)
        has_gradient = decoded.isfinite().all(dim=1)  # of an overflow it would be NaN
        if at_border == "none":
            has_gradient &= (clip_inclusive(decoded, image_size) == decoded).all(dim=1)
            has_gradient &= inside_image(anchors, image_size, 0)
    if limit > 0 and deltas.requires_grad:
        deltas = deltas.clone()
        deltas.register_hook(lambda gradient: gradient.clamp(-limit, limit))
    deltas = torch.where(has_gradient[:, None], deltas, deltas.detach())
    return clip_inclusive(transform.apply_deltas(deltas, anchors), image_size)


def have_gradient(proposals: list[Instances]) -> bool:
    """Tell whether boxes of proposals hand a gradient back."""
    return any(p.proposal_boxes.tensor.requires_grad for p in proposals)


def with_rows(instances: list[Instances], *, are_proposals: bool) -> list[Instances]:
    """Number proposals, so that they are known when they have been sampled; objects have -1."""
    numbered = []
    for x in instances:
        fields = x.get_fields()
        device = (x.proposal_boxes if are_proposals else x.gt_boxes).device
        rows = torch.arange(len(x), device=device)
        rows = rows if are_proposals else torch.full_like(rows, -1)
        numbered.append(Instances(x.image_size, **fields, proposal_rows=rows))
    return numbered


def take_gradient(
    sampled: list[Instances], proposals: list[Instances], num_classes: int, *, foreground: bool
) -> None:
    """Give sampled RoIs, in place, the boxes of the proposals that they are, with the gradient.

    Args:
        sampled: per image, ``proposal_boxes``, ``gt_classes``, and ``proposal_rows`` of
            :func:`with_rows`, which go.
        proposals: per image, from the RPN.
        num_classes: the class of background.
        foreground: background hands no gradient back.
    """
    for x, p in zip(sampled, proposals, strict=True):
        rows, boxes = x.proposal_rows, p.proposal_boxes.tensor
        x.remove("proposal_rows")
        if len(boxes) == 0:
            continue
        hands_back = rows >= 0  # ground-truth boxes are no network's output
        if foreground:
            hands_back &= (x.gt_classes >= 0) & (x.gt_classes < num_classes)
        live = torch.where(
            hands_back[:, None], boxes[rows.clamp(min=0)], x.proposal_boxes.tensor.detach()
        )
        x.proposal_boxes = Boxes(live)


def without_gradient(proposals: list[Instances]) -> list[Instances]:
    """Return proposals whose boxes are constants; the same ones if they are so already."""
    if not have_gradient(proposals):
        return proposals
    fixed = []
    for p in proposals:
        fields = {**p.get_fields(), "proposal_boxes": Boxes(p.proposal_boxes.tensor.detach())}
        fixed.append(Instances(p.image_size, **fields))
    return fixed

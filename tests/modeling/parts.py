"""A PaperRPN and target statistics of which a test gives only what matters to it."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes

from frcnn_plugin.modeling import CaffeBox2BoxTransform, PaperRPN

K = 3


def random_statistics(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = 0.2 * torch.randn(rows, 4, generator=generator)
    return mean, 0.05 + torch.rand(rows, 4, generator=generator)


class FixedAnchors(torch.nn.Module):
    """Anchors given as a list, one per cell."""

    box_dim = 4

    def __init__(self, boxes: list[list[float]], num_anchors: int = 1) -> None:
        super().__init__()
        self.boxes = torch.tensor(boxes, dtype=torch.float32)
        self.num_anchors = [num_anchors]

    def forward(self, features: list[torch.Tensor]) -> list[Boxes]:
        return [Boxes(self.boxes)]


def make_rpn(**kwargs: Any) -> PaperRPN:
    """A PaperRPN whose parts do not matter unless given."""
    options: dict[str, Any] = {
        "in_features": ["conv5"],
        "head": torch.nn.Identity(),
        "anchor_generator": FixedAnchors([[0, 0, 10, 10]]),
        "anchor_matcher": Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        "box2box_transform": CaffeBox2BoxTransform(),
        "batch_size_per_image": 256,
        "positive_fraction": 0.5,
        "pre_nms_topk": (12000, 6000),
        "post_nms_topk": (2000, 300),
        "anchor_boundary_thresh": 0.0,
        "smooth_l1_beta": 1 / 9,
    }
    return PaperRPN(**{**options, **kwargs})

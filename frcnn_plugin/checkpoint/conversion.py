"""What conversions have in common: the plugin's names of weights, and the result."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .metadata import Metadata

BOX_HEAD = "roi_heads.box_head"
RPN = "proposal_generator"
RPN_HEAD = f"{RPN}.rpn_head"
PREDICTOR = "roi_heads.box_predictor"

VGG16_LAYERS = tuple(
    f"conv{block}_{i}" for block, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)
)
ZF_LAYERS = tuple(f"conv{i}" for i in range(1, 6))

# Both names of the RPN's 3x3 convolution; py-faster-rcnn's networks do not agree on it (point 41 of
# docs/faithfulness.md). The first is that of its VGG16, the second that of its alternating ZF.
CAFFE_RPN_CONV = ("rpn_conv/3x3", "rpn_conv1")

# Caffe's files predict raw deltas; Detectron2's deltas are multiplied by this config key,
# MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS, whose default these are.
BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def conv_target(layer: str) -> str:
    """Return the plugin's name of a backbone's layer: conv1_2 -> backbone.conv1.conv1_2."""
    return f"backbone.{layer.split('_')[0]}.{layer}"


@dataclass
class Conversion:
    """Converted weights, and how they were."""

    network: str = ""
    """For people: "VGG16, ImageNet"."""
    state_dict: dict[str, torch.Tensor] = field(default_factory=dict)
    metadata: Metadata = field(default_factory=lambda: Metadata("imagenet"))
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    """The mapping: source, target, shape with a note."""
    unused: list[str] = field(default_factory=list)
    """What was left out."""

    def put(self, source: str, target: str, tensor: torch.Tensor, note: str = "") -> None:
        """Add a tensor under its new name."""
        self.state_dict[target] = tensor
        self.rows.append((source, target, describe(tensor) + (f", {note}" if note else "")))

    def not_finite(self) -> list[str]:
        """Return the names of the tensors that hold infinity or NaN."""
        # In pieces, as the test takes several times the memory of what is tested.
        return [
            name
            for name, tensor in self.state_dict.items()
            if not all(torch.isfinite(piece).all() for piece in tensor.flatten().split(2**20))
        ]


def describe(tensor: torch.Tensor) -> str:
    """Return a tensor's shape in words: "64 x 3 x 3 x 3"."""
    return " x ".join(map(str, tensor.shape))

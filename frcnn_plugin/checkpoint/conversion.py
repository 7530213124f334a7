"""Converted weights: their names here, what a conversion gives, and that of torchvision's VGG16.

Two families of files have torchvision's names: its own weights, and Caffe's that others saved so
(``vgg16_caffe.pth``, ``vgg16-00b39a1b.pth``). They expect different images. No name in the file
tells which, only the file's digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..errors import UserError
from .metadata import CAFFE, TORCHVISION, TORCHVISION_FEATURES, Metadata, Preprocessing

BOX_HEAD = "roi_heads.box_head"
RPN = "proposal_generator"
RPN_HEAD = f"{RPN}.rpn_head"
PREDICTOR = "roi_heads.box_predictor"

VGG16_LAYERS = tuple(
    f"conv{block}_{i}" for block, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)
)

# What a file in torchvision's names may be: its preprocessing by the name of the layout.
LAYOUTS = {
    "torchvision": TORCHVISION,
    "torchvision-features": TORCHVISION_FEATURES,
    "caffe-pth": CAFFE,
}
# Layouts by the start of the file's SHA-256, which PyTorch puts into the file's name.
KNOWN = {
    "397923af": "torchvision",  # vgg16-397923af.pth
    "88682ab5": "torchvision-features",  # vgg16_features-amdegroot-88682ab5.pth
    "00b39a1b": "caffe-pth",  # vgg16-00b39a1b.pth
}

# Place of each convolution in torchvision's `features`, where ReLUs and poolings are counted.
_CONV = dict(zip(VGG16_LAYERS, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), strict=True))
# Place of fc6 and fc7 in `classifier`: torchvision's, and that of nets that loadcaffe converted.
_CLASSIFIERS = ({"fc6": 0, "fc7": 3}, {"fc6": 1, "fc7": 4})


def conv_target(layer: str) -> str:
    """Return the plugin's name of a backbone's layer: conv1_2 -> backbone.conv1.conv1_2."""
    return f"backbone.{layer.split('_')[0]}.{layer}"


@dataclass
class Conversion:
    """Converted weights, and how they were converted."""

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


def looks_like_torchvision(state: Mapping[str, object]) -> bool:
    """Return whether the names are torchvision's."""
    return "features.0.weight" in state


def convert_torchvision(
    state: Mapping[str, torch.Tensor], preprocessing: Preprocessing
) -> Conversion:
    """Convert a VGG16 in torchvision's names, with or without the classifier.

    Args:
        state: ``features.N.*`` and, where there are any, ``classifier.N.*``.
        preprocessing: of the images that the weights expect.

    Raises:
        UserError: another network.
    """
    _check_is_vgg16(state)
    targets = {f"features.{place}": conv_target(layer) for layer, place in _CONV.items()}
    for places in _CLASSIFIERS:
        sources = {f"classifier.{place}": f"{BOX_HEAD}.{fc}" for fc, place in places.items()}
        if all(f"{source}.weight" in state for source in sources):
            # torchvision's features-only file has NaN in place of a classifier.
            if not any(state[f"{source}.weight"][0].isnan().any() for source in sources):
                targets |= sources
            break
    result = Conversion("VGG16, ImageNet", metadata=Metadata("imagenet", preprocessing))
    left = dict(state)
    for source, target in targets.items():
        for kind in ("weight", "bias"):
            if f"{source}.{kind}" not in left:
                raise UserError(f"the network lacks {source}.{kind}")
            result.put(f"{source}.{kind}", f"{target}.{kind}", left.pop(f"{source}.{kind}"))
    result.unused = [
        f"{name} (not a number)" if tensor.isnan().all() else name for name, tensor in left.items()
    ]
    return result


def _check_is_vgg16(state: Mapping[str, torch.Tensor]) -> None:
    places = {
        int(name.split(".")[1])
        for name, tensor in state.items()
        if name.startswith("features.") and name.endswith(".weight") and tensor.dim() == 4
    }
    if places != set(_CONV.values()):
        raise UserError(
            "the network has torchvision's names, but is no VGG16 without batch normalisation: it "
            f"has convolutions at features.{', '.join(map(str, sorted(places)))}, not at "
            f"{', '.join(map(str, _CONV.values()))}"
        )

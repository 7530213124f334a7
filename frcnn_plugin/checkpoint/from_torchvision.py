"""VGG16 in torchvision's names to this plugin's.

Two families of files have these names: torchvision's own weights, and Caffe's that others saved so
(``vgg16_caffe.pth``, ``vgg16-00b39a1b.pth``). They differ in the images they expect, which no name
tells, only the file's digest.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..errors import UserError
from .conversion import BOX_HEAD, VGG16_LAYERS, Conversion, conv_target
from .metadata import CAFFE, TORCHVISION, TORCHVISION_FEATURES, Metadata, Preprocessing

# Place of each convolution in `features`, where ReLUs and poolings are counted.
_CONV = dict(zip(VGG16_LAYERS, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), strict=True))
# Place of fc6 and fc7 in `classifier`: torchvision's, and that of nets that loadcaffe converted.
_CLASSIFIERS = ({"fc6": 0, "fc7": 3}, {"fc6": 1, "fc7": 4})

# What files expect, by the start of their SHA-256, which PyTorch puts into their names.
KNOWN = {
    "397923af": ("torchvision", TORCHVISION),  # vgg16-397923af.pth
    "88682ab5": ("torchvision, features only", TORCHVISION_FEATURES),  # vgg16_features-amdegroot-
    "00b39a1b": ("Caffe", CAFFE),  # vgg16-00b39a1b.pth
}
# What the user may say a file with other bytes is.
LAYOUTS = {
    "torchvision": TORCHVISION,
    "torchvision-features": TORCHVISION_FEATURES,
    "caffe-pth": CAFFE,
}


def looks_like_torchvision(state: Mapping[str, object]) -> bool:
    """Return whether the names are torchvision's."""
    return "features.0.weight" in state


def convert_torchvision(
    state: Mapping[str, torch.Tensor], preprocessing: Preprocessing
) -> Conversion:
    """Convert a VGG16, with the classifier or without.

    Args:
        state: ``features.N.*`` and, where they are, ``classifier.N.*``.
        preprocessing: of the images the weights were trained with.

    Raises:
        UserError: another network.
    """
    left = dict(state)
    result = Conversion("VGG16, ImageNet", metadata=Metadata("imagenet", preprocessing))
    _check_is_vgg16(left)
    for layer, place in _CONV.items():
        _move(result, left, f"features.{place}", conv_target(layer))
    for places in _CLASSIFIERS:
        sources = {layer: f"classifier.{place}" for layer, place in places.items()}
        if all(f"{source}.weight" in left for source in sources.values()):
            for layer, source in sources.items():
                # torchvision's features-only file has NaN in place of a classifier.
                if not torch.isnan(left[f"{source}.weight"][0]).any():
                    _move(result, left, source, f"{BOX_HEAD}.{layer}")
            break
    result.unused = [
        f"{name} (not a number)" if torch.isnan(tensor).all() else name
        for name, tensor in left.items()
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


def _move(result: Conversion, left: dict[str, torch.Tensor], source: str, target: str) -> None:
    for kind in ("weight", "bias"):
        if f"{source}.{kind}" not in left:
            raise UserError(f"the network lacks {source}.{kind}")
        result.put(f"{source}.{kind}", f"{target}.{kind}", left.pop(f"{source}.{kind}"))

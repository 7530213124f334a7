"""Converted weights: their names here, what a conversion gives, and that of torchvision's VGG16.

Two families of files have torchvision's names: its own weights, and Caffe's that others saved so
(``vgg16_caffe.pth``, ``vgg16-00b39a1b.pth``). They expect different images. No name in the file
tells which, only the file's digest.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..errors import UserError
from ..modeling.target_statistics import is_neutral, over_channels
from .metadata import CAFFE, TORCHVISION, TORCHVISION_FEATURES, Metadata, Preprocessing

BOX_HEAD = "roi_heads.box_head"
RPN = "proposal_generator"
RPN_HEAD = f"{RPN}.rpn_head"
PREDICTOR = "roi_heads.box_predictor"
# The last layers, of the only head or of each head of a cascade: "roi_heads.box_predictor.0.".
OF_PREDICTOR = re.compile(rf"{re.escape(PREDICTOR)}\.(\d+\.)?")

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
    "6c64b313": "torchvision",  # vgg16_bn-6c64b313.pth
}

# Place of each convolution in torchvision's `features`, where ReLUs and poolings are counted.
_CONV = dict(zip(VGG16_LAYERS, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), strict=True))
# The same of vgg16_bn, where a normalisation follows each.
_CONV_BN = dict(zip(VGG16_LAYERS, (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40), strict=True))
# Of fc6 and fc7, in the order in which `reduce_fc` and `pruned` take them.
_FC = [f"{BOX_HEAD}.{layer}.{kind}" for layer in ("fc6", "fc7") for kind in ("weight", "bias")]
_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
# Place of fc6 and fc7 in `classifier`: torchvision's, and that of nets that loadcaffe converted.
_CLASSIFIERS = ({"fc6": 0, "fc7": 3}, {"fc6": 1, "fc7": 4})


def conv_target(layer: str) -> str:
    """Return the plugin's name of a backbone's layer: conv1_2 -> backbone.conv1.conv1_2."""
    return f"backbone.{layer.split('_')[0]}.{layer}"


@dataclass
class Conversion:
    """Converted weights, and how they were converted."""

    network: str = ""  # for people: "VGG16, ImageNet"
    state_dict: dict[str, torch.Tensor] = field(default_factory=dict)
    metadata: Metadata = field(default_factory=lambda: Metadata("imagenet"))
    # The mapping: source, target, shape with a note.
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # what was left out

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
    """Convert a VGG16 or vgg16_bn in torchvision's names, with or without the classifier.

    The weights expect images of this ``preprocessing``.

    Raises:
        UserError: another network.
    """
    places = _conv_places(state)
    targets = {f"features.{place}": conv_target(layer) for layer, place in places.items()}
    norms: dict[str, str] = {}
    if places is _CONV_BN:
        norms = {f"features.{place + 1}": _norm_target(layer) for layer, place in places.items()}
    for classifier in _CLASSIFIERS:
        sources = {f"classifier.{at}": f"{BOX_HEAD}.{fc}" for fc, at in classifier.items()}
        if all(f"{source}.weight" in state for source in sources):
            # torchvision's features-only file has NaN in place of a classifier.
            if not any(state[f"{source}.weight"][0].isnan().any() for source in sources):
                targets |= sources
            break
    name = f"VGG16{' with BatchNorm' if norms else ''}, ImageNet"
    result = Conversion(name, metadata=Metadata("imagenet", preprocessing))
    left = dict(state)
    for source, target in (targets | norms).items():
        for kind in _NORM_TENSORS if source in norms else _NORM_TENSORS[:2]:
            if f"{source}.{kind}" not in left:
                raise UserError(f"the network lacks {source}.{kind}")
            result.put(f"{source}.{kind}", f"{target}.{kind}", left.pop(f"{source}.{kind}"))
    result.unused = [
        f"{name} (not a number)" if tensor.isnan().all() else name for name, tensor in left.items()
    ]
    return result


def _norm_target(layer: str) -> str:
    return conv_target(layer).replace(f".{layer}", f".{layer.replace('conv', 'bn')}")


def _conv_places(state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    found = {
        int(match[1])
        for name, tensor in state.items()
        if (match := re.fullmatch(r"features\.(\d{1,3})\.weight", name)) and tensor.dim() == 4
    }
    for places in (_CONV, _CONV_BN):
        if found == set(places.values()):
            return places
    raise UserError(
        "the network has torchvision's names, but is no VGG16, nor one with batch normalisation: "
        f"it has convolutions at features.{', '.join(map(str, sorted(found)))}, not at "
        f"{', '.join(map(str, _CONV.values()))}"
    )


def reduce_fc(
    state: Mapping[str, torch.Tensor], model: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Sub-sample fc6 and fc7 for a head that has them as convolutions, as R-FCN's may.

    Of fc6's outputs every (wanted / given)th is kept, 1 in 4 for 1024 of 4096, and of its 7 x 7
    taps every third; of fc7's inputs and outputs the same ones. They are not rescaled. There are
    none unless the file has linear layers that fit, where the model has convolutions.
    """
    if not all(name in state and name in model for name in _FC):
        return {}
    weight6, bias6, weight7, bias7 = (state[name] for name in _FC)
    wanted, side = model[_FC[0]].shape, 7
    if weight6.dim() != 2 or len(wanted) != 4 or weight7.shape != (len(weight6), len(weight6)):
        return {}
    step = len(weight6) // wanted[0]
    if len(weight6) != step * wanted[0] or weight6.shape[1] != wanted[1] * side * side:
        return {}
    taps = weight6.view(len(weight6), wanted[1], side, side)
    reduced = (
        taps[::step, :, ::3, ::3], bias6[::step], weight7[::step, ::step, None, None], bias7[::step]
    )  # fmt: skip
    return {name: tensor.contiguous() for name, tensor in zip(_FC, reduced, strict=True)}


def pruned(state: dict[str, torch.Tensor], width: int) -> dict[str, torch.Tensor]:
    """Cut fc6 and fc7 of a file with one box head down to a number of units.

    fc6 keeps its rows with the largest L1 norms, in their order, fc7 the columns that belong to
    them, and of the rows that this leaves those with the largest L1 norms. Weights that are no
    wider are returned as they are.
    """
    if any(name not in state or len(state[name]) <= width for name in _FC):
        return state
    weight6, bias6, weight7, bias7 = (torch.as_tensor(state[name]) for name in _FC)
    kept = _strongest(weight6, width)
    weight6, bias6, weight7 = weight6[kept], bias6[kept], weight7[:, kept]
    kept = _strongest(weight7, width)
    result = copy.copy(state)
    result.update(zip(_FC, (weight6, bias6, weight7[kept], bias7[kept]), strict=True))
    return result


def _strongest(weight: torch.Tensor, number: int) -> torch.Tensor:
    return weight.abs().sum(dim=1).topk(number).indices.sort().values


def copied_to_heads(
    state: dict[str, torch.Tensor], wanted: Collection[str]
) -> dict[str, torch.Tensor]:
    """Give fc6 and fc7 of a file with one box head to every head of a cascade.

    A cascade's are called "roi_heads.box_head.0.fc6.weight" and so on. Without one among the names
    ``wanted``, or with one in the file, the weights are those of the file.
    """
    found = (re.fullmatch(rf"({re.escape(BOX_HEAD)}\.)\d+\.(.+)", name) for name in wanted)
    sources = {match[0]: match[1] + match[2] for match in found if match}
    copies = {name: source for name, source in sources.items() if source in state}
    result = copy.copy(state)
    result.update({name: state[source] for name, source in copies.items()})
    for source in set(copies.values()):
        del result[source]
    return result


# What predicts the deltas that statistics belong to, beside "target_statistics" in the model.
_NORMALISED = ("bbox_pred", "rpn_head.rpn_bbox_pred")


def raw_deltas(
    layer: list[torch.Tensor],
    state: Mapping[str, torch.Tensor],
    owner: str,
    weights: Sequence[float],
) -> list[torch.Tensor]:
    """Return weight and bias of the layer that predicts (output * std + mean) / weights.

    Mean and std, (C, 4), are those of the layer's targets in ``state``, where they belong to the
    module that names begin with, ``owner``; 0 and 1 if there are none.

    Raises:
        UserError: the layer was given other classes than they have.
    """
    scale = torch.tensor(weights, dtype=torch.float64)
    mean = state.get(f"{owner}target_statistics.mean", torch.zeros(1, 4))
    std = state.get(f"{owner}target_statistics.std", torch.ones(1, 4))
    offset, factor = mean.cpu().double() / scale, std.cpu().double() / scale
    if (factor == 1).all() and (offset == 0).all():
        return layer
    weight, bias = layer
    # Convolutions predict the deltas of anchors, 4a + j, or R-FCN's maps, delta by delta.
    maps = weight.dim() == 4 and not owner.startswith(RPN)
    if weight.dim() == 2 and factor.numel() not in (4, len(bias)):
        raise UserError(
            f"{owner}target_statistics are of {len(factor)} classes, but the box layer is of "
            f"{len(bias) // 4}: fold them into the weights before you give it other classes"
        )
    repeats = len(bias) // factor.numel() if maps else 1
    factor, offset = (over_channels(values, len(bias), repeats) for values in (factor, offset))
    shape = (-1,) + (1,) * (weight.dim() - 1)
    return [
        (weight.double() * factor.view(shape)).float(),
        (bias.double() * factor + offset).float(),
    ]


def without_statistics(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a model's state dict without target statistics that change nothing.

    It means the same to this plugin, and Detectron2's own layers have no place for them.
    """
    kept = copy.copy(state)  # with the versions of modules, which are an attribute
    for name in [name for name in kept if name.endswith(".target_statistics.mean")]:
        std = name.removesuffix("mean") + "std"
        if std in kept and is_neutral(kept[name], kept[std]):
            del kept[name], kept[std]
    return kept


def used_statistics(names: Collection[str]) -> dict[str, str]:
    """Map the owners of target statistics among the names of weights to their layers' names."""
    found = {}
    for name in names:
        if name.endswith("target_statistics.mean"):
            owner = name.removesuffix("target_statistics.mean")
            layers = (owner + layer for layer in _NORMALISED)
            layer = next((layer for layer in layers if f"{layer}.weight" in names), None)
            if layer:
                found[owner] = layer
    return found


def fold_statistics(conversion: Conversion) -> None:
    """Fold target statistics into the layers, which then predict what Detectron2's own do."""
    state = conversion.state_dict
    for owner, layer in used_statistics(state).items():
        pair = [state[f"{layer}.{kind}"] for kind in ("weight", "bias")]
        folded = raw_deltas(pair, state, owner, (1.0, 1.0, 1.0, 1.0))
        for kind, tensor in zip(("weight", "bias"), folded, strict=True):
            conversion.put(f"{layer}.{kind}", f"{layer}.{kind}", tensor, "statistics folded in")
        for kind in ("mean", "std"):
            del state[f"{owner}target_statistics.{kind}"]

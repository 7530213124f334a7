"""Checks of loaded weights: are they those that a model needs?"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..config_files import read_config_text
from ..errors import UserError
from .conversion import OF_PREDICTOR, RPN, RPN_HEAD
from .metadata import IMAGENET_MEAN_TOLERANCE, Metadata, Preprocessing

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]

# What depends on the number of classes, and of anchors: weights of another number start at random.
_BY_CLASSES = re.compile(rf"{OF_PREDICTOR.pattern}(cls_score|bbox_pred|target_statistics)\.")
_BY_ANCHORS = re.compile(rf"{re.escape(RPN_HEAD)}\.(rpn_cls_score|rpn_bbox_pred)\.")
_BOX_DELTAS = (f"{RPN_HEAD}.rpn_bbox_pred.weight", f"{RPN_HEAD}.rpn_bbox_pred.bias")
_USUAL_RATIOS = [0.5, 1.0, 2.0]
_USUAL_SIZES = {9: [128, 256, 512], 12: [64, 128, 256, 512], 15: [32, 64, 128, 256, 512]}


@dataclass(frozen=True)
class Loaded:
    """What came of loading a file into a model."""

    file: str
    keys: Sequence[str]  # names of the weights in the file
    missing: Collection[str]  # those of the model that the file has not, or not in the right shape
    wrong_shapes: Mapping[str, tuple[Shape, Shape]]  # of these: the file's and the model's

    def without(self, part: str) -> Loaded:
        """Return the same, as if the model did not have the sub-module."""
        missing = [name for name in self.missing if not is_in(name, [part])]
        shapes = {k: v for k, v in self.wrong_shapes.items() if not is_in(k, [part])}
        return Loaded(self.file, self.keys, missing, shapes)


def check_layers(
    loaded: Loaded, what: str, kind: str, layers: Sequence[str], advice: str = ""
) -> None:
    """Stop if layers, named without ".weight", are missing that training makes no sense without.

    The message has `what` they belong to, such as "VGG16", and their `kind`, such as "conv layers".
    """
    lacking = [
        layer
        for layer in layers
        if f"{layer}.weight" in loaded.missing or f"{layer}.bias" in loaded.missing
    ]
    if not lacking:
        return
    shapes = [
        f"{name} is {_text(found)} there and {_text(wanted)} here"
        for name, (found, wanted) in loaded.wrong_shapes.items()
        if is_in(name, lacking)
    ]
    detail = shapes[0] if shapes else f"its first keys: {', '.join(loaded.keys[:4])} ..."
    raise UserError(
        f"{what}: {len(layers) - len(lacking)} of {len(layers)} {kind} found in {loaded.file}; "
        f"{detail}. {advice}".rstrip()
    )


def check_may_lack(parts: Sequence[str], model: nn.Module) -> None:
    """Stop if ``MODEL.WEIGHTS_MAY_LACK`` names what is none of a model's modules and weights."""
    names = [*(name for name, _ in model.named_modules()), *model.state_dict()]
    for part in parts:
        if not any(is_in(name, [part]) for name in names):
            alike = difflib.get_close_matches(part, names, n=2)
            hint = f"did you mean {' or '.join(alike)}?" if alike else "print(model) shows them"
            raise UserError(f"MODEL.WEIGHTS_MAY_LACK: the model has no '{part}': {hint}")


def anchors_of(metadata: Metadata | None) -> dict[str, Any]:
    """Return the sizes and ratios of the anchors that a file was trained with, by config key.

    Empty if it does not say.
    """
    try:
        config = read_config_text((metadata and metadata.config) or "", "the file's config")
        anchors = config["MODEL"]["ANCHOR_GENERATOR"]
        return {key: _by_level(anchors[key]) for key in ("SIZES", "ASPECT_RATIOS")}
    except (UserError, LookupError, TypeError):  # no config, or whatever the text in the file is
        return {}


def _by_level(values: Sequence[Any]) -> list[list[float]]:
    """Return sizes or ratios as lists, one per feature map; Detectron2 takes one for all, too."""
    nested = isinstance(values[0], Sequence)
    return [list(level) for level in values] if nested else [list(values)]


def fitting_anchors(loaded: Loaded, metadata: Metadata | None) -> str:
    """Say, after a message, which anchors the file has, if it has another number of them."""
    shape = next((f for n, (f, _) in loaded.wrong_shapes.items() if n in _BOX_DELTAS), None)
    if not shape:
        return ""
    number = shape[0] // 4
    found, words = anchors_of(metadata), f". Its {number} anchors:"
    if not found:  # the product of sizes and ratios; most often those of the paper and followers
        words = f". It has {number} anchors, such as"
        if number not in _USUAL_SIZES:
            return f". It has {number} anchors: so many sizes times aspect ratios"
        found = {"SIZES": [_USUAL_SIZES[number]], "ASPECT_RATIOS": [_USUAL_RATIOS]}
    keys = (f'MODEL.ANCHOR_GENERATOR.{key} "{value}"' for key, value in found.items())
    return " ".join((words, *keys))


def check_anchors(loaded: Loaded, metadata: Metadata | None, wanted: Mapping[str, Any]) -> None:
    """Warn if the RPN that was loaded was trained with other anchors, of the same number."""
    if any(is_in(name, [RPN]) for name in loaded.missing):
        return
    for key, theirs in anchors_of(metadata).items():
        if theirs != _by_level(wanted[key]):
            logger.warning(
                "%s was trained with other anchors, which its boxes refer to: "
                'MODEL.ANCHOR_GENERATOR.%s "%s"', loaded.file, key, theirs,
            )  # fmt: skip


def check_shapes(
    loaded: Loaded, may_lack: Sequence[str] = (), metadata: Metadata | None = None
) -> list[str]:
    """Let differences in classes and anchors pass, which are then trained from random weights.

    Weights whose names begin with one of `may_lack` may have any shape; a UserError names any
    other. Return a sentence for each kind of difference that passed.
    """
    wrong = {
        name: shapes for name, shapes in loaded.wrong_shapes.items() if not is_in(name, may_lack)
    }
    sentences = []
    for layers, reason in ((_BY_CLASSES, "classes"), (_BY_ANCHORS, "anchors")):
        names = [name for name in wrong if layers.match(name)]
        if names:
            listed = ", ".join(
                f"{n} ({_text(wrong[n][0])} in the file, {_text(wrong[n][1])} here)" for n in names
            )
            sentences.append(
                f"{loaded.file} is for another number of {reason}; these start at random: {listed}"
                + (fitting_anchors(loaded, metadata) if reason == "anchors" else "")
            )
        wrong = {name: shapes for name, shapes in wrong.items() if name not in names}
    _refuse(loaded.file, wrong)
    return sentences


def check_complete(loaded: Loaded, metadata: Metadata | None = None) -> None:
    """Stop if anything is missing, as nothing may be for evaluation; the UserError names it."""
    _refuse(loaded.file, loaded.wrong_shapes, fitting_anchors(loaded, metadata))
    if loaded.missing:
        names = sorted(loaded.missing)
        raise UserError(
            f"{loaded.file} cannot be evaluated: it lacks {len(names)} weights, such as "
            f"{', '.join(names[:3])}. Weights of a trained detector are needed; those of ImageNet "
            "are where training starts"
        )


def _refuse(file: str, wrong: Mapping[str, tuple[Shape, Shape]], advice: str = "") -> None:
    for name, (found, wanted) in wrong.items():
        raise UserError(
            f"{name} is {_text(found)} in {file} and {_text(wanted)} in the model of the config: "
            "use the config, and the number of classes, that the weights were trained with"
            + (advice if _BY_ANCHORS.match(name) else "")
        )


def check_preprocessing(file: str, metadata: Metadata | None, wanted: Preprocessing) -> None:
    """Stop if the weights of the file expect other images than the config gives them.

    The UserError shows both values and the override to type. Without metadata nothing can be said.
    """
    if metadata is None or metadata.preprocessing is None:
        return
    ours, theirs = wanted.values(), metadata.preprocessing.values()
    # ImageNet's Caffe weights are used with two means that are a grey level apart.
    tolerance = IMAGENET_MEAN_TOLERANCE if metadata.kind == "imagenet" else 1e-3
    keys = [
        key
        for key, value in ours.items()
        if not _agree(value, theirs[key], tolerance if key == "MODEL.PIXEL_MEAN" else 1e-3)
    ]
    if keys:
        found = "; ".join(f"{k} is {ours[k]}, the weights expect {theirs[k]}" for k in keys)
        override = " ".join(
            f"{k} {theirs[k]}" if k == "INPUT.FORMAT" else f'{k} "{theirs[k]}"' for k in keys
        )
        raise UserError(
            f"{file} expects other images than the config makes: {found}. Type {override}"
        )


def _agree(a: str | list[float], b: str | list[float], tolerance: float) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return len(a) == len(b) and all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


def check_classes(
    file: str, metadata: Metadata | None, classes: Sequence[str] | None, *, evaluating: bool
) -> None:
    """Compare the classes that weights were trained on with those of the data, if both are known.

    A warning says if they differ. If the detector is to be used as it is, the same classes in
    another order are a UserError.
    """
    theirs = metadata.classes if metadata else None
    if not theirs or not classes or len(theirs) != len(classes) or tuple(classes) == theirs:
        return
    number = next(i for i, (a, b) in enumerate(zip(theirs, classes, strict=True)) if a != b)
    example = f"class {number} is '{theirs[number]}' there and '{classes[number]}' in the data"
    if evaluating and sorted(theirs) == sorted(classes):
        raise UserError(
            f"{file} has the classes of the data in another order ({example}): give the data set "
            "the order of the weights"
        )
    logger.warning("%s was trained on other classes: %s", file, example)


def is_in(name: str, parts: Sequence[str]) -> bool:
    """Return whether a weight belongs to one of the sub-modules."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a number"

"""What the config says about weights: what a file must hold, what a checkpoint says of itself."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from ..checkpoint.catalog.known_files import find
from ..checkpoint.catalog.path_handler import PREFIX
from ..checkpoint.matching import Requirement
from ..checkpoint.metadata import Metadata, Preprocessing
from ..modeling.backbone.caffe_backbone import CaffeBackbone
from ..modeling.roi_heads.box_head import FC6FC7Head

_CONVERT = (
    "Convert or choose another file with tools/convert_weights.py; for training from scratch leave "
    "MODEL.WEIGHTS empty and set MODEL.BACKBONE.FREEZE_AT 0"
)
_FROM_RANDOM = (
    "To start them at random, add MODEL.WEIGHTS_MAY_LACK \"['roi_heads.box_head']\"; "
    "docs/weights.md lists files that have them"
)


def names_detector(cfg: CfgNode) -> bool:
    """Whether ``MODEL.WEIGHTS`` may be a trained model: it is set, and no known ImageNet file."""
    weights = cfg.MODEL.WEIGHTS
    if weights.startswith(PREFIX):
        return find(weights.removeprefix(PREFIX)).is_detector
    return bool(weights)


def preprocessing(cfg: CfgNode) -> Preprocessing:
    """How the config makes network inputs of images."""
    return Preprocessing(
        cfg.INPUT.FORMAT,
        tuple(float(v) for v in cfg.MODEL.PIXEL_MEAN),
        tuple(float(v) for v in cfg.MODEL.PIXEL_STD),
    )


def class_names(cfg: CfgNode, *, test: bool = False) -> tuple[str, ...] | None:
    """Class names of the first training (or test) set; None if it has none, or as many others.

    Args:
        cfg: config whose data sets are registered.
        test: take the first test set.
    """
    for name in (cfg.DATASETS.TEST if test else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))[:1]:
        names = MetadataCatalog.get(name).get("thing_classes")
        if names and len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            return tuple(str(n) for n in names)
    return None


def checkpoint_metadata(cfg: CfgNode) -> Metadata:
    """What makes the checkpoints of a run usable without its data and config file."""
    return Metadata(
        "detector",
        preprocessing(cfg),
        class_names(cfg),
        cfg.dump(),
    )


def requirements(model: nn.Module, cfg: CfgNode) -> list[Requirement]:
    """Layers that training must not start without.

    All convolutions of this plugin's backbones, and fc6 and fc7, if the head is trained.

    Args:
        model: unwrapped.
        cfg: its config; ``MODEL.WEIGHTS_MAY_LACK`` excepts parts.
    """
    result = []
    for prefix, module in model.named_modules():
        if any(f"{prefix}.".startswith(f"{part}.") for part in cfg.MODEL.WEIGHTS_MAY_LACK):
            continue
        if isinstance(module, CaffeBackbone):
            layers = [
                f"{prefix}.{name}" for name, m in module.named_modules() if isinstance(m, nn.Conv2d)
            ]
            what = type(module).__name__
            result.append(Requirement(what, "conv layers", tuple(layers), _CONVERT))
        elif isinstance(module, FC6FC7Head) and cfg.MODEL.PAPER_RCNN.PHASE != "rpn":
            layers = [f"{prefix}.fc6", f"{prefix}.fc7"]
            result.append(
                Requirement("FC6FC7Head", "fully connected layers", tuple(layers), _FROM_RANDOM)
            )
    return result
